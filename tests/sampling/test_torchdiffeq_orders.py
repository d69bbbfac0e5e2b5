"""ODESampler's methods: order against a Gaussian's exact flow and SciPy's of a mixture, tolerances, coordinates."""

import functools
import math

import pytest
import torch
from sampling_cases import SIX, gaussian, gaussian_flow, latent, mixture
from scipy.integrate import solve_ivp

from sde_diffusion.denoiser import GaussianMixtureDenoiser
from sde_diffusion.sampling import NoiseToSignal, ODESampler
from sde_diffusion.sampling.ode_methods import METHODS
from sde_diffusion.sde import VESDE, KarrasRho, UniformLogSNR

ORDER = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 4,
    "implicit_adams": 4,
    "fixed_adams": 4,
}
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
T_END = {"vp": 0.2, "subvp": 0.3, "cosine": 0.4, "ve": 0.45, "edm": 0.8, "rectified": 0.4}
"""Where 60 steps of one pass are few enough to be seen and many enough to be in the asymptotic regime."""


@functools.cache
def exact(name, data):
    """Denoiser, four states at t_max and where the flow takes them: by the closed form, or by SciPy in t itself."""
    sde = SIX[name]
    x = latent(sde, 4)
    if data == "gaussian":
        return gaussian(sde), x, gaussian_flow(sde, x, sde.t_max, T_END[name])
    x, denoiser = x[:, :2], mixture(sde)

    def velocity(t, flat):
        return denoiser(torch.from_numpy(flat).reshape(-1, 2), t).velocity.numpy().ravel()

    solved = solve_ivp(velocity, (sde.t_max, T_END[name]), x.numpy().ravel(), "DOP853", rtol=1e-12, atol=1e-12)
    return denoiser, x, torch.from_numpy(solved.y[:, -1]).reshape(-1, 2)


def error(name, data, **options):
    denoiser, x, want = exact(name, data)
    sampler = ODESampler(denoise=False, t_end=T_END[name], **{"grid": UniformLogSNR(), **options})
    out = sampler(denoiser, x.shape, latent=x, dtype=torch.float64)
    return (out.x - want).abs().max().item(), out.nfe


def test_every_method_has_its_order_here():
    assert set(ORDER) == set(METHODS) - set(ADAPTIVE)


CASES = [  # quick: each method on three paths, each path with half of the methods
    pytest.param(name, method, data, marks=[pytest.mark.slow] if data == "gaussian" or (i + j) % 2 else [])
    for i, name in enumerate(SIX)
    for j, method in enumerate(ORDER)
    for data in ("gaussian", "mixture")
]


@pytest.mark.parametrize(("name", "method", "data"), CASES)
def test_order(name, method, data):
    """Error over steps tripling. Adams' methods, begun with rk4 and a step of order 3, come to their order later."""
    start = 120 if "adams" in method else 60
    few, many = (error(name, data, method=method, steps=n, rtol=1e-9, atol=1e-9)[0] for n in (start, 3 * start))
    assert math.log(few / many, 3) == pytest.approx(ORDER[method], abs=0.3), (few, many)


def test_orders_of_adams():
    def found(method, order, steps):
        return error("edm", "gaussian", method=method, steps=steps, options={"order": order})[0]

    assert math.log(found("explicit_adams", 3, 60) / found("explicit_adams", 3, 180), 3) == pytest.approx(3, abs=0.3)
    for method in ("explicit_adams", "implicit_adams"):
        assert found(method, 6, 120) < 0.5 * found(method, 4, 120)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_tolerances_are_met(method):
    """The global error follows the tolerance down (fehlberg2's own estimate flatters it), and costs passes."""
    allowed = {"fehlberg2": 200}.get(method, 30)
    low_order = {"adaptive_heun": (1e-3, 1e-4, 1e-5), "fehlberg2": (1e-3, 1e-4, 1e-5), "bosh3": (1e-3, 1e-5, 1e-7)}
    tolerances = low_order.get(method, (1e-3, 1e-6, 1e-9))
    for name in ("subvp", "rectified"):
        found = [error(name, "mixture", method=method, rtol=tolerance, atol=tolerance) for tolerance in tolerances]
        for tolerance, (wrong, _) in zip(tolerances, found, strict=True):
            assert wrong < allowed * tolerance, (name, tolerance, found)
        assert sorted(nfe for _, nfe in found) == [nfe for _, nfe in found]


@pytest.mark.parametrize("solver", ["RK23", "RK45", "DOP853"])
def test_scipy_solvers(solver):
    """Tolerances met, and by the method asked for: one of higher order takes fewer passes here."""
    found = {
        s: error("vp", "gaussian", method="scipy_solver", options={"solver": s}, rtol=1e-7, atol=1e-7)
        for s in ("RK23", solver)
    }
    assert found[solver][0] < 1e-6
    if solver != "RK23":
        assert found[solver][1] < 0.5 * found["RK23"][1]


@pytest.mark.parametrize("name", SIX)
def test_the_answer_does_not_depend_on_the_coordinate(name):
    y = {"coordinate": NoiseToSignal(), "grid": KarrasRho()}
    assert error(name, "mixture", rtol=1e-8, atol=1e-8, **y)[0] < 3e-5
    few, many = (error(name, "mixture", method="rk4", steps=n, **y)[0] for n in (20, 40))
    assert many < 0.15 * few


def test_the_coordinate_is_where_the_linear_drift_disappears():
    """Points as data: x / alpha then moves on straight lines in sigma / alpha, so that one step of Euler is exact."""
    for name in ("vp", "subvp", "cosine", "edm"):
        sde = SIX[name]
        denoiser = GaussianMixtureDenoiser(sde, torch.tensor([[0.4, -0.2]]), 0.0)
        noise = latent(sde, 5)[:, :2] / float(sde.sigma(sde.t_max))
        x = sde.perturb(denoiser.means, sde.t_max, noise)
        sampler = ODESampler(
            "euler", steps=1, coordinate=NoiseToSignal(), grid=KarrasRho(1.0), denoise=False, t_end=0.3
        )
        out = sampler(denoiser, x.shape, latent=x, dtype=torch.float64)
        assert (out.x - sde.perturb(denoiser.means, 0.3, noise)).abs().max() < 1e-10, name


@pytest.mark.parametrize("method", ["bosh3", "scipy_solver"])
def test_a_hard_sample_keeps_its_accuracy_among_easy_ones(method):
    """A sample that starts on the ridge between two narrow modes, alone and beside 511 that start far out."""
    sde = VESDE()
    denoiser = GaussianMixtureDenoiser(sde, torch.tensor([[-1.0], [1.0]]), 0.02)
    hard = torch.tensor([[1e-3]], dtype=torch.float64)
    crowd = torch.cat([hard, torch.full((511, 1), 50.0, dtype=torch.float64)])

    def solve(x, tolerance, method=method):
        sampler = ODESampler(method, rtol=tolerance, atol=tolerance, denoise=False)
        return sampler(denoiser, x.shape, latent=x, dtype=torch.float64).x[0, 0]

    exact = solve(hard, 1e-11, "dopri8")
    assert abs(solve(crowd, 1e-5) - exact) < 3 * abs(solve(hard, 1e-5) - exact) + 1e-7
