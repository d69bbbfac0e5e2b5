"""Learned noise schedules against the closed optimum for Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import GaussianDenoiser, elbo
from sde_diffusion.density import LevelDecoder
from sde_diffusion.sde import KnotSchedule, LearnedSDE, LearnedVPSDE, LinearSchedule, MonotoneSchedule
from sde_diffusion.training import AdaptiveTimes, DiffusionELBO, ScheduleTimes, UniformTimes

D, S = 16, 0.5
HIGH, LOW = 13.3, -5.0


def denoiser(schedule="linear", dims: int = D) -> GaussianDenoiser:
    sde = LearnedVPSDE(HIGH, LOW, schedule)
    return GaussianDenoiser(sde, torch.zeros(dims, dtype=torch.float64), S)


def by_histogram() -> tuple[GaussianDenoiser, DiffusionELBO]:
    model, objective = denoiser(), DiffusionELBO()
    for _ in range(300):
        objective(model.train(), S * torch.randn(64, D, dtype=torch.float64))
    return model, objective


def by_gradient(schedule: str) -> tuple[GaussianDenoiser, DiffusionELBO]:
    model, objective = denoiser(schedule), DiffusionELBO(ScheduleTimes(stratified=True))
    optimizer = torch.optim.Adam(model.sde.schedule.parameters(), lr=0.01)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        optimizer.zero_grad()
        objective(model.train(), S * torch.randn(256, D, dtype=torch.float64)).mean().backward()
        optimizer.step()
        rate.step()
    return model, objective


LEARNERS = {
    "histogram": by_histogram,
    "knots": lambda: by_gradient("knots"),
    "network": lambda: by_gradient("net"),
}


@pytest.mark.parametrize("learn", LEARNERS.values(), ids=LEARNERS)
def test_the_learned_density_is_the_optimal_one_for_gaussian_data(learn):
    """Information falls at constant speed: log(1 + s^2 e^lambda) is linear in u; and one draw varies as little."""
    torch.manual_seed(0)
    model, objective = learn()
    u = torch.linspace(0, 1, 201, dtype=torch.float64)
    with torch.no_grad():
        found = model.sde.log_snr(objective.times.icdf(model.sde, u))
    first, last = (math.log1p(S**2 * math.exp(end)) for end in (HIGH, LOW))
    best = ((first + (last - first) * u).exp() - 1).log() - 2 * math.log(S)
    assert float((found - best)[1:-1].abs().max()) < 0.1
    # The mean of (1/2 |eps_hat - eps|^2)^2 at lambda is m = D (D + 2) / 4 / (1 + e^-lambda / s^2)^2: of one draw, the
    # second moment is the integral of m / p, with p the density of lambda.
    places = torch.linspace(LOW, HIGH, 20_001, dtype=torch.float64)
    with torch.no_grad():
        p = objective.times.density(model.sde, model.sde.time(places)) / (HIGH - LOW)
    m = D * (D + 2) / 4 / (1 + (-places).exp() / S**2).square()
    mean = 0.5 * D * (first - last)
    assert float(torch.trapezoid(p, places)) == pytest.approx(1, abs=1e-3)
    assert float((torch.trapezoid(m / p, places) - mean**2).sqrt()) < 1.02 * mean * math.sqrt(2 / D)


def test_the_continuous_bound_depends_on_the_ends_of_the_path_alone():
    """The same draws of the log-SNR: four schedules agree to the last digits, and in discrete time they do not."""
    torch.manual_seed(0)
    schedules = [LinearSchedule(), KnotSchedule(5), MonotoneSchedule(4), MonotoneSchedule(9)]
    with torch.no_grad():
        for parameter in (p for one in schedules for p in one.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = S * torch.randn(3, 2, dtype=torch.float64)
    continuous = [elbo(denoiser(one, 2), x, None, 32).log_prob for one in schedules]
    discrete = [elbo(denoiser(one, 2), x, 4, grid="uniform_time").log_prob for one in schedules]
    for one in continuous[1:]:
        torch.testing.assert_close(one, continuous[0], atol=1e-9, rtol=0)
    assert float((discrete[1] - discrete[0]).abs().min()) > 0.1


def test_the_ends_are_learned_by_the_bound():
    """Gradients of the three terms together, against differences of the exact bound."""
    torch.manual_seed(0)
    model, objective = denoiser(), DiffusionELBO()
    x = S * torch.randn(200_000, D, dtype=torch.float64)
    objective(model, x).mean().backward()

    def exact(high: float, low: float) -> float:
        diffusion = 0.5 * (math.log1p(S**2 * math.exp(high)) - math.log1p(S**2 * math.exp(low)))
        variance, share = 1 / (1 + math.exp(low)), S**2 / (1 + math.exp(-low))
        prior = 0.5 * share / variance  # KL between normals of equal variance
        reconstruction = -0.5 * (math.log(2 * math.pi) - high + 1)
        return diffusion + prior - reconstruction

    step = 1e-4
    by_ends = [
        (exact(HIGH + step, LOW) - exact(HIGH - step, LOW)) / (2 * step),
        (exact(HIGH, LOW + step) - exact(HIGH, LOW - step)) / (2 * step),
    ]
    assert model.sde.moves.grad.tolist() == pytest.approx([10 * value for value in by_ends], abs=2e-2)


def test_the_loss_is_the_bound_of_data_on_levels():
    """The mean over 20,000 draws, of one item, is the continuous bound with the decoder of the training data's levels.

    Both are estimates: they differ by more than 4 standard errors once in 16,000 runs.
    """
    torch.manual_seed(0)
    training = torch.tensor([-1.0, 0.0, *[1.0] * 14], dtype=torch.float64).unsqueeze(1).expand(16, 3)
    assert LearnedVPSDE(levels=3).log_snr_max == pytest.approx(2 * math.log(8))
    objective = DiffusionELBO(levels=3, shape=[3])
    model = GaussianDenoiser(LearnedVPSDE(0.5, schedule="knots"), torch.zeros(3, dtype=torch.float64), 0.8)
    objective.fit_statistics(training)
    x = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        losses = 3 * objective(model.eval(), x.expand(20_000, 3))

    def bound(decoder: LevelDecoder) -> torch.Tensor:
        return elbo(model, x.expand(512, 3), None, 64, decoder=decoder, t_end=0.0).log_prob

    wanted = bound(LevelDecoder.frequencies(3, training))
    error = math.hypot(float(losses.std()) / 20_000**0.5, float(wanted.std()) / 512**0.5)
    assert float(losses.mean()) == pytest.approx(-float(wanted.mean()), abs=4 * error)
    assert float((wanted - bound(LevelDecoder(3))).mean()) > 10 * error


def test_an_error_of_nan_or_infinity_is_not_remembered():
    model, times = denoiser(), AdaptiveTimes(bins=4)
    t = times(model.sde, 64)
    times.observe(model.sde, t, torch.full((64,), math.nan))
    mixed = torch.cat([torch.full((5,), math.nan), torch.full((4,), math.inf), torch.ones(55)])
    times.observe(model.sde, t, mixed)
    assert times.moments.tolist() == [1.0] * 4


def test_the_variance_is_of_the_times_as_they_were_drawn():
    """The gradient in the schedule is that of times whose density is not changed by the batch itself."""
    found = []
    for frozen in (False, True):
        torch.manual_seed(0)
        model, objective = denoiser("knots"), DiffusionELBO()
        for _ in range(3):
            objective(model.train(), S * torch.randn(64, D, dtype=torch.float64))
        if frozen:
            objective.times.observe = lambda *args: None
        torch.manual_seed(1)
        objective(model, S * torch.randn(64, D, dtype=torch.float64)).mean().backward()
        found.append(model.sde.schedule.logits.grad)
    torch.testing.assert_close(*found)


class Slow(LearnedSDE):
    """Another path at half its speed, so that it ends at t = 2."""

    def __init__(self, other: LearnedVPSDE) -> None:
        super().__init__(t_max=2.0)
        self.other = other

    def log_alpha(self, t):
        return self.other.log_alpha(t / 2)

    def log_sigma(self, t):
        return self.other.log_sigma(t / 2)


def test_the_bound_does_not_depend_on_the_unit_of_time():
    """Within 5 standard errors of the difference of 4,000 losses (false alarms 1e-6)."""
    fast = denoiser()
    slow = GaussianDenoiser(Slow(fast.sde), torch.zeros(D, dtype=torch.float64), S)
    losses = []
    for model in (fast, slow):
        torch.manual_seed(0)
        losses.append(DiffusionELBO(UniformTimes())(model.eval(), S * torch.randn(4000, D, dtype=torch.float64)))
    error = (losses[0] - losses[1]).std() / 4000**0.5
    assert abs(float((losses[0] - losses[1]).mean())) < 5 * float(error) + 1e-9
