"""Weights against high-precision integrals; counts, times, endings and refusals of the multistep samplers."""

import mpmath
import pytest
import torch
from sampling_cases import SIX, Recording, gaussian, latent, mixture

from sde_diffusion.denoiser import GaussianDenoiser
from sde_diffusion.sampling import DEISSampler, DPMSolver, UniPC
from sde_diffusion.sampling.exponential import lagrange_weights
from sde_diffusion.sde import QuadraticTime, UniformLogSNR

EVERY = {
    **{f"dpm{o}": (lambda n, o=o, **k: DPMSolver(n, o, **k)) for o in (1, 2, 3)},
    "dpm3 singlestep start": lambda n, **k: DPMSolver(n, 3, singlestep_start=True, **k),
    **{f"dpm{o} singlestep": (lambda n, o=o, **k: DPMSolver(n, o, singlestep=True, **k)) for o in (1, 2, 3)},
    "dpm2 sde": lambda n, **k: DPMSolver(n, 2, eta=1.0, **k),
    **{f"unipc{o}": (lambda n, o=o, **k: UniPC(n, o, **k)) for o in (1, 2, 3)},
    **{f"deis{o}": (lambda n, o=o, **k: DEISSampler(n, o, **k)) for o in (1, 2, 3, 4)},
}


@pytest.mark.parametrize("rate", [0.0, 1.0, 1.25, 3.25])
@pytest.mark.parametrize("nodes", [[0.0], [0.0, -1.0], [0.0, 1.0, -0.7], [0.0, -0.3, -2.0, -3.1], [2 / 3, 1 / 3, 0.0]])
def test_weights_are_the_integrals(nodes, rate):
    """To 1e-13 of mpmath's 30-digit quadrature, from steps so short that closed forms in e^-h cancel to long ones."""
    lengths = [1e-6, 1e-3, 0.3, 5.0]
    ours = lagrange_weights(
        torch.tensor([nodes] * len(lengths), dtype=torch.float64), torch.tensor(lengths, dtype=torch.float64), rate
    )
    with mpmath.workdps(30):
        for h, row in zip(lengths, ours.tolist(), strict=True):
            for j, weight in enumerate(row):

                def integrand(tau, j=j, h=h):
                    basis = mpmath.fprod((tau - a) / (nodes[j] - a) for k, a in enumerate(nodes) if k != j)
                    return (rate or 1) * h * mpmath.exp(-rate * h * (1 - tau)) * basis

                assert weight == pytest.approx(float(mpmath.quad(integrand, [0, 1])), rel=1e-12, abs=1e-13 * h)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8, 9, 12])
def test_weights_of_slopes_integrate_polynomials(count):
    """Of every degree below the number of nodes, over steps of two lengths."""
    nodes = torch.linspace(-1.5, 1, count, dtype=torch.float64)
    weights = lagrange_weights(nodes.expand(2, -1), torch.tensor([1.0, 0.1], dtype=torch.float64), 0.0)
    powers = nodes.unsqueeze(1) ** torch.arange(count)
    expected = torch.tensor([[1.0], [0.1]], dtype=torch.float64) / torch.arange(1, count + 1)
    torch.testing.assert_close(weights @ powers, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("method", EVERY)
def test_steps_are_network_passes(method, steps):
    """Whatever the method does with them; the walk begins at t_max and with `denoise` ends on x0 at t_end."""
    sde = SIX["vp"]
    for denoise in (True, False):
        denoiser = Recording(mixture(sde))
        sampler = EVERY[method](steps, denoise=denoise, t_end=0.01)
        out = sampler(denoiser, (3, 2), dtype=torch.float64)
        assert out.nfe == len(denoiser.calls) == steps
        assert denoiser.times[0] == sde.t_max
        assert all(a > b for a, b in zip(denoiser.times, denoiser.times[1:], strict=False))
        x, t, _ = denoiser.calls[-1]
        assert torch.equal(out.x, mixture(sde)(x, t).x0) == denoise
        if denoise and steps > 1:
            assert t == 0.01


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("method", EVERY)
def test_a_point_is_reached_exactly(method, name):
    """A belief that never changes: every order is exact in any number of steps, alpha x0 + sigma / sigma_T x_T."""
    sde = SIX[name]
    point = torch.tensor([0.8, -0.4, 2.0], dtype=torch.float64)
    x, s = latent(sde, 5), 0.3 * sde.t_max
    sampler = EVERY[method](5, denoise=False, t_end=s)
    if method == "dpm2 sde":
        return  # has noise; see test_multistep_weak
    out = sampler(GaussianDenoiser(sde, point, 0.0), x.shape, latent=x, dtype=torch.float64).x
    eps = (x - float(sde.alpha(sde.t_max)) * point) / float(sde.sigma(sde.t_max))
    assert (out - float(sde.alpha(s)) * point - float(sde.sigma(s)) * eps).abs().max() < 1e-9


@pytest.mark.parametrize("method", EVERY)
def test_a_given_grid_is_walked(method):
    """Times uniform in sqrt t; singlestep methods stop between them, at log-SNRs in thirds or halves."""
    sde = SIX["rectified"]
    denoiser = Recording(gaussian(sde))
    EVERY[method](6, grid=QuadraticTime(), denoise=False, t_end=0.04)(denoiser, (2, 3), dtype=torch.float64)
    times = torch.tensor(denoiser.times, dtype=torch.float64)
    places = {"dpm2 singlestep": [0, 1 / 2], "dpm3 singlestep": [0, 1 / 3, 2 / 3]}.get(method, [0.0])
    steps = 5 if method == "dpm3 singlestep start" else 6 // len(places)
    roots = torch.linspace(sde.t_max**0.5, 0.2, steps + 1, dtype=torch.float64)
    ell = sde.log_snr(roots.square())
    want = [ell[k] + p * (ell[k + 1] - ell[k]) for k in range(steps) for p in places]
    if method == "dpm3 singlestep start":
        want.insert(1, 0.5 * (ell[0] + ell[1]))
    assert (sde.log_snr(times) - torch.stack(want)).abs().max() < 1e-9


@pytest.mark.parametrize("build", [DPMSolver, UniPC])
def test_default_grid(build):
    denoiser = Recording(gaussian(SIX["vp"]))
    build(7, denoise=False)(denoiser, (2, 3), dtype=torch.float64)
    want = UniformLogSNR().times(SIX["vp"], 8)[:-1]
    assert (torch.tensor(denoiser.times, dtype=torch.float64) - want).abs().max() < 1e-12


def test_what_is_refused():
    for build, options, message in (
        (DPMSolver, {"order": 4}, "order of DPM.* from 1 to 3; got 4"),
        (DPMSolver, {"order": 0}, "from 1 to 3"),
        (DPMSolver, {"eta": -0.5}, "must not be negative"),
        (DPMSolver, {"eta": float("nan")}, "must not be negative"),
        (UniPC, {"order": 4}, "from 1 to 3"),
        (DEISSampler, {"order": 5}, "from 1 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)
    for build in (DPMSolver, UniPC, DEISSampler):
        with pytest.raises(ValueError, match="at least 1"):
            build(0)
