"""How much memory a walk needs beside that of the network."""

import pytest
import torch
from peak_memory import Peak

from sde_diffusion import VPSDE, AncestralSampler, DPMSolver, NetworkDenoiser

SHAPE = (8, 4096)


class Wide(torch.nn.Module):
    """A network that needs the memory of many states while it computes."""

    def forward(self, x, t):
        return x.repeat(30, 1)[: len(x)].neg()


@torch.no_grad()
def states(run):
    with Peak() as peak:
        run()
    return peak.most / (SHAPE[0] * SHAPE[1] * 4)


@pytest.mark.parametrize(
    ("sampler", "more"),
    [(AncestralSampler(5, eta=1.0), 3), (AncestralSampler(5, eta=0.0), 3), (DPMSolver(5, order=2), 4)],
    ids=["ddpm", "ddim", "second order"],
)
def test_beside_the_network_there_are_its_input_the_state_the_latent_and_what_later_steps_use(sampler, more):
    network, x = Wide(), torch.randn(SHAPE)
    denoiser = NetworkDenoiser(VPSDE(t_min=1e-3), network, "eps")
    alone = states(lambda: network(x, None))
    assert alone == 31
    assert states(lambda: sampler(denoiser, SHAPE, seeds=range(8))) < alone + more + 0.2
