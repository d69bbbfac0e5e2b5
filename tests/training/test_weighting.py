"""Every weighting against its definition for the quantity it is named after, and the ELBO against a closed form."""

import math

import pytest
import torch
from reference_paths import PATHS, scales, spread
from torch import nn

from sde_diffusion.denoiser import GaussianDenoiser, NetworkDenoiser
from sde_diffusion.denoiser.network import PARAMETERIZATIONS
from sde_diffusion.training import (
    EDMWeighting,
    ELBOWeighting,
    EpsWeighting,
    ImportanceTimes,
    LikelihoodWeighting,
    MinSNRWeighting,
    Objective,
    ScoreWeighting,
    UniformTimes,
    VelocityWeighting,
    Weighting,
    X0Weighting,
)

DEFINED = [
    (path, prediction)
    for path in PATHS
    for prediction in PARAMETERIZATIONS
    if prediction != "v" or path in ("vp", "cosine")
]
WEIGHTINGS: dict[str, Weighting] = {
    "eps": EpsWeighting(),
    "score": ScoreWeighting(),
    "x0": X0Weighting(),
    "velocity": VelocityWeighting(),
    "likelihood": LikelihoodWeighting(),
    "elbo": ELBOWeighting(),
    "edm": EDMWeighting(0.7),
    "min_snr": MinSNRWeighting(5.0),
}


class Wrong(nn.Module):
    """An arbitrary output of order one."""

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) - 0.4


class Fixed(nn.Module):
    """The same output whatever the input and the precision."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.output.to(x)


def by_definition(name: str, denoiser: NetworkDenoiser, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> dict:
    _, alpha, sigma, alpha_rate, sigma_rate = scales(name, t.tolist()).values()
    p = denoiser(alpha * x0 + sigma * noise, t)
    x0_error = (p.x0 - x0).square()
    score_error = (p.score - -noise / sigma).square()
    g2 = 2 * sigma * sigma_rate - 2 * sigma**2 * alpha_rate / alpha  # d sigma^2/dt - 2 f sigma^2
    s = sigma / alpha
    snr = (alpha / sigma) ** 2
    errors = {
        "eps": (p.eps - noise).square(),
        "score": sigma**2 * score_error,
        "x0": x0_error,
        "velocity": (p.velocity - (alpha_rate * x0 + sigma_rate * noise)).square(),
        "likelihood": g2 * score_error,
        "elbo": g2 * score_error / 2,  # Kingma et al. 2021, equation 17, in the score's words
        "edm": (s**2 + 0.7**2) / (s * 0.7) ** 2 * x0_error,  # Karras et al. 2022, lambda(sigma) of table 1
        "min_snr": snr.clamp(max=5) * x0_error,  # Hang et al. 2023, section 3.4
    }
    return {key: value.mean(1) for key, value in errors.items()}


@pytest.mark.parametrize(("path", "prediction"), DEFINED)
def test_loss_is_the_weighted_error_of_its_own_spelling(path: str, prediction: str) -> None:
    sde = PATHS[path][0]
    torch.manual_seed(0)
    t = spread(sde)
    x0, noise = torch.randn(2, len(t), 5, dtype=torch.float64)
    denoiser = NetworkDenoiser(sde, Wrong(), prediction, sigma_data=0.7)
    expected = by_definition(path, denoiser, x0, noise, t)
    for name, weighting in WEIGHTINGS.items():
        loss = Objective(weighting, UniformTimes())(denoiser, x0, t, noise)
        # The definitions themselves cancel: x0_hat - x0 loses 1e-16 / sigma of their digits at the clean end.
        torch.testing.assert_close(loss, expected[name], rtol=1e-9, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("path", "prediction"), DEFINED)
def test_float32_loss_is_accurate_at_both_ends(path: str, prediction: str) -> None:
    sde = PATHS[path][0]
    torch.manual_seed(1)
    t = spread(sde)
    x0, noise, output = torch.randn(3, len(t), 64)
    denoiser = NetworkDenoiser(sde, Fixed(output), prediction)
    for weighting in WEIGHTINGS.values():
        objective = Objective(weighting, UniformTimes())
        single = objective(denoiser, x0, t, noise)
        double = objective(denoiser, x0.double(), t, noise.double())
        assert single.dtype == torch.float32
        # Measured: at most 2e-7, a few roundings of float32, at every time of every path.
        assert ((single.double() - double) / double).abs().max() < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_elbo_of_a_gaussian_in_closed_form(path: str) -> None:
    """For x0 ~ N(0, s^2), E|eps_hat - eps|^2 = s^2 e^l / (1 + s^2 e^l): its integral over l/2 is a logarithm.

    Importance sampling draws l uniformly, so that the estimate has little variance. False alarm: 4.5 standard errors,
    7e-6 a path.
    """
    sde, alpha, sigma, _ = PATHS[path]
    s, n = 0.8, 100_000
    torch.manual_seed(2)
    denoiser = GaussianDenoiser(sde, torch.zeros(1), s)
    objective = Objective(ELBOWeighting(), ImportanceTimes())
    x0, noise = s * torch.randn(n, 1, dtype=torch.float64), torch.randn(n, 1, dtype=torch.float64)
    losses = objective(denoiser, x0, objective.times(sde, n), noise) * (sde.t_max - sde.t_min)
    high, low = (math.log1p(s**2 * float((alpha(t) / sigma(t)) ** 2)) for t in (sde.t_min, sde.t_max))
    standard_error = float(losses.std()) / math.sqrt(n)
    assert abs(float(losses.mean()) - (high - low) / 2) < 4.5 * standard_error
    assert standard_error < 0.01 * (high - low) / 2


def test_importance_sampling_lowers_the_variance_and_keeps_the_mean() -> None:
    """ELBO of a Gaussian on the VP path: uniform times give the same mean with far more variance."""
    sde, n, s = PATHS["vp"][0], 200_000, 0.8
    torch.manual_seed(3)
    denoiser = GaussianDenoiser(sde, torch.zeros(1), s)
    results = []
    for times in (UniformTimes(), ImportanceTimes()):
        objective = Objective(ELBOWeighting(), times)
        x0, noise = s * torch.randn(n, 1, dtype=torch.float64), torch.randn(n, 1, dtype=torch.float64)
        losses = objective(denoiser, x0, times(sde, n), noise)
        results.append((float(losses.mean()), float(losses.var())))
    (uniform, uniform_variance), (importance, importance_variance) = results
    assert abs(uniform - importance) < 4.5 * math.sqrt((uniform_variance + importance_variance) / n)
    assert importance_variance < uniform_variance / 20


@pytest.mark.parametrize(
    ("weighting", "value"), [(EDMWeighting, 0.0), (MinSNRWeighting, -1.0), (EDMWeighting, math.nan)]
)
def test_weightings_refuse_what_is_not_positive(weighting: type, value: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        weighting(value)
