"""ReverseProcess: its drift and diffusion keep the exact marginals (Fokker-Planck), its clock is the grid's."""

import pytest
import torch
from sampling_cases import SIX, gaussian

from sde_diffusion.denoiser import GaussianMixtureDenoiser
from sde_diffusion.sampling import Noise, ODESampler, ReverseProcess, SDESampler, Walk
from sde_diffusion.sde import VPSDE, BetaTable, GeometricLevels, KarrasRho, QuadraticTime, UniformLogSNR, UniformTime

GRIDS = [UniformTime(), QuadraticTime(), UniformLogSNR(), KarrasRho()]


def process(denoiser, grid, steps, eta, n, t_end):
    walk = Walk(denoiser, Noise(range(n), (1,), dtype=torch.float64), t_end)
    return ReverseProcess(walk, torch.Size([n, 1]), grid, steps, eta)


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", SIX)
def test_fokker_planck(name, eta):
    """dp/dtau = -(f p)' + g^2 p''/2 for the mixture's exact marginal p(x, t(tau)), by finite differences."""
    sde = SIX[name]
    denoiser = GaussianMixtureDenoiser(sde, torch.tensor([[-0.7], [0.4], [1.0]]), torch.tensor([0.3, 0.2, 0.4]))
    grid, steps, t_end = KarrasRho(), 10, 0.02 * sde.t_max
    width = 6 * float(sde.sigma(0.5 * sde.t_max)) if name in ("ve", "edm") else 5.0
    x = torch.linspace(-width, width, 4001, dtype=torch.float64).unsqueeze(1)
    h = float(x[1] - x[0])
    reverse = process(denoiser, grid, steps, eta, len(x), t_end)
    for tau in (3.0, 6.5, 8.2):
        density = [denoiser.log_prob(x, reverse.time(tensor(tau + d))[0]).exp() for d in (-1e-4, 0.0, 1e-4)]
        change = (density[2] - density[0]) / 2e-4
        flux = reverse.f(tensor(tau), x)[:, 0] * density[1]
        g = reverse.g(tensor(tau), x)[:, 0]
        assert (g == g[0]).all()
        spread = 0.5 * g[0] ** 2 * (density[1][2:] - 2 * density[1][1:-1] + density[1][:-2]) / h**2
        predicted = -(flux[2:] - flux[:-2]) / (2 * h) + spread
        # Drift and spread nearly cancel where the marginal hardly changes: their own truncation, h^2, stays.
        wrong = (change[1:-1] - predicted).abs().max()
        assert wrong < 2e-3 * change.abs().max() + 1e-5 * spread.abs().max(), tau


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_the_clock(grid):
    """T of step number tau is the grid's, and dt/dtau its slope by finite differences."""
    for name, sde in SIX.items():
        steps, t_end = 7, 0.1 * sde.t_max
        reverse = process(gaussian(sde), grid, steps, 1.0, 1, t_end)
        times = grid.times(sde, steps + 1, t_end)
        for tau in range(steps + 1):
            t, rate = reverse.time(tensor(float(tau)))
            assert abs(t - times[tau]) < 1e-12 * sde.t_max, name
            assert rate < 0
            left, right = max(tau - 1e-5, 0.0), min(tau + 1e-5, float(steps))  # one-sided at the two ends
            ahead, behind = (reverse.time(tensor(end))[0] for end in (right, left))
            assert float((ahead - behind) / (right - left)) == pytest.approx(float(rate), rel=1e-4)
        # What a solver may overshoot by rounding is brought back.
        assert reverse.time(tensor(steps + 1e-9))[0] == times[-1]
        assert reverse.time(tensor(-1e-9))[0] == sde.t_max


@pytest.mark.parametrize("sampler", [ODESampler(grid=BetaTable(1000)), SDESampler(steps=10, grid=GeometricLevels(20))])
def test_a_list_of_times_is_refused(sampler):
    sde = VPSDE(t_max=1.004) if isinstance(sampler, ODESampler) else SIX["ve"]
    with pytest.raises(ValueError, match=r"list of times.*UniformTime"):
        sampler(gaussian(sde), (2, 3))
