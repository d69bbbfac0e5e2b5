"""The same answers on a CUDA device as on the CPU, and no waiting for it in the walks."""

import pytest
import torch

from sde_diffusion import (
    MLP,
    VPSDE,
    AncestralSampler,
    DPMSolver,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Objective,
    elbo,
    log_likelihood,
)
from sde_diffusion.sampling import Noise
from sde_diffusion.training import EDMWeighting, LogNormalTimes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_noise_is_the_same_to_rounding():
    here, there = (Noise(range(7), (3, 5, 5), device).normal(4) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", [AncestralSampler(20, eta=1.0), DPMSolver(12)], ids=["ddpm", "dpm"])
def test_samples_are_the_same(sampler):
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    here, there = (
        sampler(GaussianMixtureDenoiser(VPSDE(), means, 0.3).to(device), (50, 2), dtype=torch.float64).x
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)


def test_objective_is_the_same_and_its_gradient_too():
    torch.manual_seed(0)
    network = MLP((4,), width=32, depth=1)
    torch.nn.init.normal_(network.output.weight)
    objective = Objective(EDMWeighting(), LogNormalTimes())
    x, noise = torch.randn(2, 64, 4)
    t = objective.times.strata(VPSDE(), 64)
    gradients = []
    for device in ("cpu", "cuda"):
        denoiser = NetworkDenoiser(VPSDE(), network.to(device))
        loss = objective(denoiser, x.to(device), t.to(device), noise.to(device)).mean()
        (gradient,) = torch.autograd.grad(loss, network.output.weight)
        gradients.append(gradient.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_a_walk_does_not_wait_for_the_device():
    denoiser = NetworkDenoiser(VPSDE(), MLP((4,), width=32, depth=1)).cuda().eval()
    sampler = DPMSolver(8)
    sampler(denoiser, (16, 4))  # the first call loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        # One look at the finished result is allowed: it is left out by way of the walk itself.
        from sde_diffusion.sampling import Walk

        with torch.no_grad():
            walk = Walk(denoiser, Noise(range(16), (4,), "cuda"), 1e-3)
            sampler.walk(torch.randn(16, 4, device="cuda"), walk)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_likelihoods_agree_with_the_cpu():
    """The same probes and draws on both: to the network's rounding."""
    torch.manual_seed(0)
    network = MLP([4], width=32, depth=1)
    torch.nn.init.normal_(network.output.weight, std=0.3)
    denoiser = NetworkDenoiser(VPSDE(), network)
    x = torch.randn(16, 4)
    results = []
    for device in ("cpu", "cuda"):
        moved = denoiser.to(device)
        flow = log_likelihood(moved, x.to(device), probes=2, method="rk4", steps=40)
        bound = elbo(moved, x.to(device), steps=50)
        assert flow.log_prob.device.type == device
        results.append(torch.stack([flow.log_prob.cpu(), flow.std_error.cpu(), bound.log_prob.cpu()]))
    assert torch.allclose(*results, rtol=1e-4, atol=1e-3)
