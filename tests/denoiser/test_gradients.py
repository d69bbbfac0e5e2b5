"""Denoisers that take a gradient inside work in every mode of their callers, against a closed form."""

import pytest
import torch
from reference_paths import PATHS

from sde_diffusion import (
    AncestralSampler,
    Denoiser,
    DPMSolver,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    elbo,
    log_likelihood,
)
from sde_diffusion.denoiser import InputGradient


class ByPosterior(Denoiser):
    """A mixture's belief moved by grad log p(k | x_t): that of its component k alone, here the sample's label."""

    def __init__(self, complete):
        super().__init__()
        self.complete, self.sde = complete, complete.sde

    def forward(self, x_t, t, label=0):
        label = torch.as_tensor(label).expand(len(x_t))
        with InputGradient(x_t, {"label": label}) as inside:
            prediction = self.complete(inside.x_t, t)
            log_probs = self.complete.log_responsibility(inside.x_t, t)
            g = inside.gradient(log_probs.gather(1, inside.conditions["label"][:, None]).squeeze(1))
            sde, time = self.sde, torch.as_tensor(t, dtype=torch.float64)
            step = (sde.sigma(time).square() / sde.alpha(time)).reshape(-1, 1)
        return inside.answer(prediction.shifted(step * g))


def pair(path):
    means, stds = torch.tensor([[0.8, 0.2], [-0.6, 0.5], [0.1, -0.9]]), torch.tensor([0.1, 0.15, 0.3])
    complete = GaussianMixtureDenoiser(PATHS[path][0], means, stds, torch.tensor([0.5, 0.2, 0.3]))
    return ByPosterior(complete), GaussianDenoiser(complete.sde, complete.means[2], complete.stds[2])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_walk(path, mode):
    inside, closed = pair(path)
    latent = float(inside.sde.sigma(inside.sde.t_max)) * torch.randn(
        5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    with mode():
        label = torch.full((5,), 2)
        for sampler in (AncestralSampler(6), DPMSolver(6)):
            options = {"latent": latent.clone(), "dtype": torch.float64, "trajectory": True}
            found = sampler(inside, (5, 2), label=label, **options)
            torch.testing.assert_close(found.x, sampler(closed, (5, 2), **options).x, rtol=1e-7, atol=1e-8)
            assert not found.x.requires_grad
            assert not found.trajectory.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_likelihoods(mode):
    inside, closed = pair("vp")
    with mode():
        x = closed.sample(2, torch.Generator().manual_seed(2))
        label = torch.full((2,), 2)
        for trace in ("exact", "hutchinson"):
            options = {"trace": trace, "rtol": 1e-4, "atol": 1e-4, "prior": lambda z: closed.log_prob(z, 1.0)}
            found, want = log_likelihood(inside, x, label=label, **options), log_likelihood(closed, x, **options)
            torch.testing.assert_close(found.log_prob, want.log_prob, rtol=1e-6, atol=1e-6)
            assert found.nfe == want.nfe
            if trace == "exact":
                truth = closed.log_prob(x.clone(), closed.sde.t_min)
                torch.testing.assert_close(found.log_prob, truth, rtol=1e-3, atol=1e-3)
        bound, wanted = elbo(inside, x, draws=8, label=label), elbo(closed, x, draws=8)
        torch.testing.assert_close(bound.log_prob, wanted.log_prob)
        assert not bound.log_prob.requires_grad


def test_the_callers_graph_is_kept_where_it_records_one():
    inside, closed = pair("cosine")
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    for name in ("x0", "score"):
        found, want = (
            torch.autograd.grad(getattr(belief, name).square().sum(), x)[0]
            for belief in (inside(x, 0.4, label=2), closed(x, 0.4))
        )
        torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        assert not inside(x, 0.4, label=2).x0.requires_grad
    assert not inside(x.detach(), 0.4, label=2).x0.requires_grad
