"""Distributions of data given a decoder's outputs."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from scipy.stats import logistic

from sde_diffusion.modality.levels import from_levels
from sde_diffusion.variational import Bernoulli, Categorical, DiscretizedLogistic, Gaussian, observation_for

LEVELS = 17
ON_LEVELS = [Categorical(LEVELS), DiscretizedLogistic(LEVELS), Bernoulli()]


def all_levels(model) -> torch.Tensor:
    levels = model.levels or 2
    return from_levels(torch.arange(levels), levels).double()


@pytest.mark.parametrize("model", ON_LEVELS, ids=lambda model: type(model).__name__)
def test_probabilities_of_all_levels_sum_to_one(model):
    generator = torch.Generator().manual_seed(0)
    x = all_levels(model)
    outputs = 3 * torch.randn(50, model.n_outputs, 1, generator=generator, dtype=torch.float64)
    total = torch.stack([model.log_prob(value.expand(50, 1), outputs) for value in x]).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-12, rtol=0)


@pytest.mark.parametrize("model", [*ON_LEVELS, Gaussian(0.4)], ids=lambda model: type(model).__name__)
def test_draws_have_the_distributions_mean(model):
    """Within 4.5 standard errors of 40,000 draws: false alarms 1e-5 for each of 3 outputs."""
    n = 40_000
    generator = torch.Generator().manual_seed(1)
    outputs = 0.7 * torch.randn(1, model.n_outputs, 3, generator=generator, dtype=torch.float64) - 0.2
    noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    drawn = model.draw(outputs.expand(n, -1, -1), noise)
    if isinstance(model, DiscretizedLogistic):  # its mean is that of the levels, not the location
        x = all_levels(model)
        p = torch.stack([model.log_prob(v.expand(1, 1), outputs[..., i : i + 1]) for v in x for i in range(3)]).exp()
        expected = (p.reshape(len(x), 3) * x.unsqueeze(1)).sum(0)
    else:
        expected = model.mean(outputs)[0]
    assert float(((drawn.mean(0) - expected) / drawn.std(0) * math.sqrt(n)).abs().max()) < 4.5


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, 0.0, 4.0, 8.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.1, 0.7, 2.0])
@mp.workdps(4000)  # for the difference of two numbers that agree in all but the last of them
def test_the_logistic_keeps_its_digits(mean, log_scale):
    """Against many digits, in float32: also where both ends of a bin lie far in the same tail."""
    model, half = DiscretizedLogistic(256), mp.mpf(1) / 255
    found = []
    for level in (0, 1, 100, 254, 255):
        x = from_levels(torch.tensor([level]), 256)
        raw = torch.tensor([[mean], [math.log(math.expm1(log_scale + 7)) - 7 if log_scale > -7 else -60.0]])
        found.append(float(model.log_prob(x.reshape(1, 1), raw.unsqueeze(0))))
        m, scale = mp.mpf(float(raw[0])), mp.exp(-7 + mp.log(1 + mp.exp(mp.mpf(float(raw[1])) + 7)))
        a, b = ((mp.mpf(2 * level) / 255 - 1 - m + sign * half) / scale for sign in (1, -1))
        upper = mp.mpf(1) if level == 255 else 1 / (1 + mp.exp(-a))
        lower = mp.mpf(0) if level == 0 else 1 / (1 + mp.exp(-b))
        exact = mp.log(upper - lower) if level != 255 else -mp.log(1 + mp.exp(b))
        assert found[-1] == pytest.approx(float(exact), rel=3e-4, abs=1e-5)


@pytest.mark.parametrize("model", [*ON_LEVELS, Gaussian(0.4)], ids=lambda model: type(model).__name__)
def test_marginal_outputs_describe_data_better_than_none(model):
    generator = torch.Generator().manual_seed(2)
    x = all_levels(model)[torch.randint(0, 2, (200, 3), generator=generator)]
    start = model.marginal_outputs(x).double()
    by_start = model.log_prob(x, start.expand(200, *start.shape)).mean()
    by_zero = model.log_prob(x, torch.zeros(200, *start.shape, dtype=torch.float64)).mean()
    assert by_start > by_zero


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_logistic_starts_at_the_standard_deviation_of_the_data_or_half_a_bin(levels):
    """Also for one item, which has none: seen in the mass of the bin above the mean, by scipy."""
    model, half = DiscretizedLogistic(levels), 1 / (levels - 1)
    wide = from_levels(torch.tensor([0, levels - 1]), levels).reshape(2, 1)
    for x, std in ((wide, 1.0), (from_levels(torch.tensor([[levels - 1]]), levels), half)):
        start = model.marginal_outputs(x).double()
        found = float(model.log_prob(torch.ones(1, 1, dtype=torch.float64), start.unsqueeze(0)))
        scale = std * math.sqrt(3) / math.pi
        assert found == pytest.approx(logistic(float(x.mean()), scale).logsf(1 - half), rel=1e-5)


def test_an_observation_model_is_chosen_by_the_data():
    assert isinstance(observation_for(None), Gaussian)
    assert isinstance(observation_for(17), Categorical)
    assert isinstance(observation_for(256), DiscretizedLogistic)


def test_the_logistic_is_finite_however_wide():
    x = from_levels(torch.arange(256), 256).expand(2, -1).clone()
    raw = torch.stack([torch.zeros(2, 256), torch.tensor([[95.0], [1e4]]).expand(2, 256)], 1).requires_grad_()
    found = DiscretizedLogistic(256).log_prob(x, raw)
    (gradient,) = torch.autograd.grad(found.sum(), raw)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
