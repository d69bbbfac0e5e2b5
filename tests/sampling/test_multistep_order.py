"""Order of every deterministic sampler against the exact flow, and what the low-order starts do to it."""

import pytest
import torch
from order_cases import DETERMINISTIC, error, gaussian_case, mixture_case, options, slopes, walk
from sampling_cases import SIX

from sde_diffusion.sampling import DEISSampler, DPMSolver, UniPC


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, marks=[] if name in quick else [pytest.mark.slow])
        for case, quick in ((gaussian_case, ("vp",)), (mixture_case, ("vp", "cosine", "ve", "rectified")))
        for name in SIX
    ],
)
def test_order(case, name):
    """Slopes over 48, 96 and 192 passes, of walks in whose midst the belief changes all along."""
    sde, t_end = walk(name)
    denoiser, x, exact = case(sde, t_end)
    for method, (order, build) in DETERMINISTIC.items():
        errors = [error(build(n, **options(t_end)), denoiser, x, exact) for n in (48, 96, 192)]
        assert all(abs(slope - order) < 0.3 for slope in slopes(errors)), (method, slopes(errors))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "name"),
    [
        (None, "vp"),
        ("path", "vp"),
        ("path", "rectified"),
        (None, "edm"),
        pytest.param(None, "rectified", marks=pytest.mark.slow),
        pytest.param("path", "edm", marks=pytest.mark.slow),
    ],
)
def test_order_on_other_grids(grid, name):
    """The order does not hang on equal steps: the sampler's own default grid and the path's own."""
    sde, t_end = walk(name, noisy=2.0)
    denoiser, x, exact = mixture_case(sde, t_end)
    for method, (order, build) in DETERMINISTIC.items():
        chosen = sde.default_grid() if grid == "path" else None
        errors = [error(build(n, **options(t_end, chosen)), denoiser, x, exact) for n in (96, 192)]
        assert abs(slopes(errors)[0] - order) < 0.3, (method, slopes(errors))


@pytest.mark.parametrize("name", SIX)
def test_from_the_prior_the_start_hardly_counts(name):
    """There the order is the one that the method has with an accurate start, down to small errors."""
    sde, t_end = walk(name, noisy=None)
    for case, orders in (
        (mixture_case, {"dpm3": 3, "dpm3 singlestep start": 3, "deis3": 3, "deis4": 4}),
        (gaussian_case, {"unipc3": 4}),  # on the mixture its fourth order is yet to come when the start's third shows
    ):
        denoiser, x, exact = case(sde, t_end)
        for method, order in orders.items():
            errors = [error(DETERMINISTIC[method][1](n, **options(t_end)), denoiser, x, exact) for n in (192, 384)]
            assert abs(slopes(errors)[0] - order) < 0.3, (method, slopes(errors))


@pytest.mark.parametrize("remainder", [0, 1, 2])
def test_singlestep_keeps_its_order_whatever_the_number_of_passes(remainder):
    sde, t_end = walk("vp")
    denoiser, x, exact = mixture_case(sde, t_end)
    for order in (2, 3):
        passes = [order * k + min(remainder, order - 1) for k in (32, 64, 128)]
        samplers = [DPMSolver(n, order, singlestep=True, **options(t_end)) for n in passes]
        results = [sampler(denoiser, x.shape, latent=x, dtype=torch.float64) for sampler in samplers]
        assert [result.nfe for result in results] == passes
        errors = [float((result.x - exact).square().mean().sqrt()) for result in results]
        assert all(abs(slope - order) < 0.3 for slope in slopes(errors)), (order, slopes(errors))


@pytest.mark.parametrize("name", SIX)
def test_defaults_are_sound_in_few_passes(name):
    """20 passes on the defaults, from the prior to the path's end: within 5% of the data's size of the exact flow.

    On uniform t down to 1e-5 the third order's extrapolation in the last step was three times the data's size.
    """
    sde = SIX[name]
    denoiser, x, exact = mixture_case(sde, sde.t_min)
    for sampler in (DPMSolver(20), UniPC(20), DEISSampler(20)):
        assert error(sampler, denoiser, x, exact) < 0.05, sampler


@pytest.mark.parametrize("build", [DPMSolver, UniPC])
def test_the_default_order_is_safe_in_few_passes(build):
    """From the prior in 8 passes, on the worst path: the default has less than half the error of order 3."""
    cases = [mixture_case(sde, sde.t_min) for sde in SIX.values()]
    default, third = (max(error(s, *case) for case in cases) for s in (build(8), build(8, 3)))
    assert default < 0.25
    assert third > 2 * default
