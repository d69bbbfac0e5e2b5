"""ReverseProcess: its drift and diffusion keep the exact marginals (Fokker-Planck), its clock is the grid's."""

import math

import pytest
import torch
from sampling_cases import MEAN, SIX, STD, gaussian, gaussian_flow

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.sampling import NoiseToSignal, ODESampler, ReverseProcess, SDESampler, State, UnitVariance
from sde_diffusion.sde import (
    VPSDE,
    BandLogSNR,
    BetaTable,
    GeometricLevels,
    KarrasRho,
    QuadraticTime,
    UniformLogSNR,
    UniformTime,
    float64,
)

GRIDS = [UniformTime(), QuadraticTime(), UniformLogSNR(), KarrasRho(), BandLogSNR()]
COORDINATES = [State(), NoiseToSignal(), UnitVariance(0.7)]


def process(denoiser, grid, eta, t_end, coordinate=None):
    return ReverseProcess(denoiser, denoiser.sde, grid, t_end, eta, coordinate)


@pytest.mark.parametrize("coordinate", COORDINATES, ids=["x", "y", "unit"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", SIX)
def test_fokker_planck(name, eta, coordinate):
    """dp/dtau = -(f p)' + g^2 p''/2 in the solver's time tau = -u for the mixture's exact marginal p(y, t(u)) of
    y = scale x, whose density is that of x over scale, by finite differences.
    """
    sde = SIX[name]
    denoiser = GaussianMixtureDenoiser(sde, torch.tensor([[-0.7], [0.4], [1.0]]), torch.tensor([0.3, 0.2, 0.4]))
    reverse = process(denoiser, KarrasRho(), eta, 0.02 * sde.t_max, coordinate)
    for u in (0.7, 0.35, 0.18):
        width = 6 * float(sde.sigma(0.5 * sde.t_max)) if name in ("ve", "edm") else 5.0
        y = reverse.scale(u) * torch.linspace(-width, width, 20001, dtype=torch.float64).unsqueeze(1)
        h = float(y[1] - y[0])
        density = []
        for place in (u + 1e-5, u, u - 1e-5):
            scale = reverse.scale(place)
            density.append(denoiser.log_prob(y / scale, reverse.time(place)[0]).exp() / scale)
        change = (density[2] - density[0]) / 2e-5
        flux = -reverse.drift(u, y)[:, 0] * density[1]
        spread = 0.5 * reverse.diffusion(u) ** 2 * (density[1][2:] - 2 * density[1][1:-1] + density[1][:-2]) / h**2
        predicted = -(flux[2:] - flux[:-2]) / (2 * h) + spread
        # Drift and spread nearly cancel where the marginal hardly changes: their own truncation, h^2, stays.
        wrong = (change[1:-1] - predicted).abs().max()
        assert wrong < 2e-3 * change.abs().max() + 1e-5 * spread.abs().max(), u


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_the_clock(grid):
    """The time at u is the grid's, and dt/du its slope by finite differences."""
    for name, sde in SIX.items():
        steps, t_end = 7, 0.1 * sde.t_max
        reverse = process(gaussian(sde), grid, 1.0, t_end)
        times = grid.times(sde, steps + 1, t_end)
        for k in range(steps + 1):
            u = 1 - k / steps
            t, rate = reverse.time(u)
            assert abs(t - times[k]) < 1e-12 * sde.t_max, name
            assert rate > 0
            low, high = max(u - 1e-6, 0.0), min(u + 1e-6, 1.0)  # one-sided at the two ends
            assert float(reverse.time(high)[0] - reverse.time(low)[0]) / (high - low) == pytest.approx(rate, rel=1e-4)
        # What a solver may overshoot by rounding is brought back.
        assert reverse.time(-1e-9)[0] == reverse.time(torch.tensor(-1e-45))[0] == t_end
        assert reverse.time(1 + 1e-9)[0] == sde.t_max
        assert reverse.time(torch.tensor(1e-45))[0] >= t_end
        # For items at places of their own, also when a solver moves them in place.
        places = torch.tensor([0.2, 0.9, 0.2], dtype=torch.float64)
        for move in (0.0, 0.05):
            places += move
            t, rate = reverse.time(places)
            alone = [reverse.time(u) for u in places.tolist()]
            torch.testing.assert_close(t, torch.stack([float64(one) for one, _ in alone]), rtol=1e-12, atol=0)
            torch.testing.assert_close(rate, torch.stack([float64(one) for _, one in alone]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("coordinate", COORDINATES, ids=["x", "y", "unit"])
def test_divergence_of_the_flow(coordinate):
    """What a likelihood needs: in y too, d log p(y(u)) / du = -div dy/du along the flow of the exact marginal."""
    for sde in SIX.values():
        denoiser = gaussian(sde)
        reverse = process(denoiser, UniformLogSNR(), 0.0, 0.05 * sde.t_max, coordinate)
        x = float(sde.sigma(sde.t_max)) * torch.tensor([[0.3, -1.2, 0.8]], dtype=torch.float64)

        def log_prob(u, y, reverse=reverse, denoiser=denoiser):
            scale = reverse.scale(u)
            return denoiser.log_prob(y / scale, reverse.time(u)[0]) - 3 * math.log(scale)

        u, h = 0.6, 1e-5
        y = x * reverse.scale(u)
        jacobian = torch.autograd.functional.jacobian(lambda y, u=u, r=reverse: r.drift(u, y)[0], y)[:, 0]
        with torch.inference_mode():
            velocity = reverse.drift(u, y)
        # The log-density's material derivative, by central differences along the flow.
        moved = [log_prob(u + s * h, y + s * h * velocity) for s in (1, -1)]
        assert float(moved[0] - moved[1]) / (2 * h) == pytest.approx(-float(jacobian.trace()), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("coordinate", COORDINATES, ids=["x", "y", "unit"])
@pytest.mark.parametrize("name", SIX)
def test_drift_is_the_slope_of_the_exact_flow_in_every_coordinate(name, coordinate):
    """scale(t) x(t) by finite differences, x(t) the closed-form flow of Gaussian data."""
    sde = SIX[name]
    reverse = process(gaussian(sde), BandLogSNR(), 0.0, 0.01 * sde.t_max, coordinate)
    x = MEAN + STD * torch.tensor([[1.5, -0.4, 0.9], [-0.2, 2.0, -1.1]], dtype=torch.float64)

    def y(u: float):
        return reverse.scale(u) * gaussian_flow(sde, x, 0.01 * sde.t_max, float(reverse.time(u)[0]))

    for u in (0.1, 0.45, 0.9):
        slope = (y(u + 1e-5) - y(u - 1e-5)) / 2e-5
        assert (reverse.drift(u, y(u)) - slope).abs().max() < 1e-6 * float(slope.abs().max()), u


def test_unit_variance_has_variance_one_and_leaves_its_own_gaussian_at_rest():
    for name, sde in SIX.items():
        width = torch.tensor([0.3, 0.3], dtype=torch.float64)
        reverse = process(GaussianDenoiser(sde, torch.zeros(2), width), BandLogSNR(), 0.0, sde.t_min, UnitVariance(0.3))
        y = torch.tensor([[1.0, -2.0], [0.3, 5.0]], dtype=torch.float64)
        for u in (0.0, 0.2, 0.7, 1.0):
            t = reverse.time(u)[0]
            variance = (0.3 * sde.alpha(t)) ** 2 + sde.sigma(t) ** 2
            assert float(reverse.scale(u) ** 2 * variance) == pytest.approx(1, rel=1e-12)
            assert reverse.drift(u, y).abs().max() < 1e-9, (name, u)
    for bad in (0.0, -0.5, math.nan):
        with pytest.raises(ValueError, match="sigma_data must be positive"):
            UnitVariance(bad)


@pytest.mark.parametrize("sampler", [ODESampler(grid=BetaTable(1000)), SDESampler(steps=10, grid=GeometricLevels(20))])
def test_a_list_of_times_is_refused(sampler):
    sde = VPSDE(t_max=1.004) if isinstance(sampler, ODESampler) else SIX["ve"]
    with pytest.raises(ValueError, match=r"list of times.*UniformTime"):
        sampler(gaussian(sde), (2, 3))
