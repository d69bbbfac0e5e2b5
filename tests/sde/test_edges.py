"""The ends of paths and grids, where formulas divide by zero or round past the range."""

import itertools
import math

import mpmath
import pytest
import scipy.stats
import torch

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    AncestralSampler,
    BetaTable,
    CosineVPSDE,
    DPMSolver,
    GaussianDenoiser,
    GeometricLevels,
    KarrasRho,
    RectifiedFlow,
    SubVPSDE,
    UniformLogSNR,
    UniformTime,
)
from sde_diffusion.training import LogNormalTimes


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
def test_no_step_at_the_singular_end_is_the_identity(sde):
    scale, std = sde.transition(0.0, 0.0)
    assert (float(scale), float(std)) == (1, 0)
    s, t = torch.tensor([[0.0, 0.1], [0.0, 0.2]], dtype=torch.float64)
    a, b, std = sde.posterior_coefficients(s, t)
    assert (float(a[0]), float(b[0]), float(std[0])) == (0, 1, 0)
    assert float(a[1]) == pytest.approx(float(sde.posterior_coefficients(0.1, 0.2)[0]), rel=1e-12)


def test_velocity_of_vp_is_infinite_at_the_start_and_its_belief_is_not():
    assert math.isinf(float(VPSDE().sigma_rate(0.0)))
    t = torch.tensor(1e-9, dtype=torch.float64)
    with mpmath.workdps(40):
        by_hand = mpmath.diff(lambda u: mpmath.sqrt(1 - mpmath.exp(-(0.1 * u + 9.95 * u * u))), mpmath.mpf(float(t)))
    assert float(VPSDE().sigma_rate(t)) == pytest.approx(float(by_hand), rel=1e-9)


@pytest.mark.parametrize("beta_max", [1500.0, 1e5])
def test_inverse_of_a_path_that_ends_in_very_little_signal(beta_max):
    sde = VPSDE(0.1, beta_max)
    assert float(sde.time(sde.log_snr(1.0))) == pytest.approx(1, rel=1e-12)


ENDS = [
    (grid, sde)
    for grid, sde in itertools.product(
        (UniformLogSNR(), KarrasRho()),
        [
            *(VESDE(low, high) for low, high in ((0.2, 2.0), (0.4004055, 1.5), (0.01, 50.0))),
            *(CosineVPSDE(t_max=t_max) for t_max in (0.925, 0.92, 0.898, 0.801)),
            CosineVPSDE(-10, 10),
        ],
    )
]


@pytest.mark.parametrize(("grid", "sde"), ENDS, ids=str)
def test_the_clock_runs_at_both_ends(grid, sde):
    """dt/du by automatic differentiation at u = 0 and 1 against one-sided differences, where t is clamped too."""
    for end, inside in ((0.0, 1e-6), (1.0, 1 - 1e-6)):
        u = torch.tensor([end, inside], dtype=torch.float64, requires_grad=True)
        t = grid.time(sde, u, sde.t_min)
        (slope,) = torch.autograd.grad(t.sum(), u)
        difference = float(((t[1] - t[0]) / (u[1] - u[0])).detach())
        assert float(slope[0]) == pytest.approx(difference, rel=1e-3)


def test_levels_that_end_below_the_path_are_refused():
    """Else the prior, noise of t_max, would be walked back as the first level's: a std of 33 in place of 1."""
    denoiser = GaussianDenoiser(VESDE(0.01, 50.0), torch.zeros(1), 1.0)
    with pytest.raises(ValueError, match=r"t_max=0\.5406"):
        AncestralSampler(10, grid=GeometricLevels(10, 0.01, 1.0))(denoiser, (4, 1))
    fitting = GaussianDenoiser(VESDE(0.01, 50.0, t_max=0.54072), torch.zeros(1), 1.0)
    assert AncestralSampler(10, grid=GeometricLevels(10, 0.01, 1.0))(fitting, (4, 1)).x.abs().max() < 10
    with pytest.raises(ValueError, match="t_max"):
        BetaTable(1000, 1e-4, 0.002).times(VPSDE(t_max=1.004), 10)


def test_levels_of_the_path_itself_are_all_kept():
    """Where the cleanest one rounds below the path's t_min; counted over many ranges."""
    for i in range(100):
        low, high = 0.002 * 1.07**i, 80.0 * 1.01**i
        sde = EDMSDE(low, high)
        times = GeometricLevels(20, low, high).times(sde, 20)
        assert float(times[-1]) == pytest.approx(low, rel=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(t_min=0.0), RectifiedFlow(t_max=1.0)], ids=str)
def test_exponential_integrators_say_what_they_need(sde):
    denoiser = GaussianDenoiser(sde, torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="finite log-SNR"):
        DPMSolver(10, grid=UniformTime())(denoiser, (2, 2))


@pytest.mark.parametrize(("mean", "std"), [(-12.0, 0.8), (12.0, 0.8)])
def test_log_normal_times_far_in_a_tail(mean, std):
    """The truncated normal's quantiles by SciPy, also where the path holds almost nothing of it."""
    sde = VESDE()
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    log_sigma = sde.sigma(LogNormalTimes(mean, std).icdf(sde, u)).log()
    low, high = ((math.log(s) - mean) / std for s in (0.01, 50.0))
    expected = scipy.stats.truncnorm.ppf(u.numpy(), low, high, loc=mean, scale=std)
    torch.testing.assert_close(log_sigma, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
