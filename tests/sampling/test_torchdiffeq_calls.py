"""What ODESampler asks of the denoiser and reports to its caller: passes, times, memory, failures, refusals."""

import math
import re
import warnings

import pytest
import torch
from sampling_cases import SIX, Recording, gaussian, mixture

from sde_diffusion.config import build
from sde_diffusion.denoiser import Denoiser, Prediction
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Noise, NoiseToSignal, ODESampler, State, UnitVariance
from sde_diffusion.sampling.ode_methods import METHODS
from sde_diffusion.sde import QuadraticTime, UniformLogSNR, UniformTime

ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
PASSES = {"euler": 20, "midpoint": 40, "heun2": 40, "heun3": 60, "rk4": 80, "explicit_adams": 26}
"""Of 20 steps: Adams' first two take rk4's four."""


class Odd(Denoiser):
    """x0 = answer(x, t)."""

    def __init__(self, answer, sde=SIX["vp"]):
        super().__init__()
        self.answer = answer
        self.sde = sde

    def forward(self, x_t, t, **conditions):
        return Prediction(self.sde, x_t, t, self.answer(x_t, float(t)))


@pytest.mark.parametrize("method", PASSES)
def test_passes_of_fixed_steps(method):
    for denoise in (False, True):
        denoiser = Recording(mixture(SIX["vp"]))
        out = ODESampler(method, steps=20, denoise=denoise)(denoiser, (2, 2), dtype=torch.float64)
        # With denoise, euler's last prediction is one of the 20.
        assert out.nfe == len(denoiser.calls) == PASSES[method] + (denoise and method != "euler")
        assert len({(t, x.sum().item()) for x, t, _ in denoiser.calls}) == out.nfe  # no pass made twice


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vp", "edm", "rectified"])
def test_no_time_beyond_the_ends(name, method):
    """Of the state before the clock brings it back: places u from 1 to 0, and times from t_max to t_end."""
    sde = SIX[name]
    denoiser = Recording(gaussian(sde))
    t_end = 0.02 * sde.t_max
    for grid in (None, UniformLogSNR()):
        denoiser.calls.clear()
        sampler = ODESampler(method, rtol=1e-3, atol=1e-3, grid=grid, t_end=t_end)
        out = sampler(denoiser, (2, 3), dtype=torch.float64)
        assert out.nfe == len(denoiser.calls)
        assert max(denoiser.times) == denoiser.times[0] == sde.t_max
        assert min(denoiser.times) == denoiser.times[-1] == t_end


def test_times_near_the_end_keep_their_digits_in_float32():
    """torchdiffeq casts times to the state's type: u runs down to 0, where float32 is finest, not up to 1."""
    sde, steps = SIX["vp"], 300
    denoiser = Recording(gaussian(sde))
    ODESampler("euler", steps=steps, grid=QuadraticTime(), denoise=False)(denoiser, (2, 3))
    times = torch.tensor(denoiser.times, dtype=torch.float64)
    want = QuadraticTime().times(sde, steps + 1)[:-1]
    assert ((times - want).abs() / want).max() < 2e-6


def test_fixed_steps_do_not_keep_all_states(monkeypatch):
    """torchdiffeq makes room for the state at each time it is given: it is given two."""
    rooms = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kw: (rooms.append(math.prod(size)), empty(*size, **kw))[1])
    ODESampler("rk4", steps=100, denoise=False)(gaussian(SIX["vp"]), (5, 3), latent=torch.randn(5, 3))
    assert max(rooms) <= 2 * 15


@pytest.mark.parametrize("method", METHODS)
def test_types_and_images(method):
    """float32 follows float64; a state of several axes is a vector of as many numbers."""
    denoiser = gaussian(SIX["cosine"])
    options = {"rtol": 1e-4, "atol": 1e-4} if METHODS[method].adaptive else {"steps": 40}
    sampler = ODESampler(method, t_end=0.1, **options)
    low = sampler(denoiser, (4, 2, 5, 3), seeds=range(4), dtype=torch.float32).x
    latent = Noise(range(4), (2, 5, 3), dtype=torch.float32).normal(0).double() * float(SIX["cosine"].sigma(1.0))
    high = sampler(denoiser, (4, 2, 5, 3), latent=latent, dtype=torch.float64).x
    assert low.dtype == torch.float32
    assert (low - high).abs().max() < 1e-3
    flat = sampler(denoiser, (40, 3), latent=latent.reshape(40, 3), dtype=torch.float64).x
    assert (flat.reshape(4, 2, 5, 3) - high).abs().max() < (3e-2 if METHODS[method].adaptive else 1e-9)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.adaptive])
def test_a_sample_depends_on_its_seed_alone(method):
    """Implicit Adams' iterations stop for the whole batch: to within their tolerance."""
    sampler = ODESampler(method, steps=20, rtol=1e-9, atol=1e-9)
    denoiser = mixture(SIX["subvp"])
    seeds = [5, 6, 10**9, -3, 0]
    together = sampler(denoiser, (5, 2), seeds=seeds, dtype=torch.float64).x
    alone = torch.cat([sampler(denoiser, (1, 2), seeds=[seed], dtype=torch.float64).x for seed in seeds])
    assert (together - alone).abs().max() < (1e-7 if method == "implicit_adams" else 1e-11)


def first_sample_is_nan_below_half(x, t):
    return torch.cat([x[:1] * (math.nan if t < 0.5 else 0.5), 0.5 * x[1:]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (first_sample_is_nan_below_half, r"not finite for 1 of 3 samples \(indices 0\)"),
        (lambda x, t: x * math.nan, r"t = 1 is not finite for 3 of 3"),
        (lambda x, t: x * (math.inf if t < 0.3 else 0.5), "not finite for 3 of 3"),
    ],
    ids=["nan in one", "nan at once", "infinite"],
)
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:Functional iteration")
def test_numbers_that_are_none(method, answer, message):
    with pytest.raises(UserError, match=message):
        ODESampler(method)(Odd(answer), (3, 2))


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_tolerance_that_cannot_be_met(method):
    """An answer that jumps from pass to pass has no smooth flow: the end comes, and it says where and how."""
    generator = torch.Generator().manual_seed(1)
    noisy = Recording(Odd(lambda x, t: torch.randn(x.shape, generator=generator, dtype=x.dtype)))
    with pytest.raises(UserError, match=r"max_nfe = 400 .* t = 0\.\d+, between 1e-05 and 1, with steps of") as met:
        ODESampler(method, max_nfe=400, rtol=1e-7, atol=1e-7)(noisy, (3, 2))
    assert len(noisy.calls) == 400
    words = str(met.value).split()
    assert 0 < float(words[words.index("about") + 1].rstrip(".")) < 0.1


@pytest.mark.parametrize("method", ["dopri5", "scipy_solver"])
def test_steps_that_vanish(method):
    """Where the flow leaves in finite time steps shrink to nothing, and the libraries' own words for it are:
    'underflow in dt', and no end of the solution. Without max_nfe in the way, it is still a message.
    """
    explosive = Odd(lambda x, t: 1e3 * x**3)
    with pytest.raises(UserError, match=r"cannot meet its tolerance: it is at t = 0\.99\d+, between"):
        ODESampler(method, max_nfe=10**6)(explosive, (3, 2), dtype=torch.float64)


def test_a_jump_is_no_obstacle():
    """Nor are a finite number of discontinuities, which take small steps and are passed."""
    out = ODESampler(rtol=1e-4, atol=1e-4, denoise=False)(Odd(lambda x, t: (x > 0.1).to(x) - 0.5), (4, 2))
    assert out.nfe < 2000


def test_corrections_that_do_not_settle_are_reported_once():
    """In our words: which method, in how many steps, of what tolerance; not torchdiffeq's line for each step."""
    x = torch.ones(2, 3, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for steps, tolerance in ((20, 1e-9), (200, 1e-5)):
            sampler = ODESampler("implicit_adams", rtol=tolerance, atol=tolerance, steps=steps)
            sampler(gaussian(SIX["ve"]), (2, 3), latent=x, dtype=torch.float64)
    (told,) = (str(warning.message) for warning in caught)
    assert re.match(r"implicit_adams: in \d+ of 20 steps the corrections did not settle to within rtol=1e-09", told)


def test_other_warnings_pass():
    denoiser = Odd(lambda x, t: warnings.warn("of the network", stacklevel=1) or 0.5 * x)
    with pytest.warns(UserWarning, match="of the network"):
        ODESampler("implicit_adams", steps=10)(denoiser, (2, 3))


@pytest.mark.parametrize(
    ("settings", "coordinate"),
    [
        ({"_target_": "sde_diffusion.sampling.State"}, State()),
        ({"_target_": "sde_diffusion.sampling.NoiseToSignal"}, NoiseToSignal()),
        ({"_target_": "sde_diffusion.sampling.UnitVariance", "sigma_data": 0.3}, UnitVariance(0.3)),
    ],
)
def test_coordinates_are_configurable(settings, coordinate):
    for name in ("ODESampler", "SDESampler"):
        sampler = build({"_target_": f"sde_diffusion.sampling.{name}", "coordinate": settings})
        assert sampler.coordinate == coordinate


def test_what_is_refused():
    for options, message in (
        ({"method": "rk5"}, "dopri5, dopri8, bosh3, fehlberg2, adaptive_heun, scipy_solver, euler, midpoint"),
        ({"method": "dopri5", "steps": 20}, r"chooses its own steps .* euler, midpoint, heun2, heun3, rk4"),
        ({"method": "rk4", "steps": 0}, "at least 1"),
        ({"method": "euler", "steps": 1}, "at least 2"),
        ({"max_nfe": 0}, "at least 1"),
        (
            {"method": "rk4", "options": {"order": 4}},
            "of rk4 are: step_size=.*, interp=.*, perturb=.*; got order=4",
        ),
        ({"method": "explicit_adams", "options": {"order": 2}}, "order=an integer from 3 to 11"),
        ({"method": "implicit_adams", "options": {"order": 13}}, "order=an integer from 4 to 12"),
        ({"method": "implicit_adams", "options": {"iterations": 4}}, "order=an integer from 4 to 12.*got iterations=4"),
        ({"method": "adams", "options": {"order": 7}}, "order=an integer from 1 to 6"),
        ({"method": "adams", "options": {"order": 0}}, "order=an integer from 1 to 6"),
        ({"method": "scipy_solver", "options": {"solver": "BDF"}}, "solver=one of RK23, RK45, DOP853"),
        ({"method": "dopri5", "options": {"norm": 1}}, "min_step=.*, max_num_steps=.*; got norm=1"),
        ({"method": "dopri5", "options": {"step_size": 0.1}}, "got step_size=0.1"),
        ({"method": "dopri5", "options": {"first_step": 0}}, "first_step=a positive number, .*; got first_step=0"),
        ({"method": "dopri8", "options": {"safety": 1.5}}, "safety=a number above 0 and up to 1"),
        ({"method": "bosh3", "options": {"jump_t": [0.5, 2.0]}}, "jump_t=a list of different places between 0 and 1"),
        ({"method": "rk4", "options": {"interp": "quintic"}}, "interp=one of linear, cubic"),
        ({"method": "rk4", "options": {"perturb": "yes"}}, "perturb=true or false"),
        ({"method": "rk4", "steps": 4, "options": {"step_size": 0.1}}, "not both"),
        ({"method": "explicit_adams", "options": {"order": 4, "max_order": 5}}, "not both"),
        ({"method": "scipy_solver", "options": {"min_step": 0.1}}, "got min_step=0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            ODESampler(**options)


def test_every_method_of_torchdiffeq_is_on_offer():
    from torchdiffeq._impl.odeint import SOLVERS

    assert set(METHODS) == {"adams", *SOLVERS}


REFUSED = {
    "norm": "the worst sample's is taken",
    "dtype": "times are float64",
    "grid_constructor": "the grid is it",
    "implicit": "by the method's name",
    "rtol": "an argument",
    "atol": "an argument",
    "min_step": "SciPy's explicit methods have none",
}


def test_every_option_of_torchdiffeq_is_taken_or_refused_for_a_reason():
    """By the arguments of its solvers' constructors, bases included."""
    import inspect

    from torchdiffeq._impl.odeint import SOLVERS

    for name, solver in SOLVERS.items():
        theirs = {
            parameter.name
            for base in solver.__mro__[:-1]
            if "__init__" in vars(base)
            for parameter in inspect.signature(base.__init__).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        } - {"self", "func", "y0"}
        left = theirs - set(METHODS[name].takes)
        assert left <= set(REFUSED), name
        assert set(METHODS[name].takes) - theirs <= {"order"}, name
        assert name == "scipy_solver" or "min_step" not in left


@pytest.mark.slow
def test_options_reach_torchdiffeq():
    """Each does what its name says, in shares of the walk, downwards and upwards."""
    denoiser = Recording(gaussian(SIX["vp"]))
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def times(method="dopri5", up=False, **options):
        denoiser.calls.clear()
        sampler = ODESampler(method, 1e-4, 1e-4, options=options, denoise=False, grid=UniformTime(), t_end=0.01)
        sampler.invert(denoiser, x, dtype=torch.float64) if up else sampler(
            denoiser, x.shape, latent=x, dtype=torch.float64
        )
        return denoiser.times

    for up in (False, True):
        start = 0.01 if up else 1.0
        usual = len(times(up=up))
        assert len(times(up=up, max_step=0.01)) > 590  # six passes for each hundredth
        first = times(up=up, first_step=0.002)
        assert max(abs(t - start) for t in first[:7]) == pytest.approx(0.002 * 0.99)
        assert len(times(up=up, safety=0.5)) != usual
        assert len(times(up=up, ifactor=1.05, first_step=0.001)) > 2 * usual
        assert len(times(up=up, dfactor=0.01, first_step=0.5)) != len(times(up=up, dfactor=0.9, first_step=0.5))
        at = 0.01 + 0.99 * 0.37
        assert not any(abs(t - at) < 1e-9 for t in times(up=up))
        assert any(abs(t - at) < 1e-9 for t in times(up=up, step_t=[0.37]))
        assert sum(abs(t - at) < 1e-6 for t in times(up=up, jump_t=[0.37])) > sum(
            abs(t - at) < 1e-6 for t in times(up=up, step_t=[0.37])
        )
        assert len(times("rk4", up=up, step_size=0.3)) == 16  # three of 0.3, one of 0.1
        assert len(times("rk4", up=up, interp="cubic")) == 201  # the slope at the end
        nudged = times("euler", up=up, perturb=True, step_size=0.25)
        assert nudged == pytest.approx(times("euler", up=up, step_size=0.25))
        assert len(times("implicit_adams", up=up, max_iters=1)) < len(times("implicit_adams", up=up, max_iters=6))
        assert len(times("explicit_adams", up=up, max_order=6)) == len(times("explicit_adams", up=up, order=5))
        assert len(times("scipy_solver", up=up, max_step=0.01)) > 590
    with pytest.raises(UserError, match="after max_num_steps = 3 steps it is at t = 0"):
        times(max_num_steps=3)
    assert len(times(min_step=0.5)) < 0.5 * usual  # taken whatever their error
