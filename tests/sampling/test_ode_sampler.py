"""ODESampler against the closed-form probability flow of Gaussian data, its bookkeeping and its error control."""

import pytest
import torch
from sampling_cases import MEAN, SIX, STD, Recording, gaussian, gaussian_flow, latent, mixture

from sde_diffusion.denoiser import GaussianDenoiser, GaussianMixtureDenoiser
from sde_diffusion.sampling import ODESampler, ReverseProcess
from sde_diffusion.sampling.ode_kinds import Adaptive, ODEMethod
from sde_diffusion.sampling.ode_methods import METHODS
from sde_diffusion.sde import VESDE, KarrasRho, QuadraticTime, UniformLogSNR, UniformTime


def error(sde, tolerance, **options):
    """Largest error of the flow map over samples and coordinates, in units of the start's scale."""
    x = latent(sde, 8)
    sampler = ODESampler(rtol=tolerance, atol=tolerance, denoise=False, **options)
    end = sde.t_min if sampler.t_end is None else sampler.t_end
    out = sampler(gaussian(sde), x.shape, latent=x, dtype=torch.float64)
    return (out.x - gaussian_flow(sde, x, sde.t_max, end)).abs().max().item() / float(sde.sigma(sde.t_max)), out.nfe


@pytest.mark.parametrize("name", SIX)
def test_exact_flow_of_a_gaussian(name):
    coarse, few = error(SIX[name], 1e-5)
    fine, many = error(SIX[name], 1e-9)
    assert coarse < 6e-5
    assert fine < 1e-8
    assert few < many


def test_default_precision_on_every_path():
    """float32 and the default tolerances: what the commands use."""
    for name, sde in SIX.items():
        x = latent(sde, 16).float()
        out = ODESampler(denoise=False)(gaussian(sde), x.shape, latent=x)
        wrong = (out.x - gaussian_flow(sde, x.double(), sde.t_max, sde.t_min)).abs().max()
        assert out.x.dtype == torch.float32
        assert wrong / sde.sigma(sde.t_max) < 1e-4, name


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.adaptive])
def test_every_method(method):
    """Within some tens of tolerances, the errors of as many steps adding up."""
    assert error(SIX["rectified"], 1e-5, method=method)[0] < 3e-4


@pytest.mark.parametrize("grid", [UniformTime(), QuadraticTime(), UniformLogSNR(), KarrasRho(5.0)], ids=repr)
def test_every_time_change_and_t_end(grid):
    assert error(SIX["vp"], 1e-6, grid=grid, t_end=0.01)[0] < 1e-5
    assert error(SIX["ve"], 1e-6, grid=grid, t_end=0.3)[0] < 1e-5


@pytest.mark.parametrize("name", SIX)
def test_denoise_returns_the_belief_at_the_end(name):
    """x0 at t_end of Gaussian data is its regression on the state there."""
    sde = SIX[name]
    x = latent(sde, 8)
    t_end = 0.3 * sde.t_max
    alpha, sigma = float(sde.alpha(t_end)), float(sde.sigma(t_end))
    state = gaussian_flow(sde, x, sde.t_max, t_end)
    belief = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (state - alpha * MEAN)
    out = ODESampler(rtol=1e-6, atol=1e-6, t_end=t_end)(gaussian(sde), x.shape, latent=x, dtype=torch.float64)
    assert (out.x - belief).abs().max() < 1e-5 * float(sde.sigma(sde.t_max))


@pytest.mark.parametrize(("name", "denoise"), [("vp", True), ("ve", False), ("edm", True), ("rectified", False)])
def test_passes_are_counted_and_times_stay_inside(name, denoise, monkeypatch):
    places = []
    drift = ReverseProcess.drift
    monkeypatch.setattr(ReverseProcess, "drift", lambda self, u, y: (places.append(float(u)), drift(self, u, y))[1])
    sde = SIX[name]
    denoiser = Recording(mixture(sde))
    out = ODESampler(rtol=1e-4, atol=1e-4, denoise=denoise)(denoiser, (4, 2), dtype=torch.float64)
    assert out.nfe == len(denoiser.calls)
    assert len(places) == out.nfe - denoise
    assert min(places) >= 0  # asked for beyond the end, the process would clamp, and the times below would not show it
    assert max(places) <= 1
    assert min(denoiser.times) >= sde.t_min
    assert max(denoiser.times) == sde.t_max
    assert min(denoiser.times) == pytest.approx(sde.t_min, abs=1e-12)


def test_a_hard_sample_keeps_its_accuracy_among_easy_ones():
    """A sample that starts on the ridge between two narrow modes, alone and beside 511 that start far out."""
    sde = SIX["ve"]
    denoiser = GaussianMixtureDenoiser(sde, torch.tensor([[-1.0], [1.0]]), 0.02)
    hard = torch.tensor([[1e-3]], dtype=torch.float64)
    easy = torch.full((511, 1), 50.0, dtype=torch.float64)

    def solve(x, tolerance):
        return ODESampler(rtol=tolerance, atol=tolerance, denoise=False)(
            denoiser, x.shape, latent=x, dtype=torch.float64
        ).x[0, 0]

    exact = solve(hard, 1e-11)
    alone = abs(solve(hard, 1e-5) - exact)
    crowd = abs(solve(torch.cat([hard, easy]), 1e-5) - exact)
    assert crowd < 3 * alone + 1e-7


def test_point_masses_and_images():
    """Data of zero variance, and a state with more than one axis: the noise alone shrinks, whatever the path."""
    points = torch.linspace(-1, 1, 2 * 3 * 4, dtype=torch.float64).reshape(2, 3, 4)
    noise = latent(VESDE(sigma_min=0.1, sigma_max=1.0), 40).reshape(5, 2, 3, 4)
    for name in ("vp", "cosine", "rectified"):
        sde, t_end = SIX[name], 0.05
        x = sde.perturb(points, sde.t_max, noise)
        out = ODESampler(denoise=False, t_end=t_end, rtol=1e-7, atol=1e-7)(
            GaussianDenoiser(sde, points, 0.0), x.shape, latent=x, dtype=torch.float64
        )
        assert (out.x - sde.perturb(points, t_end, noise)).abs().max() < 1e-6, name


def test_what_is_refused():
    for options, message in (
        ({"method": "dopri6"}, "dopri5, dopri8"),
        ({"rtol": 0.0}, "positive"),
        ({"atol": -1.0}, "positive"),
        ({"rtol": float("nan")}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            ODESampler(**options)


class HeunsMethod(ODEMethod):
    """A method of one's own, in twenty steps."""

    adaptive = False

    def solve(self, solver, flow, y, ends, norm):
        h = (ends.end - ends.start) / 20
        for u in (ends.start + h * i for i in range(20)):
            slope = flow.drift(u, y)
            y = y + 0.5 * h * (slope + flow.drift(u + h, y + h * slope))
        return y


def test_a_method_may_be_an_instance():
    x, denoiser = latent(SIX["vp"], 8), gaussian(SIX["vp"])
    by_name = ODESampler("heun2", steps=20, denoise=False)(denoiser, x.shape, latent=x, dtype=torch.float64).x
    own = ODESampler(HeunsMethod(), denoise=False)(denoiser, x.shape, latent=x, dtype=torch.float64).x
    torch.testing.assert_close(own, by_name, rtol=1e-10, atol=1e-10)
    assert (
        ODESampler(Adaptive("bosh3"))(denoiser, x.shape, latent=x).nfe
        == ODESampler("bosh3")(denoiser, x.shape, latent=x).nfe
    )
