r"""SDESampler's methods: strong order on one Brownian path, weak order of mean and covariance, adaptive tolerances.

For Gaussian data N(mu, s^2), with v = (alpha s)^2 + sigma^2, the reverse SDE is linear and its solution on a given
Brownian path B is

    x(0) - alpha_0 mu = Phi_0 (x(1) - alpha_1 mu) + int Phi(u) eta g(t(u)) sqrt(dt/du) dB,
    Phi(u) = (v_0 / v_u)^((1 + eta^2)/2) (alpha_u / alpha_0)^(eta^2):

the exponential of the integral of f + (1 + eta^2)/2 g^2 / v, as g^2 / v = v' / v - 2 f.
"""

import functools
import itertools
import math

import pytest
import torch
from sampling_cases import MEAN, SIX, STD, gaussian, latent, mixture, mixture_moments

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.sampling import Noise, NoiseToSignal, SDESampler
from sde_diffusion.sampling.brownian import TreeBrownian
from sde_diffusion.sampling.sde_methods import METHODS
from sde_diffusion.sde import UniformLogSNR, UniformTime

B, CELLS = 64, 2048
T_END = {"vp": 0.5, "subvp": 0.5, "cosine": 0.4, "ve": 0.75, "edm": 24.0, "rectified": 0.4}
GRID = {name: UniformTime() if name in ("vp", "subvp", "edm") else UniformLogSNR() for name in SIX}


def start(name):
    return latent(SIX[name], B)


def brownian():
    """The path that one_path follows, on [-1, 0]: with steps of another length it is only scaled."""
    noise = Noise(range(B), (3,), dtype=torch.float64)
    return TreeBrownian(lambda k: noise.normal(k + 1), torch.zeros(B, 3, dtype=torch.float64), -1.0)


@functools.cache
def cells():
    """W of each cell of the path, and int (s - start) / width dB over it: the same for every walk."""
    path, width = brownian(), 1 / CELLS
    parts = [path(-1 + k * width, -1 + (k + 1) * width, return_U=True) for k in range(CELLS)]
    return [(w, w - area / width) for w, area in parts]


@functools.cache
def exact(name, eta):
    """The solution above, the integral cell by cell with its kernel linear in each: an error of cells^-2."""
    sde, t_end, grid = SIX[name], T_END[name], GRID[name]
    u = torch.linspace(1, 0, CELLS + 1, dtype=torch.float64)
    t = grid.time(sde, u, t_end)
    h = 1e-6
    inner = u.clamp(h, 1 - h)
    near = [grid.time(sde, inner + d, t_end) for d in (-h, h)]
    rate = (near[1] - near[0]) / (2 * h)  # dt/du
    g2 = -(sde.sigma(t) ** 2) * (sde.log_snr(near[1]) - sde.log_snr(near[0])) / (2 * h) / rate
    alpha, sigma = sde.alpha(t).unsqueeze(1), sde.sigma(t).unsqueeze(1)
    v = (alpha * STD) ** 2 + sigma**2
    phi = (v[-1] / v) ** ((1 + eta**2) / 2) * (alpha / alpha[-1]) ** (eta**2)
    kernel = phi * (eta * (g2 * rate).sqrt()).unsqueeze(1)
    x = phi[0] * (start(name) - alpha[0] * MEAN) + alpha[-1] * MEAN
    for k, (w, late) in enumerate(cells()):
        x = x + kernel[k] * (w - late) + kernel[k + 1] * late
    return x


def solve(name, method, steps, eta=1.0, **options):
    sampler = SDESampler(
        method, steps, eta, one_path=True, denoise=False, t_end=T_END[name], **{"grid": GRID[name], **options}
    )
    x = start(name)
    return sampler(gaussian(SIX[name]), x.shape, latent=x, dtype=torch.float64)


def strong_error(name, method, steps, eta=1.0, **options):
    out = solve(name, method, steps, eta, **options)
    return (out.x - exact(name, eta)).square().mean().sqrt().item()


# On linear equations srk has order 2: the terms of order 1.5 contain the drift's second derivative.
STRONG = {
    "euler": 1,
    "milstein": 1,
    "srk": 2,
    "euler_heun": 1,
    "heun": 1,
    "midpoint": 1,
    "log_ode": 1,
    "reversible_heun": 1,
}


def test_every_method_has_its_order_here():
    assert set(STRONG) == set(METHODS)


def coarse_steps(name, method):
    """reversible_heun's oscillations, which fall off faster, hide its order in few steps."""
    if method != "reversible_heun":
        return 64
    return 1024 if name in ("cosine", "rectified") else 256


QUICK = ("vp", "rectified")
SAME = ("milstein", "log_ode")
"""Here they are Euler's method and the midpoint method, step by step (see below)."""

CASES = [
    pytest.param(
        name,
        method,
        marks=[pytest.mark.slow] if name not in QUICK or method in SAME or method == "reversible_heun" else [],
    )
    for name in SIX
    for method in STRONG
]


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize(("method", "other"), [("milstein", "euler"), ("log_ode", "midpoint")])
def test_methods_that_are_the_same_here(method, other, name):
    one, two = (solve(name, same, 8).x for same in (method, other))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_strong_order(name, method):
    """Root mean square error against the solution on the same path, over four times the steps."""
    coarse = coarse_steps(name, method)
    few, many = (strong_error(name, method, n) for n in (coarse, 4 * coarse))
    assert math.log2(few / many) / 2 == pytest.approx(STRONG[method], abs=0.3), (few, many)


@pytest.mark.parametrize("method", ["euler", *(pytest.param(name, marks=pytest.mark.slow) for name in ("srk", "heun"))])
def test_strong_error_for_every_eta_and_in_the_other_coordinate(method):
    for eta in (0.0, 0.5, 1.5):
        coarse, fine = (strong_error("vp", method, n, eta) for n in (32, 128))
        assert fine < 0.35 * coarse
        assert fine < 0.05
    for name in ("vp", "edm"):
        few, many = (strong_error(name, method, n, coordinate=NoiseToSignal()) for n in (64, 256))
        assert math.log2(few / many) / 2 == pytest.approx(STRONG[method], abs=0.3), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_strong_order_of_srk_where_the_drift_is_curved(name):
    """Order 1.5 on a mixture of two modes, against itself in many steps; which Euler and Maruyama by hand, on the same
    path, come to as well, at their order 1.
    """
    sde, t_end, grid = SIX[name], 0.25, UniformTime() if name == "vp" else UniformLogSNR()
    denoiser = GaussianMixtureDenoiser(sde, torch.tensor([[-1.0], [1.0]]), 0.3)
    noise = Noise(range(256), (1,), dtype=torch.float64)
    x = latent(sde, 256)[:, :1]

    def srk(steps):
        sampler = SDESampler("srk", steps, one_path=True, denoise=False, t_end=t_end, grid=grid)
        return sampler(denoiser, x.shape, latent=x, dtype=torch.float64).x

    def by_hand(steps, x=x):
        path = TreeBrownian(lambda k: noise.normal(k + 1), torch.zeros_like(x), -1.0)
        for k, (t, s) in enumerate(itertools.pairwise(grid.times(sde, steps + 1, t_end).tolist())):
            dw = path(-1 + k / steps, -1 + (k + 1) / steps) * (steps * (t - s)) ** 0.5
            prediction, g = denoiser(x, t), float(sde.diffusion(t))
            x = x - (prediction.velocity - 0.5 * g**2 * prediction.score) * (t - s) + g * dw
        return x

    fine = srk(1024)

    def distance(x):
        return (x - fine).square().mean().sqrt().item()

    assert math.log2(distance(srk(32)) / distance(srk(128))) / 2 == pytest.approx(1.5, abs=0.3)
    assert math.log2(distance(by_hand(128)) / distance(by_hand(512))) / 2 == pytest.approx(1.0, abs=0.3)
    assert distance(by_hand(512)) < 0.02


# In the weak sense, for noise that does not depend on the state.
WEAK = {"euler": 1, "milstein": 1, "srk": 2, "heun": 2, "midpoint": 2, "log_ode": 2, "reversible_heun": 2}


def moments(name, method, steps, monkeypatch):
    """Mean and variance of the numerical solution for one dimension of the data, begun with the exact marginal.

    It is linear in the normals: given zeros it shows its mean, given unit vectors its coefficients. No samples, no
    Monte Carlo error.
    """
    sde, draws = SIX[name], 2 * steps + 1
    denoiser = GaussianDenoiser(sde, MEAN[:1], STD[:1])
    alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
    latents = torch.full((draws + 2, 1), alpha * float(MEAN[0]), dtype=torch.float64)
    latents[-1] += math.hypot(alpha * float(STD[0]), sigma)

    def unit(noise, draw):
        out = torch.zeros(draws + 2, 1, dtype=torch.float64)
        out[draw] = draw > 0  # draw 0 is the latent's
        return out

    with monkeypatch.context() as patch:
        patch.setattr(Noise, "normal", unit)
        sampler = SDESampler(method, steps, denoise=False, t_end=T_END[name], grid=GRID[name])
        x = sampler(denoiser, latents.shape, latent=latents, dtype=torch.float64).x
    return float(x[0]), float((x[1:] - x[0]).square().sum())


WEAK_METHODS = [pytest.param(name, marks=pytest.mark.slow) if name in SAME else name for name in WEAK]


@pytest.mark.parametrize("method", WEAK_METHODS)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SIX]
)
def test_weak_order(name, method, monkeypatch):
    """Mean and variance against the closed form of the marginal at t_end, over steps doubling."""
    sde = SIX[name]
    alpha, sigma = float(sde.alpha(T_END[name])), float(sde.sigma(T_END[name]))
    want = alpha * float(MEAN[0]), (alpha * float(STD[0])) ** 2 + sigma**2
    coarse = 512 if method == "reversible_heun" and name in ("cosine", "ve", "rectified") else 64
    few, many = (
        [abs(m - w) for m, w in zip(moments(name, method, n, monkeypatch), want, strict=True)]
        for n in (coarse, 2 * coarse)
    )
    assert math.log2(few[1] / many[1]) == pytest.approx(WEAK[method], abs=0.3)
    if name in ("ve", "edm"):  # alpha = 1: the marginal's mean is there from the start, and stays
        assert few[0] < 1e-12
    else:
        assert math.log2(few[0] / many[0]) > WEAK[method] - 0.5


@pytest.mark.parametrize("method", WEAK_METHODS)
def test_moments_of_200000_walks(method, monkeypatch):
    """With the noise itself: mean and variance are the ones computed above to within 5 standard errors (false alarms
    1.2e-6 a method), so that what is computed there is what samples have.
    """
    n, name, steps = 200_000, "vp", 16
    sde = SIX[name]
    denoiser = GaussianDenoiser(sde, MEAN[:1], STD[:1])
    mean, variance = moments(name, method, steps, monkeypatch)
    alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
    start = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    start = alpha * float(MEAN[0]) + math.hypot(alpha * float(STD[0]), sigma) * start
    sampler = SDESampler(method, steps, denoise=False, t_end=T_END[name], grid=GRID[name])
    x = sampler(denoiser, start.shape, latent=start, dtype=torch.float64).x
    assert abs(x.mean() - mean) < 5 * (variance / n) ** 0.5
    assert abs(x.var() - variance) < 5 * variance * (2 / n) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("method", ["srk", "heun"])
@pytest.mark.parametrize("name", SIX)
def test_marginals_of_a_mixture(name, method, eta):
    """Mean and covariance of 50,000 walks from the exact marginal at t_max, against the closed form at t_end: within
    5 standard errors (false alarms 3e-6 a case) and 0.003 for the discretisation of 100 steps.
    """
    sde, n = SIX[name], 50_000
    denoiser = mixture(sde)
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    start = sde.perturb(denoiser.sample(n, generator), sde.t_max, noise)
    sampler = SDESampler(method, 100, eta, denoise=False, t_end=T_END[name], grid=UniformLogSNR())
    x = sampler(denoiser, (n, 2), latent=start, dtype=torch.float64).x
    scale = float(sde.sigma(T_END[name])) ** 2 if name in ("ve", "edm") else 1.0
    mean, covariance = mixture_moments(denoiser, float(sde.alpha(T_END[name])), float(sde.sigma(T_END[name])))
    products = (x - mean).unsqueeze(2) * (x - mean).unsqueeze(1)
    for values, want in ((x / scale**0.5, mean / scale**0.5), (products / scale, covariance / scale)):
        assert ((values.mean(0) - want).abs() < 5 * values.std(0) / n**0.5 + 0.003).all(), (values.mean(0), want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "tolerances"),
    [
        ("euler", (0.1, 0.01)),
        ("srk", (0.1, 0.01, 0.001)),
        pytest.param("heun", (0.1, 0.01, 0.001), marks=pytest.mark.slow),
        pytest.param("reversible_heun", (0.1, 0.01, 0.001), marks=pytest.mark.slow),
    ],
)
def test_adaptive_steps_follow_the_same_path(method, tolerances):
    """With the tolerance the error against the solution on the path falls; the first step's size does not matter."""
    found = [strong_error("vp", method, 10, adaptive=True, rtol=tol, atol=tol) for tol in tolerances]
    assert found[0] < 0.2
    for coarse, fine in itertools.pairwise(found):
        assert fine < 0.4 * coarse
    tol = tolerances[-1]
    one, other = (solve("vp", method, n, adaptive=True, rtol=tol, atol=tol) for n in (5, 50))
    assert (one.x - other.x).square().mean().sqrt() < 4 * found[-1]
