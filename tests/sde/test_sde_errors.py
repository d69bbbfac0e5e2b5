"""What a path and a grid refuse, and the message; values, types and modes they accept."""

import dataclasses
import math

import mpmath as mp
import pytest
import torch
from reference_paths import CASES, SIX

from sde_diffusion.sde import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    BetaTable,
    CosineVPSDE,
    GeometricLevels,
    KarrasRho,
    RectifiedFlow,
    SubVPSDE,
    UniformLogSNR,
    UniformTime,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSDE(20.0, 0.1), ["beta_min <= beta_max", "beta_min=20.0", "beta_max=0.1"]),
        (lambda: VPSDE(0.1, math.nan), ["beta_min <= beta_max", "beta_max=nan"]),
        (lambda: VPSDE(0.1, math.inf), ["finite", "beta_max=inf"]),
        (lambda: SubVPSDE(0.0, 20.0), ["SubVPSDE", "0 < beta_min", "beta_min=0.0"]),
        (lambda: SubVPSDE(-1.0), ["0 < beta_min", "beta_min=-1.0"]),
        (lambda: VESDE(sigma_min=0.0), ["0 < sigma_min < sigma_max", "sigma_min=0.0"]),
        (lambda: VESDE(-0.01, 50.0), ["0 < sigma_min", "sigma_min=-0.01"]),
        (lambda: VESDE(50.0, 0.01), ["sigma_min < sigma_max", "sigma_max=0.01"]),
        (lambda: EDMSDE(0.0, 80.0), ["EDMSDE", "0 < sigma_min"]),
        (lambda: EDMSDE(sigma_max=math.inf), ["sigma_min < sigma_max", "inf"]),
        (lambda: CosineVPSDE(15.0, -15.0), ["log_snr_min < log_snr_max", "-15 and 15"]),
        (lambda: CosineVPSDE(t_max=1.1), ["ends at t = 1", "1.1"]),
        (lambda: RectifiedFlow(t_max=1.5), ["ends at t = 1", "1.5"]),
        (lambda: RectifiedFlow(t_min=0.9, t_max=0.5), ["0 <= t_min < t_max", "t_min=0.9"]),
        (lambda: VPSDE(t_min=-1e-5), ["0 <= t_min", "-1e-05"]),
        (lambda: VPSDE(t_max=math.inf), ["both finite", "inf"]),
        (lambda: VPSDE(t_min=math.nan), ["t_min < t_max", "nan"]),
    ],
)
def test_bad_paths_are_refused_with_what_is_allowed(make, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is checked below
        make()
    for words in message:
        assert words in str(error.value)


USES = {
    "alpha": lambda sde, t: sde.alpha(t),
    "sigma": lambda sde, t: sde.sigma(t),
    "log_snr": lambda sde, t: sde.log_snr(t),
    "diffusion": lambda sde, t: sde.diffusion(t),
    "drift": lambda sde, t: sde.drift(torch.ones(2, 1), t),
    "perturb": lambda sde, t: sde.perturb(torch.ones(2, 1), t, torch.ones(2, 1)),
    "transition": lambda sde, t: sde.transition(0.1, t),
    "posterior": lambda sde, t: sde.posterior(torch.ones(2, 1), torch.ones(2, 1), 0.1, t),
}


@pytest.mark.parametrize("t", [-0.01, 1.5, math.nan, 500, torch.tensor([0.3, 1.5]), torch.tensor([0.3, math.nan])])
@pytest.mark.parametrize("use", USES)
def test_times_outside_the_path_are_refused(use, t):
    for sde in (VPSDE(), VESDE(), RectifiedFlow()):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\].*step number is to be divided"):
            USES[use](sde, t)


def test_times_are_checked_against_the_end_of_a_longer_path():
    assert EDMSDE().sigma(79.5).item() == pytest.approx(79.5, rel=1e-15)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 80\]"):
        EDMSDE().sigma(81.0)
    assert VPSDE(t_max=1.004).alpha(1.004) < VPSDE().alpha(1.0)


def test_float32_times_may_round_past_the_end():
    end = torch.tensor(1.004, dtype=torch.float32)  # 1.0039999485 or 1.0040000677, as it rounds
    just_past = torch.nextafter(end, torch.tensor(2.0))
    sde = VPSDE(t_max=1.004)
    assert sde.sigma(just_past).item() == sde.sigma(1.004).item()


def test_kernels_run_forward_in_time():
    for call in (VPSDE().transition, VPSDE().posterior_coefficients):
        with pytest.raises(ValueError, match="s must not exceed t"):
            call(0.5, torch.tensor([0.6, 0.4]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformTime().times(VPSDE(), 0), ["at least 1", "got 0"]),
        (lambda: UniformTime().times(VPSDE(), 10, t_end=1.0), ["t_end must lie in [0, t_max = 1)", "got 1.0"]),
        (lambda: UniformTime().times(VPSDE(), 10, t_end=-0.1), ["t_end must lie in [0", "-0.1"]),
        (lambda: UniformLogSNR().times(VPSDE(), 10, t_end=0.0), ["infinite at t=0"]),
        (lambda: KarrasRho().times(RectifiedFlow(t_max=1.0), 10), ["infinite at t=1"]),
        (lambda: KarrasRho(0.0), ["rho must be positive", "7 is usual"]),
        (lambda: BetaTable().times(VPSDE(), 10), ["beyond the end", "t_max=1.0035 or more"]),
        (lambda: BetaTable(10).times(VPSDE(t_max=0.096), 11), ["no 11 different times", "fewer steps"]),
        (lambda: BetaTable(0), ["n >= 1", "n=0"]),
        (lambda: BetaTable(1000, 0.02, 1e-4), ["beta_start <= beta_end", "beta_start=0.02"]),
        (lambda: BetaTable(1000, 1e-4, 1.0), ["beta_end < 1", "beta_end=1.0"]),
        (lambda: GeometricLevels(1), ["n >= 2", "n=1"]),
        (lambda: GeometricLevels(10, 1.0, 0.1), ["sigma_min < sigma_max", "sigma_max=0.1"]),
        (lambda: GeometricLevels().times(VESDE(0.01, 40.0), 10), ["beyond the end", "t_max="]),
        (lambda: GeometricLevels().times(VESDE(0.02, 50.0), 10), ["does not reach", "widen the path's range"]),
        (lambda: GeometricLevels(10, 0.01, 1.0).times(EDMSDE(), 5), ["below the t_max", "t_max=1"]),
    ],
)
def test_bad_grids_are_refused_with_what_is_allowed(make, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is checked below
        make()
    for words in message:
        assert words in str(error.value)


def test_the_suggested_t_max_works():
    sde = VPSDE(t_max=1.0035)
    assert BetaTable().times(sde, 1000)[0].item() == pytest.approx(1.0034, abs=1e-4)


@pytest.mark.parametrize("name", SIX)
def test_paths_are_values(name):
    sde = CASES[name][0]
    twin = dataclasses.replace(sde)
    assert twin == sde
    assert hash(twin) == hash(sde)
    assert dataclasses.replace(sde, t_min=0.01) != sde
    with pytest.raises(dataclasses.FrozenInstanceError):
        sde.t_min = 0.5


def test_arguments_by_position_and_defaults_of_the_end_times():
    assert VPSDE(0.1, 20.0) == VPSDE(beta_min=0.1, beta_max=20.0, t_min=1e-5, t_max=1.0)
    assert SubVPSDE(0.1, 20.0) == SubVPSDE() != VPSDE()
    assert VESDE(0.01, 50.0) == VESDE(sigma_max=50.0, sigma_min=0.01)
    assert (EDMSDE(0.01, 50.0).t_min, EDMSDE(0.01, 50.0).t_max) == (0.01, 50.0)
    assert (EDMSDE(t_min=0.1).t_min, EDMSDE(t_min=0.1).t_max) == (0.1, 80.0)
    with pytest.raises(TypeError):
        VPSDE(0.1, 20.0, 1e-3)
    with pytest.raises(TypeError, match=r"log_alpha.*log_sigma"):
        SDE(t_min=0.0, t_max=1.0)


@pytest.mark.parametrize("name", SIX)
def test_float32_times_and_narrow_states(name):
    """Coefficients are those of the float64 value of the time; only the state is narrow, and stays so."""
    sde, reference, _ = CASES[name]
    t = torch.tensor([0.0123, 0.456], dtype=torch.float32)
    exact = [mp.mpf(v) for v in t.tolist()]
    assert sde.sigma(t).tolist() == pytest.approx([float(reference.sigma(v)) for v in exact], rel=1e-12)
    x0 = torch.tensor([[1.0, -3.0], [2.0, 0.5]])
    noise = torch.tensor([[0.5, 1.0], [-1.0, 0.25]])
    alpha = torch.tensor([[float(reference.alpha(v))] for v in exact], dtype=torch.float64)
    sigma = torch.tensor([[float(reference.sigma(v))] for v in exact], dtype=torch.float64)
    for dtype, bound in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10), (torch.float32, 2**-22)):
        found = sde.perturb(x0.to(dtype), t, noise.to(dtype))
        assert found.dtype == dtype
        # Three roundings, each relative to one of the terms.
        scale = alpha * x0.abs() + sigma * noise.abs()
        assert bool(((found.double() - alpha * x0 - sigma * noise).abs() <= bound * scale).all())
        assert sde.drift(x0.to(dtype), 0.3).dtype == dtype
        assert sde.posterior(x0.to(dtype), x0.to(dtype), 0.1, t.clamp(min=0.1))[0].dtype == dtype


def test_float32_times_of_small_noise_lose_nothing():
    """At t = 1e-5, 1 - exp(-B) in float32 is off by a percent (17 units of 6e-8); sigma must not be."""
    t = torch.tensor(1e-5, dtype=torch.float32)
    expected = float(CASES["vp"][1].sigma(mp.mpf(t.item())))
    naive = (1 - torch.exp(-(0.1 * t + 9.95 * t**2))).item()
    assert abs(naive / expected**2 - 1) > 0.01
    assert VPSDE().sigma(t).item() == pytest.approx(expected, rel=1e-14)
