"""How much memory a walk needs beside that of the network, and that it writes to nothing that others hold."""

import pytest
import torch
from peak_memory import Peak

from sde_diffusion import (
    VPSDE,
    AncestralSampler,
    AnnealedLangevin,
    DEISSampler,
    DPMSolver,
    HeunSampler,
    NetworkDenoiser,
    PredictorCorrector,
    UniPC,
)

SHAPE = (8, 4096)
BESIDE = {  # the network's input, the state, and:
    "ddpm": (AncestralSampler(6, eta=1.0), 2),
    "ddim": (AncestralSampler(6, eta=0.0), 2),
    "dpm 2": (DPMSolver(6, order=2), 3),  # an earlier belief
    "dpm 3": (DPMSolver(6, order=3), 4),  # two
    "singlestep 2": (DPMSolver(7, order=2, singlestep=True), 4),  # the inner state and the belief before it
    "singlestep 3": (DPMSolver(7, order=3, singlestep=True), 5),  # and one more belief
    "unipc 1": (UniPC(6, order=1), 3),  # its corrector has one node more than its predictor
    "unipc 2": (UniPC(6, order=2), 4),
    "unipc 3": (UniPC(6, order=3), 5),
    "deis 3": (DEISSampler(6, order=3), 4),
    "deis 4": (DEISSampler(6, order=4), 5),
    "heun": (HeunSampler(6), 3),  # half of the step
    "heun, churn": (HeunSampler(6, churn=4.0), 3),
    "pc": (PredictorCorrector(steps=6), 3),  # the state that is corrected
    "pc, langevin": (PredictorCorrector(steps=6, corrector="langevin"), 3),  # the noise
    "pc, no corrector": (PredictorCorrector(steps=6, corrector="none"), 2),
    "langevin": (AnnealedLangevin(4, 2), 2),
}


class Wide(torch.nn.Module):
    """A network that needs the memory of many states while it computes."""

    def forward(self, x, t):
        return x.repeat(30, 1)[: len(x)].neg()


DENOISER = NetworkDenoiser(VPSDE(t_min=1e-3), Wide(), "eps")


@torch.no_grad()
def states(run):
    with Peak() as peak:
        run()
    return peak.most / (SHAPE[0] * SHAPE[1] * 4)


@pytest.mark.parametrize("name", BESIDE)
def test_beside_the_network_there_are_its_input_the_state_and_what_later_steps_use(name):
    sampler, beside = BESIDE[name]
    x = torch.randn(SHAPE)
    alone = states(lambda: DENOISER.network(x, None))
    assert alone == 31
    found = states(lambda: sampler(DENOISER, SHAPE, seeds=range(8))) - alone
    assert found == pytest.approx(beside, abs=0.01)


@pytest.mark.parametrize("name", BESIDE)
def test_a_walk_writes_neither_to_its_latent_nor_to_what_a_callback_was_given(name):
    sampler, _ = BESIDE[name]
    latent, seen = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), []

    def callback(step, t, x, x0):
        seen.append((x, x.clone(), x0, x0.clone()))

    before = latent.clone()
    sampler(DENOISER, (3, 5), latent=latent, callback=callback)
    assert torch.equal(latent, before)
    assert seen
    assert all(torch.equal(x, copy) and torch.equal(x0, its_copy) for x, copy, x0, its_copy in seen)
