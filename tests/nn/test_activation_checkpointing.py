"""With activation checkpointing a training step computes the same in less memory."""

import pytest
import torch
from peak_memory import Peak

from sde_diffusion import VPSDE, NetworkDenoiser
from sde_diffusion.denoiser import checkpoint_activations
from sde_diffusion.nn import MLP, DiT, EDM2UNet, UNet

SHAPE = [3, 8, 8]
SMALL = {"channels": 8, "channel_mult": (1, 1), "blocks": 1, "attention": (1,), "dropout": 0.3}
NETWORKS = {
    "unet": lambda: UNet(SHAPE, **SMALL, embedding_dim=8),
    "ddpm": lambda: UNet(SHAPE, **SMALL, embedding_dim=8, resampling="convolution", modulation="shift", rescale=False),
    "edm2": lambda: EDM2UNet(SHAPE, **SMALL),
    "dit": lambda: DiT(SHAPE, width=16, depth=2, heads=2, dropout=0.3),
    "mlp": lambda: MLP(SHAPE, width=16, depth=2, dropout=0.3),
}


def made(name: str, on: bool, **switches) -> NetworkDenoiser:
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(VPSDE(), NETWORKS[name](), **switches)
    for weight in denoiser.parameters():  # also the last layers, which start at 0
        torch.nn.init.normal_(weight, std=0.1)
    if on:
        checkpoint_activations(denoiser)
    return denoiser


def step(denoiser: NetworkDenoiser) -> list[torch.Tensor]:
    """The loss of a step with dropout, its gradients, and what torch draws next."""
    torch.manual_seed(1)
    x, t = torch.randn(2, *SHAPE), torch.tensor([0.2, 0.7])
    loss = denoiser(x, t).x0.square().mean()
    loss.backward()
    return [loss.detach(), *[weight.grad for weight in denoiser.parameters()], torch.rand(3)]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_loss_gradients_and_random_numbers(name, dtype):
    plain, saving = (step(made(name, on, compute_dtype=dtype)) for on in (False, True))
    for own, other in zip(saving, plain, strict=True):
        assert torch.equal(own, other)


def test_every_block_is_computed_twice_in_training_and_once_elsewhere():
    denoiser, calls = made("dit", True), []
    for block in denoiser.network.blocks:
        # Of a part: torch stops within a block as soon as the backward pass has what it needs.
        block.attention.register_forward_pre_hook(lambda part, inputs: calls.append(part))
    x, t = torch.randn(2, *SHAPE), torch.tensor([0.2, 0.7])
    denoiser(x, t).x0.sum().backward()
    assert len(calls) == 4
    denoiser.eval()
    denoiser(x, t).x0.sum().backward()
    assert len(calls) == 6
    denoiser.train()
    with torch.no_grad():
        denoiser(x, t)
    assert len(calls) == 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: UNet([3, 16, 16], channels=16, channel_mult=(1, 1), blocks=4, attention=(1,), embedding_dim=8),
        lambda: DiT([3, 16, 16], width=32, depth=12, heads=2),
    ],
    ids=["unet", "dit"],
)
def test_a_step_needs_less_than_half_of_the_memory(make):
    most = []
    for on in (False, True):
        network = make()
        network.activation_checkpointing = on
        denoiser = NetworkDenoiser(VPSDE(), network)
        for weight in denoiser.parameters():
            weight.grad = torch.zeros_like(weight)
        x, t = torch.randn(8, *network.shape), torch.rand(8)
        with Peak() as peak:
            denoiser(x, t).x0.square().mean().backward()
        most.append(peak.most)
    assert most[1] < most[0] / 2, most


def test_a_network_without_blocks_is_refused():
    denoiser = NetworkDenoiser(VPSDE(), torch.nn.Bilinear(2, 1, 2))
    with pytest.raises(ValueError, match="activation_checkpointing=true is for the library's networks"):
        checkpoint_activations(denoiser)
