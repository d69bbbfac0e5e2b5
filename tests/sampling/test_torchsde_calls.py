"""What SDESampler asks of the denoiser and reports to its caller: passes, randomness, seeds, failures, refusals."""

import functools
import math

import pytest
import torch
from sampling_cases import SIX, Recording, gaussian, mixture

from sde_diffusion.denoiser import Denoiser, Prediction
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Noise, NoiseToSignal, SDESampler
from sde_diffusion.sampling.sde_methods import METHODS
from sde_diffusion.sde import EDMSDE, UniformTime

PASSES = {
    "euler": 20,
    "milstein": 20,
    "euler_heun": 20,
    "srk": 40,
    "heun": 40,
    "midpoint": 40,
    "log_ode": 40,
    "reversible_heun": 21,
}
"""Of 20 steps."""


class Odd(Denoiser):
    """x0 = answer(x, t)."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.sde = SIX["vp"]

    def forward(self, x_t, t, **conditions):
        return Prediction(self.sde, x_t, t, self.answer(x_t, float(t)))


def different(denoiser):
    """How many of the passes were asked for once."""
    return len({(t, x.sum().item()) for x, t, _ in denoiser.calls})


@pytest.mark.parametrize("one_path", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_passes(method, one_path):
    for denoise in (False, True):
        denoiser = Recording(mixture(SIX["vp"]))
        sampler = SDESampler(method, steps=20, denoise=denoise, one_path=one_path, t_end=0.01)
        out = sampler(denoiser, (2, 2), dtype=torch.float64)
        # With denoise, the last prediction of these is one of the 20.
        single = method in ("euler", "milstein", "euler_heun")
        assert out.nfe == len(denoiser.calls) == PASSES[method] + (denoise and not single)
        assert different(denoiser) == out.nfe  # torchsde's trial call costs nothing, srk's repeated drifts neither
        assert denoiser.times[0] == max(denoiser.times) == 1.0
        assert min(denoiser.times) >= 0.01
        assert not denoise or denoiser.times[-1] == 0.01


@pytest.mark.parametrize("method", METHODS)
def test_adaptive_passes(method):
    denoiser = Recording(gaussian(SIX["vp"]))
    out = SDESampler(method, steps=5, adaptive=True, rtol=0.2, atol=0.2, t_end=0.3)(denoiser, (3, 3))
    assert out.nfe == len(denoiser.calls) == different(denoiser)
    assert min(denoiser.times) == denoiser.times[-1] == 0.3


@pytest.mark.parametrize("options", [{}, {"adaptive": True, "rtol": 0.5, "atol": 0.5}], ids=["steps", "adaptive"])
@pytest.mark.parametrize("method", METHODS)
def test_torch_keeps_its_random_state(method, options):
    """torchsde tries g_prod out on random numbers; a training run around the sampler must not notice."""
    torch.manual_seed(3)
    want = torch.randn(4)
    torch.manual_seed(3)
    SDESampler(method, steps=3, t_end=0.3, **options)(gaussian(SIX["vp"]), (2, 3))
    assert torch.equal(torch.randn(4), want)


@pytest.mark.parametrize("one_path", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_sample_depends_on_its_seed_alone(method, one_path):
    sampler = SDESampler(method, steps=6, one_path=one_path, t_end=0.05)
    denoiser = mixture(SIX["subvp"])
    seeds = [5, 10**9, -3]
    together = sampler(denoiser, (3, 2), seeds=seeds, dtype=torch.float64).x
    alone = torch.cat([sampler(denoiser, (1, 2), seeds=[seed], dtype=torch.float64).x for seed in seeds])
    assert (together - alone).abs().max() < 1e-9 * together.abs().max()
    assert together.unique(dim=0).shape == together.shape


def test_one_path_keeps_the_sample_while_steps_and_methods_change():
    """By default each number of steps has a noise of its own; one_path makes more steps of the same sample."""
    denoiser = gaussian(SIX["edm"])

    @functools.cache
    def draw(one_path, method="heun", steps=64):
        sampler = SDESampler(method, steps, one_path=one_path, denoise=False, t_end=0.5)
        return sampler(denoiser, (50, 3), dtype=torch.float64).x

    for other in ({"steps": 128}, {"steps": 100}, {"method": "srk"}):
        near = (draw(True, **other) - draw(True)).square().mean().sqrt()
        assert near < 0.15
        if "steps" in other:
            assert (draw(False, **other) - draw(False)).square().mean().sqrt() > 0.5


def test_draws_are_not_the_latent_s():
    """The walk's first increment, x_1 by x_0 and the drift, is draw 1 and independent of draw 0."""
    sde = EDMSDE()
    denoiser = gaussian(sde)
    seeds = range(20000)
    x = sde.sigma_max * Noise(seeds, (3,), dtype=torch.float64).normal(0)
    moved = SDESampler(steps=1, denoise=False, grid=UniformTime(), t_end=79.0)(
        denoiser, x.shape, seeds=seeds, dtype=torch.float64
    ).x
    drift = 2 * 80.0 * denoiser(x, 80.0).score
    fresh = (moved - x - drift) / math.sqrt(2 * 80.0)
    # A correlation of 60,000 pairs: standard error 0.004, false alarms 6e-7.
    assert abs(torch.corrcoef(torch.stack([fresh.flatten(), x.flatten()]))[0, 1]) < 0.02
    assert abs(fresh.var() - 1) < 0.03


@pytest.mark.parametrize("method", METHODS)
def test_types_and_images(method):
    """float32 follows float64; a state of several axes is a vector of as many numbers, in either coordinate."""
    denoiser = gaussian(SIX["subvp"])
    latent = torch.randn(4, 2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for coordinate in (None, NoiseToSignal()):
        sampler = SDESampler(method, steps=40, t_end=0.4, coordinate=coordinate)
        low, high = (
            sampler(denoiser, latent.shape, latent=latent, dtype=dtype).x for dtype in (torch.float32, torch.float64)
        )
        assert low.dtype == torch.float32
        assert (low - high).abs().max() < 2e-3 * high.abs().max()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_are_none(method, adaptive):
    sampler = SDESampler(method, steps=8, adaptive=adaptive, rtol=0.5, atol=0.5)

    def first_sample_is_nan_below_half(x, t):
        return torch.cat([x[:1] * (math.nan if t < 0.5 else 0.5), 0.5 * x[1:]])

    for answer, message in (
        (first_sample_is_nan_below_half, r"t = 0\.\d+ is not finite for 1 of 3 samples \(indices 0\)"),
        (lambda x, t: x * math.nan, "t = 1 is not finite for 3 of 3"),
        (lambda x, t: x * math.inf, "t = 1 is not finite for 3 of 3"),
    ):
        with pytest.raises(UserError, match=message):
            sampler(Odd(answer), (3, 2))


@pytest.mark.parametrize("method", [m if m == "srk" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_a_tolerance_that_cannot_be_met(method):
    sampler = SDESampler(method, adaptive=True, rtol=1e-6, atol=1e-6, max_nfe=200)
    denoiser = Recording(mixture(SIX["vp"]))
    with pytest.raises(UserError, match=r"max_nfe = 200 .* t = 0\.\d+, between 1e-05 and 1, with steps of") as met:
        sampler(denoiser, (3, 2))
    assert len(denoiser.calls) == 200
    words = str(met.value).split()
    assert 0 < float(words[words.index("about") + 1].rstrip(".")) < 0.01


@pytest.mark.parametrize("method", ["euler", "reversible_heun"])
def test_the_callback_may_stop_it(method):
    out = SDESampler(method, steps=10)(gaussian(SIX["vp"]), (2, 3), callback=lambda step, t, x, x0: step == 4)
    assert out.nfe == 5


def test_what_is_refused():
    for options, message in (
        ({"method": "srk3"}, "euler, milstein, srk, euler_heun, heun, midpoint, log_ode, reversible_heun"),
        ({"atol": -1.0}, "positive"),
        ({"method": "milstein", "steps": 1}, "at least 2"),
        ({"steps": 1.5}, "integer"),
        ({"max_nfe": 0}, "at least 1"),
        ({"method": "adjoint_reversible_heun"}, "method must be one of"),
        ({"options": {"grad_free": True}}, "the options of euler are: dt_min=.*; got grad_free=True"),
        ({"method": "milstein", "options": {"grad_free": 1}}, "grad_free=true or false; got grad_free=1"),
        ({"options": {"dt_min": -1}}, "dt_min=a number of at least 0"),
        ({"options": {"logqp": True}}, "got logqp=True"),
    ):
        with pytest.raises(ValueError, match=message):
            SDESampler(**options)
    assert SDESampler("heun", steps=1)(gaussian(SIX["vp"]), (2, 3)).nfe == 3


def test_every_method_of_torchsde_is_on_offer():
    """All that the library lists, but the one that only serves its adjoint's gradients."""
    from torchsde.settings import METHODS as THEIRS

    assert set(THEIRS.all()) - set(METHODS) == {"adjoint_reversible_heun"}
    assert set(METHODS) <= set(THEIRS.all())


@pytest.mark.slow
def test_the_options_of_torchsde():
    """All that it lists reach it: grad_free without effect (noise knows no state), dt_min holds the steps up."""
    from torchsde.settings import METHOD_OPTIONS

    assert METHOD_OPTIONS.all() == ["grad_free"]
    denoiser = gaussian(SIX["vp"])
    one, other = (SDESampler("milstein", 10, options={"grad_free": free})(denoiser, (2, 3)).x for free in (False, True))
    assert torch.equal(one, other)

    def passes(**options):
        sampler = SDESampler("heun", 10, adaptive=True, rtol=1e-3, atol=1e-3, t_end=0.1, **options)
        return sampler(denoiser, (2, 3), dtype=torch.float64).nfe

    with pytest.warns(UserWarning, match="minimum allowed step"):
        held = passes(options={"dt_min": 0.05})
    assert held < 0.5 * passes()
