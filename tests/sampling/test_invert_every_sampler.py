"""`invert` of every deterministic sampler: latents of Gaussian data in closed form, the way back, refusals."""

import pytest
import torch
from order_cases import error, mixture_case, slopes
from sampling_cases import MEAN, SIX, STD, Recording, gaussian, gaussian_flow, mixture

from sde_diffusion.sampling import (
    AncestralSampler,
    AnnealedLangevin,
    DEISSampler,
    DPMSolver,
    HeunSampler,
    ODESampler,
    PredictorCorrector,
    Sampler,
    SDESampler,
    UniPC,
)

STEPS = {
    "ddim": (1, lambda n, **o: AncestralSampler(n, **o)),
    "dpm 1": (1, lambda n, **o: DPMSolver(n, 1, **o)),
    "dpm 2": (2, lambda n, **o: DPMSolver(n, 2, **o)),
    "dpm 3 singlestep": (3, lambda n, **o: DPMSolver(n, 3, singlestep=True, **o)),
    "dpm 3 singlestep start": (3, lambda n, **o: DPMSolver(n, 3, singlestep_start=True, **o)),
    "unipc 2": (3, lambda n, **o: UniPC(n, 2, **o)),
    "deis 3": (2, lambda n, **o: DEISSampler(n, 3, **o)),
    "heun": (2, lambda n, **o: HeunSampler(n, **o)),
    "euler": (1, lambda n, **o: ODESampler("euler", steps=n, **o)),
    "rk4": (4, lambda n, **o: ODESampler("rk4", steps=n, **o)),
    "sde euler": (1, lambda n, **o: SDESampler("euler", n, eta=0.0, **o)),
    "sde heun": (2, lambda n, **o: SDESampler("heun", n, eta=0.0, **o)),
    "probability_flow": (1, lambda n, **o: PredictorCorrector("probability_flow", "none", n, **o)),
}
TO_TOLERANCE = {
    method: lambda tolerance, m=method, **o: ODESampler(m, rtol=tolerance, atol=tolerance, **o)
    for method in ("adams", "dopri5", "scipy_solver")
}


def gaussian_states(sde, t_end):
    z = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    alpha, sigma = sde.alpha(t_end), sde.sigma(t_end)
    return alpha * MEAN + ((alpha * STD) ** 2 + sigma**2).sqrt() * z


def errors(sampler, sde, t_end):
    """Of the latents of Gaussian data, in units of the noise, and of the way there and back."""
    denoiser, x = gaussian(sde), gaussian_states(sde, t_end)
    exact = gaussian_flow(sde, x, t_end, sde.t_max)
    up = sampler.invert(denoiser, x, dtype=torch.float64)
    back = sampler(denoiser, x.shape, latent=up.x, dtype=torch.float64)
    assert up.nfe == back.nfe
    return [
        float((up.x - exact).square().mean().sqrt() / sde.sigma(sde.t_max)),
        float((back.x - x).square().mean().sqrt()),
    ]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=[pytest.mark.slow] if (i + j) % 2 else [])
        for i, name in enumerate(SIX)
        for j, method in enumerate(STEPS)
    ],
)
def test_up_and_back(name, method):
    """On the default grid both errors fall at the order of the method, or faster."""
    sde, (order, build) = SIX[name], STEPS[method]
    t_end = float(sde.time(4.0))
    few, many = (errors(build(n, denoise=False, t_end=t_end), sde, t_end) for n in (64, 128))
    for coarse, fine in zip(few, many, strict=True):
        assert fine < 1e-9 or slopes([coarse, fine])[0] > order - 0.35, (few, many)
    assert max(many) < (0.2 if order == 1 else 0.01)


@pytest.mark.parametrize("name", SIX)
def test_few_steps_do_not_go_astray(name):
    """10 of any method on its defaults: latents are within one standard deviation of the exact ones.

    With DEIS' polynomials in r, as on the way down, those of order 4 on the cosine path were 3e5 off.
    """
    sde = SIX[name]
    more = {"deis 4": (4, DEISSampler), "dpm 3": (3, lambda n, **o: DPMSolver(n, 3, **o))}
    for method, (_, build) in {**STEPS, **more}.items():
        assert errors(build(10, denoise=False), sde, sde.t_min)[0] < 1, method


@pytest.mark.parametrize("method", TO_TOLERANCE)
def test_up_and_back_to_a_tolerance(method):
    for name in ("subvp", "ve", "rectified"):
        sde = SIX[name]
        sampler = TO_TOLERANCE[method](1e-7, denoise=False)
        denoiser, x = gaussian(sde), gaussian_states(sde, sde.t_min)
        up = sampler.invert(denoiser, x, dtype=torch.float64).x
        exact = gaussian_flow(sde, x, sde.t_min, sde.t_max)
        assert (up - exact).abs().max() < 1e-4 * float(sde.sigma(sde.t_max))
        assert (sampler(denoiser, x.shape, latent=up, dtype=torch.float64).x - x).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", [DPMSolver(200), UniPC(200), DEISSampler(200), HeunSampler(100), ODESampler()])
def test_data_come_back_by_the_defaults(sampler):
    """In float32, with the samplers' own denoising: of a mixture."""
    denoiser = mixture(SIX["vp"])
    x = denoiser.sample(64, torch.Generator().manual_seed(0)).float()
    latent = sampler.invert(denoiser, x)
    back = sampler(denoiser, x.shape, latent=latent.x)
    assert latent.nfe < back.nfe + 60  # an adaptive method need not take the same steps
    assert (back.x - x).square().mean().sqrt() < 0.01


def test_the_passes_of_the_way_up():
    """With denoise one less than of the way down; from t_end to t_max; stopped by a callback at the state there."""
    for name, (_, build) in STEPS.items():
        denoiser = Recording(mixture(SIX["vp"]))
        sampler, x = build(9), torch.ones(2, 2, dtype=torch.float64)
        up = sampler.invert(denoiser, x, dtype=torch.float64, label=3)
        assert denoiser.times[0] == min(denoiser.times) == SIX["vp"].t_min, name
        assert {condition["label"] for *_, condition in denoiser.calls} == {3}
        down = sampler(denoiser, x.shape, dtype=torch.float64)
        assert up.nfe == down.nfe - 1, name
        denoiser.calls.clear()
        stopped = sampler.invert(denoiser, x, lambda step, t, x, x0: step == 2, dtype=torch.float64)
        assert stopped.nfe == 3
        assert torch.equal(stopped.x, denoiser.calls[2][0]), name


def test_what_is_refused():
    class Own(Sampler):
        def walk(self, x, run):
            return x

    denoiser, x = mixture(SIX["vp"]), torch.zeros(2, 2)
    for sampler, message in (
        (DPMSolver(5, eta=1.0), r"eta = 0\) can be inverted; got eta=1"),
        (SDESampler(steps=5), r"eta = 0\) can be inverted; got eta=1"),
        (HeunSampler(5, churn=1.0), r"churn = 0\) can be inverted; got churn=1"),
        (PredictorCorrector(), "corrector=none.*got predictor=reverse_diffusion, corrector=leimkuhler_matthews"),
        (AnnealedLangevin(), "AnnealedLangevin cannot be inverted"),
        (Own(), "Own cannot be inverted"),
        (DEISSampler(1), "at least 2"),
        (HeunSampler(1), "at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.invert(denoiser, x)


def test_a_reference_that_is_not_gaussian():
    """The way up of UniPC from where the flow of a mixture ends leads to where it began."""
    sde = SIX["vp"]
    t_end = float(sde.time(4.0))
    denoiser, x, exact = mixture_case(sde, t_end)
    sampler = UniPC(200, denoise=False, t_end=t_end)
    assert error(sampler, denoiser, x, exact) < 1e-4
    up = sampler.invert(denoiser, exact, dtype=torch.float64).x
    assert (up - x).abs().max() < 1e-2
