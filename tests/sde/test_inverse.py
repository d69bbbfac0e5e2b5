"""The inverse of log_snr, closed forms and bisection; a path given by two functions alone."""

import math
from dataclasses import KW_ONLY, dataclass

import mpmath as mp
import pytest
import torch
from reference_paths import CASES, Reference, from_marginals
from torch import Tensor

from sde_diffusion.sde import SDE, RectifiedFlow


@dataclass(frozen=True)
class Hyperbolic(SDE):
    """alpha = 1 / (1 + t), sigma = sinh(2 t)^(3/4): neither variance-preserving nor exploding."""

    _: KW_ONLY
    t_min: float = 1e-6
    t_max: float = 2.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return -torch.log1p(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return 0.75 * torch.sinh(2 * t).log()


@dataclass(frozen=True)
class Floored(SDE):
    """alpha constant, sigma = 0.02 + t^2: a rate that automatic differentiation sees as a constant; sigma(0) > 0."""

    _: KW_ONLY
    t_min: float = 0.0
    t_max: float = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -0.25)

    def log_sigma(self, t: Tensor) -> Tensor:
        return (0.02 + t**2).log()


CUSTOM: dict[str, tuple[SDE, Reference]] = {
    "hyperbolic": (Hyperbolic(), from_marginals(lambda t: 1 / (1 + t), lambda t: mp.sinh(2 * t) ** mp.mpf("1.5"))),
    "floored": (Floored(), from_marginals(lambda t: mp.exp(mp.mpf(-0.25)), lambda t: (mp.mpf(0.02) + t**2) ** 2)),
}
TIMES = [1e-6, 1e-3, 0.11, 0.5, 0.93, 1.0]


@pytest.mark.parametrize("name", CASES)
def test_closed_form_inverse_recovers_t(name):
    sde, _, times = CASES[name]
    t = torch.tensor(times, dtype=torch.float64)
    assert (sde.time(sde.log_snr(t)) - t).abs().max() < 1e-10 * max(1.0, sde.t_max)
    if sde.log_snr(0.0).isinf():  # t is then known to relative accuracy
        torch.testing.assert_close(sde.time(sde.log_snr(t)), t, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_bisection_recovers_t(name):
    sde, _, times = CASES[name]
    t = torch.tensor(times, dtype=torch.float64)
    for found in (SDE.time(sde, sde.log_snr(t)), torch.stack([SDE.time(sde, sde.log_snr(ti)) for ti in t])):
        assert (found - t).abs().max() < 1e-10 * max(1.0, sde.t_max)
        if sde.log_snr(0.0).isinf():
            torch.testing.assert_close(found, t, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["vp", "subvp", "cosine", "rectified", "edm", "ve"])
def test_inverse_of_a_given_log_snr_against_a_root_finder(name):
    sde, reference, _ = CASES[name]
    for lam in (7.0, 0.0, -3.25):
        bracket = (mp.mpf("1e-9"), mp.mpf(sde.t_max))
        root = mp.findroot(lambda t, lam=lam: reference.log_snr(t) - lam, bracket, solver="anderson", tol=1e-40)
        for found in (sde.time(lam), SDE.time(sde, lam), sde.time(torch.tensor([lam]))[0]):
            assert abs(found.item() - root) < 1e-12 * root


def test_bisection_beyond_the_ends_returns_the_ends():
    sde = Floored()
    noisy, clean = sde.log_snr(1.0) - 1, sde.log_snr(0.0) + 1
    assert sde.time(noisy).item() == pytest.approx(1.0, rel=1e-12)
    assert abs(sde.time(clean).item()) < 1e-20


def test_infinite_log_snr_is_the_end_of_the_range():
    for sde in (Hyperbolic(), Floored(), RectifiedFlow(t_max=1.0)):
        ends = SDE.time(sde, torch.tensor([math.inf, -math.inf, 0.0]))
        assert abs(ends[0].item()) < 1e-20
        assert ends[1].item() == pytest.approx(sde.t_max, rel=1e-15)
        assert sde.log_snr(ends[2]).item() == pytest.approx(0.0, abs=1e-12)


def test_gradient_of_the_inverse_by_bisection():
    """dt / dlambda of the custom path, against the numerical derivative of a root found at 50 digits."""
    sde, reference = CUSTOM["hyperbolic"]

    def inverse(lam):
        return mp.findroot(lambda t: reference.log_snr(t) - lam, (mp.mpf("0.001"), mp.mpf(2)), "anderson", tol=1e-60)

    log_snr = torch.tensor([4.0, 0.3, -2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sde.time(log_snr).sum(), log_snr)
    assert slope.tolist() == pytest.approx([float(mp.diff(inverse, mp.mpf(v))) for v in log_snr.tolist()], rel=1e-9)


@pytest.mark.parametrize("name", CUSTOM)
def test_two_functions_give_rates_diffusion_and_inverse(name):
    sde, reference = CUSTOM[name]
    t = torch.tensor(TIMES, dtype=torch.float64)
    x = torch.ones(len(TIMES), 1, dtype=torch.float64)
    found = {
        "f": sde.drift(x, t)[:, 0],
        "g2": sde.diffusion(t) ** 2,
        "sigma_rate": sde.sigma_rate(t),
        "alpha_rate": sde.alpha_rate(t),
    }
    expected = {
        "f": reference.f,
        "g2": reference.g2,
        "sigma_rate": lambda t: mp.diff(reference.sigma, t),
        "alpha_rate": lambda t: mp.diff(reference.alpha, t),
    }
    for quantity, values in found.items():
        for ti, value in zip(TIMES, values.tolist(), strict=True):
            want = expected[quantity](mp.mpf(ti))
            assert abs(value - want) <= 1e-12 * abs(want) + 1e-25, (quantity, ti)
    assert (sde.time(sde.log_snr(t)) - t).abs().max() < 1e-10


@pytest.mark.parametrize("name", CUSTOM)
def test_rates_by_autograd_work_in_inference_mode(name):
    sde, reference = CUSTOM[name]
    with torch.inference_mode():
        t = torch.tensor([0.3, 0.7])
        t64 = [mp.mpf(v) for v in t.tolist()]
        assert sde.diffusion(t).tolist() == pytest.approx([float(mp.sqrt(reference.g2(v))) for v in t64], rel=1e-12)
        assert sde.sigma_rate(0.25).item() == pytest.approx(float(mp.diff(reference.sigma, 0.25)), rel=1e-12)


def test_two_functions_are_enough_to_walk_back_exactly():
    """x_0 drawn from p(x_0 | x_t), then x_s from q(x_s | x_t, x_0): if the posterior is right, N(m, s^2) data walk
    through their exact marginals in any number of steps. Means and variances are carried by the affine maps."""
    sde = Hyperbolic()
    m, s = 0.7, 0.4
    t = torch.tensor([2.0, 1.1, 0.4, 0.05, 1e-5], dtype=torch.float64)
    alpha, sigma = 1 / (1 + t), torch.sinh(2 * t) ** 0.75
    marginal = (alpha * s) ** 2 + sigma**2
    mean, var = alpha[0] * m, marginal[0]
    for i in range(4):
        a, b, std = sde.posterior_coefficients(t[i + 1], t[i])
        gain = alpha[i] * s**2 / marginal[i]  # E[x_0 | x_t] = m + gain (x_t - alpha m), of variance s^2 sigma^2 / marg.
        mean = (b + a * gain) * mean + a * (m - gain * alpha[i] * m)
        var = (b + a * gain) ** 2 * var + a**2 * s**2 * sigma[i] ** 2 / marginal[i] + std**2
        assert mean.item() == pytest.approx((alpha[i + 1] * m).item(), rel=1e-12)
        assert var.item() == pytest.approx(marginal[i + 1].item(), rel=1e-12)
