"""The switches for speed on a CUDA device: what they save, that steps do not wait, and that results stay the same."""

import pytest
import torch

from sde_diffusion import VPSDE, AncestralSampler, HeunSampler, NetworkDenoiser, Objective, UNet, UniPC
from sde_diffusion.denoiser import CUDAGraphs
from sde_diffusion.sampling import Noise, Walk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SMALL = {"channels": 32, "channel_mult": (1, 1), "blocks": 1, "attention": (1,), "dropout": 0.1, "embedding_dim": 32}
SWITCHES = {
    "plain": {},
    "channels last": {"channels_last": True},
    "bfloat16": {"channels_last": True, "compute_dtype": "bfloat16"},
}


def small_unet(**switches):
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(VPSDE(t_min=1e-3), UNet([3, 16, 16], **SMALL), **switches)
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return denoiser.cuda().eval()


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_norms_keep_channels_last_and_steps_of_large_networks_do_not_wait(switches, waits):
    denoiser, formats = small_unet(**switches).train(), []
    optimizer, objective = torch.optim.AdamW(denoiser.parameters(), fused=True), Objective()
    x = torch.randn(8, 3, 16, 16, device="cuda")

    def step():
        objective(denoiser, x, **objective.draw(denoiser, x)).mean().backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    waits()
    step()
    waits("default")
    for part in denoiser.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.register_forward_hook(
                lambda part, inputs, output: formats.append(output.is_contiguous(memory_format=torch.channels_last))
            )
    step()
    assert formats
    assert all(formats) == bool(switches)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.timeout(300))])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("sampler", [AncestralSampler(8, eta=0.0), UniPC(8), HeunSampler(8)], ids=repr)
def test_recorded_passes_are_the_plain_ones(sampler, switches, compiled, waits):
    """Of samplers that keep earlier results, for two batch sizes, also after the weights have changed in place."""
    denoiser = small_unet(**switches)
    tolerance = (
        {"rtol": 0.02, "atol": 0.02} if compiled or "compute_dtype" in switches else {"rtol": 1e-4, "atol": 1e-4}
    )
    expected = [sampler(denoiser, (n, 3, 16, 16)).x for n in (4, 2)]
    denoiser.cuda_graphs = CUDAGraphs()
    if compiled:
        denoiser.compile()
    for _ in range(2):
        for n, x in zip((4, 2), expected, strict=True):
            torch.testing.assert_close(sampler(denoiser, (n, 3, 16, 16)).x, x, **tolerance)
    assert len(denoiser.cuda_graphs._recordings) == 2
    walk, x = Walk(denoiser, Noise(range(4), (3, 16, 16), "cuda"), 1e-3), torch.randn(4, 3, 16, 16, device="cuda")
    with torch.no_grad():
        waits()
        sampler.walk(x, walk)
        waits("default")
        for weight in denoiser.parameters():
            weight.mul_(1.1)
    changed = sampler(denoiser, (4, 3, 16, 16)).x
    denoiser.cuda_graphs = None
    torch.testing.assert_close(changed, sampler(denoiser, (4, 3, 16, 16)).x, **tolerance)
    assert not torch.allclose(changed, expected[0], **tolerance)


def test_activation_checkpointing_saves_memory_and_changes_no_gradient():
    results, peaks = [], []
    for on in (False, True):
        denoiser = small_unet(channels_last=True, compute_dtype="bfloat16").train()
        denoiser.network.activation_checkpointing = on
        torch.manual_seed(1)
        x, t = torch.randn(64, 3, 16, 16, device="cuda"), torch.linspace(0.1, 0.9, 64)
        denoiser(x, t).x0.square().mean().backward()  # the first pass loads kernels
        denoiser.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.manual_seed(2)
        denoiser(x, t).x0.square().mean().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        results.append([weight.grad for weight in denoiser.parameters()])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-4)
    assert peaks[1] < 0.7 * peaks[0], peaks
