"""What the log-likelihood and the bound refuse, and what they say when a flow or a network breaks."""

import math
import warnings

import pytest
import torch
from density_cases import PATHS, gaussian

from sde_diffusion.denoiser import Denoiser, GaussianDenoiser, Prediction
from sde_diffusion.density import Hutchinson, LevelDecoder, elbo, log_likelihood
from sde_diffusion.errors import UserError
from sde_diffusion.sde import EDMSDE, VPSDE, BandLogSNR, BetaTable, RectifiedFlow, UniformTime

VP = gaussian(PATHS["vp"])
X = torch.zeros(4, 3)


class Broken(Denoiser):
    """Answers with numbers that are none for samples 1 and 3 where the time is in a range."""

    def __init__(self, value: float, low: float, high: float) -> None:
        super().__init__()
        self.inner, self.sde, self.value, self.low, self.high = VP, VP.sde, value, low, high

    def forward(self, x_t, t, **conditions):
        x0 = self.inner(x_t, t).x0
        wrong = torch.zeros(len(x_t), 1, dtype=torch.bool)
        wrong[1::2] = True
        inside = ((torch.as_tensor(t) >= self.low) & (torch.as_tensor(t) <= self.high)).reshape(-1, 1)
        return Prediction(self.sde, x_t, t, torch.where(wrong & inside, self.value * torch.ones_like(x0), x0))


@pytest.mark.parametrize("function", [log_likelihood, elbo])
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(3), {}, r"x must have shape \[B, \*dims\] with B >= 1; got \[3\]"),
        (torch.zeros(0, 3), {}, r"got \[0, 3\]"),
        (torch.tensor([[1.0, math.nan, 0.0]]), {}, "x is not finite for 1 of 1 samples"),
        (torch.tensor([[1.0, math.inf, 0.0]]), {}, "x is not finite for 1 of 1 samples"),
        (X, {"t_end": -0.1}, r"t_end must lie in \[0, t_max = 1\) of VPSDE.*; got -0.1"),
        (X, {"t_end": 1.0}, r"t_end must lie in \[0, t_max = 1\)"),
        (X, {"t_end": math.nan}, r"t_end must lie in \[0, t_max = 1\)"),
        (X, {"seeds": [1, 2]}, "one seed for each sample is needed: 4 samples, 2 seeds"),
        (X, {"prior": lambda x: x.sum()}, r"prior must return one log-density for each sample, \[4\]; got \[\]"),
        (X, {"prior": lambda x: x}, r"prior must return .* got \[4, 3\]"),
    ],
)
def test_both_refuse(function, x, options, message):
    with pytest.raises(ValueError, match=message):
        function(VP, x, **options)


@pytest.mark.parametrize("function", [log_likelihood, elbo])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_both_refuse_levels(function, dtype):
    with pytest.raises(TypeError, match=r"x holds \w+, and models take floats on \[-1, 1\]: .*from_levels"):
        function(VP, torch.ones(2, 3, dtype=dtype))
    with pytest.raises(TypeError, match="x must be a torch tensor; got"):
        function(VP, [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("function", [log_likelihood, elbo])
@pytest.mark.parametrize("top", [16, 255])
def test_both_warn_of_floats_on_another_scale(function, top):
    """Levels as floats, 0 ... 16 or 0 ... 255; not of data that the denoiser knows, nor of twice [-1, 1]."""
    levels = top * torch.linspace(0, 1, 12).reshape(4, 3)
    with pytest.warns(UserWarning, match=r"root mean square of .* \[-1, 1\]; scale images .* x / 127.5 - 1"):
        function(VP, levels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(VP, 2 * torch.ones(4, 3))
        function(GaussianDenoiser(PATHS["ve"], levels.mean(0), levels.std(0)), levels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "hutch"}, "trace must be one of hutchinson, gaussian, hutch\\+\\+, exact; got 'hutch'"),
        ({"probes": 0}, "probes must be an integer of at least 1; got 0"),
        ({"trace": "hutch++", "probes": 2}, "multiple of 3"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"atol": -1e-5}, "atol must be positive"),
        ({"rtol": math.nan}, "rtol must be positive"),
        ({"method": "dopri6"}, "method must be one of adams, dopri5"),
        ({"steps": 20}, "steps cannot be given with adams, which chooses its own steps"),
        ({"method": "rk4", "steps": 0}, "steps must be"),
        ({"max_nfe": 0}, "at least 1"),
        ({"options": {"order": 0}}, "options of adams are: order=an integer from 1 to 6"),
        ({"options": {"degree": 4}}, "options of adams are: order=an integer from 1 to 6"),
        ({"grid": BetaTable(8, 0.1, 0.6)}, "BetaTable"),
    ],
)
def test_the_flow_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(VP, X, **options)


def test_a_list_of_times_is_refused_by_the_flow_and_by_continuous_time():
    grid = BetaTable(8, 0.1, 0.6)
    denoiser = gaussian(VPSDE(t_max=float(grid.level_times(VPSDE())[-1])))
    with pytest.raises(ValueError, match="list of times"):
        log_likelihood(denoiser, X, grid=grid)
    with pytest.raises(ValueError, match="list of times: continuous time needs a continuous grid"):
        elbo(denoiser, X, None, grid=grid)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be .*at least 1, or None for continuous time; got 0"),
        ({"steps": -5}, "or None for continuous time; got -5"),
        ({"draws": 0}, "draws must be .*at least 1, and at most the number of steps; got 0"),
        ({"steps": 10, "draws": 11}, "draws must be .*at most the number of steps; got 11"),
        ({"steps": None, "draws": -1}, "draws must be"),
        ({"steps": None, "t_end": 1.0}, r"t_end must lie in \[0, t_max = 1\)"),
        ({"decoder": LevelDecoder(4)}, "x must lie on the 4 levels"),
    ],
)
def test_the_bound_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        elbo(VP, X, **options)


def test_ends_without_noise_or_signal():
    for steps in (10, None):
        with pytest.raises(ValueError, match=r"log-SNR is infinite at t = ?0 of EDMSDE"):
            elbo(gaussian(EDMSDE()), X, steps, t_end=0.0, grid=UniformTime())
    whole = gaussian(RectifiedFlow(t_max=1.0))
    with pytest.raises(ValueError, match=r"log-SNR is infinite at t = ?1 of RectifiedFlow.*steps=None"):
        elbo(whole, X, 10, grid=BandLogSNR())
    assert bool(torch.isfinite(elbo(whole, X, None, grid=BandLogSNR()).log_prob).all())
    with pytest.raises(ValueError, match="log-SNR is infinite at t=1"):
        elbo(whole, X, None)


@pytest.mark.parametrize("method", ["adams", "dopri5", "rk4"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("low", "high"), [(0.0, 2e-5), (0.3, 1.0)], ids=["at once", "later"])
def test_a_broken_flow_says_when_and_of_which_samples(method, value, low, high):
    with pytest.raises(UserError, match=r"is not finite for 2 of 4 samples \(indices 1, 3\)") as caught:
        log_likelihood(Broken(value, low, high), X, method=method)
    t = float(str(caught.value).split("t = ")[1].split(" ")[0])
    assert low <= t <= high


def test_many_lost_samples_are_counted_and_not_all_named():
    with pytest.raises(UserError, match=r"20 of 40 samples \(indices 1, 3, 5, 7, 9, 11, 13, 15, \.\.\.\)"):
        log_likelihood(Broken(math.nan, 0.0, 1.0), torch.zeros(40, 3))


def test_a_broken_network_in_the_bound():
    for steps in (50, None):
        with pytest.raises(UserError, match=r"output at t = \d.* is not finite for 2 of 4 samples \(indices 1, 3\)"):
            elbo(Broken(math.nan, 0.0, 1.0), X, steps)


def test_tolerances_that_cannot_be_met():
    with pytest.raises(UserError, match="after max_nfe = 12 network passes it is at t"):
        log_likelihood(VP, X + 0.3, max_nfe=12)
    jump = Broken(5.0, 0.3, 1.0)  # finite, but for half of the samples the flow jumps at t = 0.3
    with pytest.raises(UserError, match=r"cannot meet its tolerance: it is at t = 0\.(3|29999)"):
        log_likelihood(jump, X, 1e-12, 1e-12)


def test_an_instance_as_trace():
    x = X + 0.2
    named, given = log_likelihood(VP, x, trace="hutchinson", probes=3), log_likelihood(VP, x, trace=Hutchinson(3))
    assert torch.equal(named.log_prob, given.log_prob)
    assert torch.equal(named.std_error, given.std_error)
