"""The orders that the samplers' documentation states, where users meet them: from the prior, on each default grid."""

import pytest
from order_cases import error, mixture_case, slopes
from sampling_cases import SIX
from weak_cases import weak_errors

from sde_diffusion.sampling import (
    AncestralSampler,
    DEISSampler,
    DPMSolver,
    HeunSampler,
    ODESampler,
    PredictorCorrector,
    SDESampler,
    UniPC,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}
DETERMINISTIC = {
    "ddim": (1, lambda n, **o: AncestralSampler(n, **o)),
    "dpm 1": (1, lambda n, **o: DPMSolver(n, 1, **o)),
    "dpm 2": (2, lambda n, **o: DPMSolver(n, 2, **o)),
    "dpm 3": (3, lambda n, **o: DPMSolver(n, 3, **o)),
    "dpm 3 singlestep start": (3, lambda n, **o: DPMSolver(n, 3, singlestep_start=True, **o)),
    "dpm 2 singlestep": (2, lambda n, **o: DPMSolver(n, 2, singlestep=True, **o)),
    "dpm 3 singlestep": (3, lambda n, **o: DPMSolver(n, 3, singlestep=True, **o)),
    "unipc 1": (2, lambda n, **o: UniPC(n, 1, **o)),
    "unipc 2": (3, lambda n, **o: UniPC(n, 2, **o)),
    "unipc 3": (4, lambda n, **o: UniPC(n, 3, **o)),
    "deis 1": (1, lambda n, **o: DEISSampler(n, 1, **o)),
    "deis 2": (2, lambda n, **o: DEISSampler(n, 2, **o)),
    "deis 3": (3, lambda n, **o: DEISSampler(n, 3, **o)),
    "deis 4": (4, lambda n, **o: DEISSampler(n, 4, **o)),
    "heun": (2, lambda n, **o: HeunSampler(n, **o)),
    "euler": (1, lambda n, **o: ODESampler("euler", steps=n, **o)),
    "midpoint": (2, lambda n, **o: ODESampler("midpoint", steps=n, **o)),
    "heun2": (2, lambda n, **o: ODESampler("heun2", steps=n, **o)),
    "heun3": (3, lambda n, **o: ODESampler("heun3", steps=n, **o)),
    "rk4": (4, lambda n, **o: ODESampler("rk4", steps=n, **o)),
    "explicit_adams": (4, lambda n, **o: ODESampler("explicit_adams", steps=n, **o)),
    "implicit_adams": (4, lambda n, **o: ODESampler("implicit_adams", steps=n, **EXACT, **o)),
    "sde euler": (1, lambda n, **o: SDESampler("euler", n, eta=0.0, **o)),
    "sde heun": (2, lambda n, **o: SDESampler("heun", n, eta=0.0, **o)),
    "probability_flow": (1, lambda n, **o: PredictorCorrector("probability_flow", "none", n, **o)),
}
STARTS_SHOW = {("cosine", "deis 3"): 2, ("cosine", "deis 4"): 2, ("rectified", "deis 3"): 2, ("rectified", "deis 4"): 2}
"""Where the default grid lets the low-order start be seen (see `DEISSampler`)."""

WEAK = {
    "ddpm": (1, lambda n, **o: AncestralSampler(n, 1.0, **o)),
    "dpm 2": (2, lambda n, **o: DPMSolver(n, 2, eta=1.0, **o)),
    "heun, churn": (2, lambda n, **o: HeunSampler(n, churn=10.0, **o)),
    "euler": (1, lambda n, **o: SDESampler("euler", n, **o)),
    "sde heun": (2, lambda n, **o: SDESampler("heun", n, **o)),
    "reverse_diffusion": (1, lambda n, **o: PredictorCorrector("reverse_diffusion", "none", n, **o)),
    "ancestral": (1, lambda n, **o: PredictorCorrector("ancestral", "none", n, **o)),
    "euler_maruyama": (1, lambda n, **o: PredictorCorrector("euler_maruyama", "none", n, **o)),
}


@pytest.mark.filterwarnings("ignore:implicit_adams. in .* the corrections did not settle")
@pytest.mark.parametrize("methods", ["deis", pytest.param("", marks=pytest.mark.slow)], ids=["deis", "all"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("subvp", "ve"))) for name in SIX]
)
def test_order(name, methods):
    """Distance to the exact flow of a mixture at log-SNR 4, over 384 and 768 steps; to 0.35, as some come late."""
    sde = SIX[name]
    t_end = float(sde.time(4.0))
    case = mixture_case(sde, t_end)
    for method, (order, build) in DETERMINISTIC.items():
        if not method.startswith(methods):
            continue
        errors = [error(build(n, denoise=False, t_end=t_end), *case) for n in (384, 768)]
        want = STARTS_SHOW.get((name, method), order)
        # At 1e-11 the reference's own error and rounding begin.
        assert errors[1] < 1e-11 or slopes(errors)[0] == pytest.approx(want, abs=0.35), (method, errors)


@pytest.mark.parametrize("name", ["vp", *(pytest.param(name, marks=pytest.mark.slow) for name in SIX if name != "vp")])
def test_weak_order(name):
    """Variance of Gaussian data at log-SNR 4, computed exactly, over 192 and 384 steps."""
    sde = SIX[name]
    t_end = float(sde.time(4.0))
    for method, (order, build) in WEAK.items():
        errors = [abs(weak_errors(build(n, denoise=False, t_end=t_end), sde, t_end, 2 * n + 3)[1]) for n in (192, 384)]
        assert slopes(errors)[0] == pytest.approx(order, abs=0.35), (method, errors)


@pytest.mark.parametrize("name", SIX)
def test_deis_of_order_4_is_the_better_one(name):
    """In 20 passes from the prior to the path's end on the default grid; in no more than 10 by little, if at all."""
    sde = SIX[name]
    case = mixture_case(sde, sde.t_min)
    errors = {(n, order): error(DEISSampler(n, order), *case) for n in (10, 20) for order in (3, 4)}
    assert errors[20, 4] < errors[20, 3]
    assert errors[10, 4] < 1.1 * errors[10, 3]
