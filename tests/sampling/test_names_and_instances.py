"""Grids, coordinates and methods are given by name or as instances, also of classes of one's own."""

import pytest
import torch
from sampling_cases import SIX, gaussian, mixture

from sde_diffusion.density import elbo, log_likelihood
from sde_diffusion.sampling import (
    COORDINATES,
    AncestralSampler,
    AnnealedLangevin,
    DEISSampler,
    DPMSolver,
    HeunSampler,
    ODESampler,
    Predictor,
    PredictorCorrector,
    SDEMethod,
    SDESampler,
    UniPC,
)
from sde_diffusion.sde import GRIDS, Grid, UniformTime

X = torch.tensor([[0.3, -0.2], [0.1, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    "build",
    [
        lambda **o: AncestralSampler(4, **o),
        lambda **o: DEISSampler(4, **o),
        lambda **o: DPMSolver(4, **o),
        lambda **o: UniPC(4, **o),
        lambda **o: HeunSampler(4, **o),
        lambda **o: AnnealedLangevin(4, 1, **o),
        lambda **o: PredictorCorrector(steps=4, **o),
        lambda **o: ODESampler("rk4", steps=4, **o),
        lambda **o: SDESampler(steps=4, **o),
    ],
)
def test_a_grid_by_name(build):
    class Squares(Grid):
        def time(self, sde, u, t_end):
            return UniformTime().time(sde, u**2, t_end)

    def draw(grid):
        return build(grid=grid, t_end=0.1)(mixture(SIX["vp"]), (2, 2), dtype=torch.float64).x

    for name in ("uniform_time", "karras_rho"):
        assert torch.equal(draw(name), draw(GRIDS[name]()))
    assert not torch.equal(draw("uniform_time"), draw(Squares()))
    assert not torch.equal(draw("uniform_time"), draw("karras_rho"))
    for wrong in ("karras", GRIDS["karras_rho"], 3):
        with pytest.raises(ValueError, match=r"grid must be one of uniform_time, .*; or give a Grid of your own"):
            build(grid=wrong)


def test_grids_and_coordinates_of_likelihoods():
    denoiser = mixture(SIX["vp"])

    def flow(**options):
        return log_likelihood(denoiser, X, method="rk4", steps=5, t_end=0.1, **options).log_prob

    def bound(**options):
        return elbo(denoiser, X, 10, t_end=0.1, **options).log_prob

    for call, table, key in ((flow, GRIDS, "grid"), (flow, COORDINATES, "coordinate"), (bound, GRIDS, "grid")):
        names = [*table][:2]
        found = {name: call(**{key: name}) for name in names}
        assert all(torch.equal(found[name], call(**{key: table[name]()})) for name in names)
        assert len({float(log_prob.sum()) for log_prob in found.values()}) == len(names)
        with pytest.raises(ValueError, match=f"{key} must be one of .*; got 'unknown'"):
            call(**{key: "unknown"})


@pytest.mark.parametrize("build", [lambda **o: ODESampler("rk4", steps=4, **o), lambda **o: SDESampler(steps=4, **o)])
def test_a_coordinate_by_name(build):
    def draw(coordinate):
        return build(coordinate=coordinate, t_end=0.1)(mixture(SIX["vp"]), (2, 2), dtype=torch.float64).x

    found = [draw(name) for name in COORDINATES]
    for x, kind in zip(found, COORDINATES.values(), strict=True):
        assert torch.equal(x, draw(kind()))
    assert torch.equal(found[0], draw(None))
    assert (found[0] - found[1]).abs().max() > 1e-6


def test_a_method_of_one_s_own_for_the_reverse_sde():
    """Euler and Maruyama's, by hand: that of torchsde."""

    class Own(SDEMethod):
        def solve(self, sde, y, times, brownian, **settings):
            first = y
            for tau in range(int(times[0]), int(times[-1])):
                y = y + sde.f(tau, y) + sde.g_prod(tau, y, brownian(tau, tau + 1))
            return torch.stack([first, y])

    def draw(method, **options):
        sampler = SDESampler(method, steps=8, t_end=0.05, **options)
        return sampler(mixture(SIX["subvp"]), (4, 2), dtype=torch.float64)

    own, theirs = draw(Own("own", "ito", single_pass=True)), draw("euler")
    assert own.nfe == theirs.nfe == 8
    torch.testing.assert_close(own.x, theirs.x, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"the options of own are: dt_min=.*; got order=2"):
        draw(Own("own", "ito"), options={"order": 2})


def test_a_predictor_of_one_s_own_says_how_it_climbs():
    """Euler's steps of the probability flow in t; up, each with the slope at its own beginning."""

    class Flow(Predictor):
        prediction = "velocity"

        def coefficients(self, step):
            return 1.0, step.s - step.t, 0.0

        def climb(self, step):
            return 1.0, step.t - step.s

    denoiser, options = gaussian(SIX["vp"]), {"grid": UniformTime(), "denoise": False, "t_end": 0.05}
    x = torch.tensor([[0.7, -0.3, 0.2]], dtype=torch.float64)
    own, euler = PredictorCorrector(Flow(), "none", 50, **options), ODESampler("euler", steps=50, **options)
    up, expected = (sampler.invert(denoiser, x, dtype=torch.float64) for sampler in (own, euler))
    assert up.nfe == expected.nfe == 50
    torch.testing.assert_close(up.x, expected.x, rtol=1e-10, atol=1e-10)
    down = [sampler(denoiser, x.shape, latent=up.x, dtype=torch.float64).x for sampler in (own, euler)]
    torch.testing.assert_close(*down, rtol=1e-10, atol=1e-10)
    message = r"only the deterministic walk \(predictor=probability_flow, corrector=none\) can be inverted"
    for refused in (PredictorCorrector(Flow(), steps=5), PredictorCorrector("ancestral", "none", 5)):
        with pytest.raises(ValueError, match=message):
            refused.invert(denoiser, x)
