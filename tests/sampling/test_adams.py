"""adams() against equations with closed-form solutions: its error, its order, its passes, and when it gives up."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.sampling.adams import adams
from sde_diffusion.sampling.ode_kinds import worst_rms
from sde_diffusion.sampling.ode_methods import ODESolver
from sde_diffusion.sde import VPSDE

START = torch.tensor([[0.05, 0.3], [0.6, 0.95]], dtype=torch.float64)


class Logistic:
    """dy/du = 8 y (1 - y), solved by y = 1 / (1 + (1/y_0 - 1) e^(-8 u))."""

    def slope(self, u: float, y: Tensor) -> Tensor:
        return 8 * y * (1 - y)

    def exact(self, y: Tensor, u: float) -> Tensor:
        return 1 / (1 + (1 / y - 1) * math.exp(-8 * u))


class Rotation:
    """Each pair turns by the angle 5 sin(2 u) + 9 u: a linear equation with coefficients that change."""

    def slope(self, u: float, y: Tensor) -> Tensor:
        return (10 * math.cos(2 * u) + 9) * torch.stack([-y[:, 1], y[:, 0]], 1)

    def exact(self, y: Tensor, u: float) -> Tensor:
        angle = 5 * math.sin(2 * u) + 9 * u
        turn = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        return y @ torch.tensor(turn, dtype=torch.float64)


class Called:
    """A slope that keeps the places and states where it was asked for."""

    def __init__(self, slope) -> None:
        self.slope = slope
        self.places: list[float] = []
        self.states: list[Tensor] = []

    def __call__(self, u: float, y: Tensor) -> Tensor:
        self.places.append(u)
        self.states.append(y)
        return self.slope(u, y)


def solve(problem, tolerance: float, order: int = 4, start: float = 0.0, end: float = 1.0) -> tuple[float, Called]:
    """The largest error at the end, from the solution's own value at the start."""
    called = Called(problem.slope)
    y = adams(called, problem.exact(START, start), start, end, tolerance, tolerance, worst_rms, order)
    return (y - problem.exact(START, end)).abs().max().item(), called


@pytest.mark.parametrize(
    ("problem", "start", "end", "most"),
    [
        (Logistic(), 0.0, 1.0, 20),
        (Logistic(), 1.0, 0.0, 3000),
        (Rotation(), 0.0, 1.0, 200),
        (Rotation(), 1.0, 0.0, 250),
    ],
    ids=["logistic", "logistic back", "rotation", "rotation back"],
)
def test_the_error_follows_the_tolerance(problem, start, end, most):
    """At most a multiple of the tolerance, the errors of all steps adding up, over seven decades. The logistic equation
    walked back is unstable: errors near 1 grow by up to e^8 = 3000.
    """
    tolerances = [10.0**-k for k in range(4, 12)]
    errors = [solve(problem, tolerance, start=start, end=end)[0] for tolerance in tolerances]
    for tolerance, error in zip(tolerances, errors, strict=True):
        assert error < most * tolerance, tolerance
    # Where the steps are short for accuracy's sake, not for stability's.
    rate = math.log(errors[3] / errors[-1]) / math.log(tolerances[3] / tolerances[-1])
    assert 0.85 < rate < 1.1
    for coarse, fine in pairwise(errors[3:]):
        assert fine < 0.2 * coarse


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_passes_are_those_of_the_order(order):
    """A step's error is of order k + 1, so tolerances r times smaller take r^(1 / (k + 1)) times the steps."""
    coarse, ratio = (1e-4, 1e2) if order == 1 else (1e-7, 1e3)
    few, many = (len(solve(Rotation(), tolerance, order)[1].places) for tolerance in (coarse, coarse / ratio))
    assert math.log(many / few) / math.log(ratio) == pytest.approx(1 / (order + 1), rel=0.1)


@pytest.mark.parametrize("order", [1, 2, 4, 7])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-0.3, 0.9), (1.1, -0.7)])
def test_never_beyond_the_ends_and_one_pass_a_step(start, end, order):
    """Places go one way, begin and end on the ends themselves; where one goes back a step was refused, and its place
    is tried again nearer.
    """
    error, called = solve(Rotation(), 1e-4 if order == 1 else 1e-6, order, start, end)
    assert error < 0.1
    assert called.places[0] == start
    assert called.places[-1] == end
    assert min(start, end) == min(called.places)
    assert max(start, end) == max(called.places)
    sign = 1 if end > start else -1
    back = sum(sign * (b - a) <= 0 for a, b in pairwise(called.places))
    assert back <= 0.1 * len(called.places)


@pytest.mark.parametrize("order", [2, 3, 4, 6])
def test_polynomial_slopes_are_integrated_to_rounding(order):
    """A slope that is a polynomial in u of degree k - 1 is no longer off once k points are known: what the first steps,
    of lower orders, are off by stays what it is.
    """
    coefficients = [(-1.0) ** j * (j + 1) for j in range(order)]

    def integral(u: float) -> float:
        return sum(c * u ** (j + 1) / (j + 1) for j, c in enumerate(coefficients))

    called = Called(lambda u, y: torch.full_like(y, sum(c * u**j for j, c in enumerate(coefficients))))
    y = adams(called, torch.zeros(1, 1).double(), 0.0, 2.0, 1e-4, 1e-4, worst_rms, order)
    known = [float(y) - integral(u) for u, y in zip(called.places, called.states, strict=True)]
    off = known[order + 1]
    assert len(known) > order + 2
    assert known[order + 1 :] == pytest.approx([off] * len(known[order + 1 :]), abs=1e-13)
    assert float(y) - integral(2.0) == pytest.approx(off, abs=1e-13)
    assert abs(off) < 1e-4


def test_trapezia_are_exact_for_lines_from_the_first_step():
    y = adams(lambda u, y: torch.full_like(y, 3 * u - 1), torch.ones(1, 1).double(), 0.0, 2.0, 1e-3, 1e-3, worst_rms, 1)
    assert float(y) == pytest.approx(1 + 6 - 2, abs=1e-13)


def test_the_norm_decides():
    """Errors that the norm leaves out are not controlled: with a norm of the first column, the second may be wild."""
    rates = torch.tensor([1.0, 40.0], dtype=torch.float64)

    def passes(norm) -> int:
        called = Called(lambda u, y: torch.cos(rates * 5 * u).expand_as(y))
        assert adams(called, START, 0.0, 1.0, 1e-8, 1e-8, norm, 4) is not None
        return len(called.places)

    assert passes(worst_rms) > 5 * passes(lambda error: error[:, 0].abs().max())


@pytest.mark.parametrize(
    ("slope", "rtol"),
    [
        (lambda u, y: y * (math.inf if u > 0.4 else 1.0), 1e-5),
        (lambda u, y: y * (math.nan if u > 0.4 else 1.0), 1e-5),
        (lambda u, y: y * (math.nan if u == 1.0 else 1.0), 1e-5),
        (lambda u, y: y * math.inf, 1e-5),
        (lambda u, y: y * math.nan, 1e-5),
        (lambda u, y: y * 1e305, 1e-5),
        (lambda u, y: 3 * y.square(), 1e-6),  # infinite at u = 1 / (3 y_0)
        (lambda u, y: torch.full_like(y, math.copysign(1.0, u - 0.5)), 1e-12),
        (lambda u, y: torch.cos(30 * u + y), 1e-19),
    ],
    ids=["inf", "nan", "nan at the end", "inf at once", "nan at once", "huge", "blow-up", "jump", "below rounding"],
)
def test_gives_up(slope, rtol):
    """None, after a moderate number of passes, never a place that is no number."""
    called = Called(slope)
    assert adams(called, START, 0.0, 1.0, rtol, rtol, worst_rms, 4) is None
    assert len(called.places) < 2000
    assert all(0 <= u <= 1 for u in called.places)


def test_gradients_through_the_solution():
    """d y(1) / d y_0 = e^rate (y / y_0)^2 of the logistic equation, and d y(1) / d rate = y (1 - y)."""
    y = START.clone().requires_grad_()
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    out = adams(lambda u, y: rate * y * (1 - y), y, 0.0, 1.0, 1e-10, 1e-10, worst_rms, 4)
    by_start, by_rate = torch.autograd.grad(out.sum(), (y, rate))
    exact = 1 / (1 + (1 / START - 1) * math.exp(-2))
    assert torch.allclose(by_start, math.exp(-2) * (exact / START).square(), rtol=1e-7)
    assert float(by_rate) == pytest.approx(float((exact * (1 - exact)).sum()), rel=1e-7)


def test_states_of_other_types_and_shapes():
    """float32 stays float32; the start is not written to."""
    y = START.float().reshape(2, 1, 2)
    kept = y.clone()
    out = adams(lambda u, y: 8 * y * (1 - y), y, 0.0, 1.0, 1e-4, 1e-4, worst_rms, 4)
    assert out.dtype == torch.float32
    assert torch.equal(y, kept)
    assert torch.allclose(out.double(), Logistic().exact(START, 1.0).reshape(2, 1, 2), atol=1e-3)


def test_no_trembling_where_stability_keeps_the_steps_short():
    """dy/du = 300 (cos u - y): the states asked for would jump from side to side of the equilibrium, fourteen
    tolerances off. They are a hundred times nearer, in as many passes.
    """
    called = Called(lambda u, y: 300 * (math.cos(u) - y))
    assert adams(called, START, 0.0, 1.0, 1e-4, 1e-4, worst_rms, 4) is not None
    late = [
        (y - (300**2 * math.cos(u) + 300 * math.sin(u)) / (300**2 + 1)).abs().max().item()
        for u, y in zip(called.places, called.states, strict=True)
        if u > 0.5
    ]
    assert max(late) < 0.5e-4
    assert 1700 < len(called.places) < 2100


class Rough:
    """dy/du = -2 y + 0.03 cos(16000 u + phase): y = C e^(-2u) + 0.03 (2 cos + 16000 sin)(16000 u + phase) / 16000^2.

    Given as a flow, as `ODESolver` wants it.
    """

    sde, t_end = VPSDE(), 0.0
    phase = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)

    def __init__(self, fast: float = 16_000.0) -> None:
        self.fast, self.nfe = fast, 0

    def time(self, u):
        return torch.tensor(float(u), dtype=torch.float64), 1.0

    def passes(self, u):
        return 1

    def drift(self, u, y: Tensor) -> Tensor:
        self.nfe += 1
        return -2 * y + 0.03 * torch.cos(self.fast * float(u) + self.phase)

    def exact(self, y: Tensor) -> Tensor:
        return y * math.exp(-2.0)  # the rest is 2e-6


def test_a_slope_rough_in_time_is_solved_as_well_as_passes_allow():
    """Steps that follow each turn would be 30,000; the last tolerance is told, and bounds the error."""
    flow = Rough()
    found = ODESolver("adams", 1e-6, 1e-6).solution(flow, START, 0.0, 1.0)
    assert flow.nfe < 2500
    assert found.rtol > 1e-6
    said, true = (found.state - found.coarser).abs().max(), (found.state - flow.exact(START)).abs().max()
    assert true < 1e-3
    assert true < 3 * said
    with pytest.warns(UserWarning, match=r"rough in time.*in place of 1e-06"):
        state = ODESolver("adams", 1e-6, 1e-6)(flow, START, 0.0, 1.0)
    assert torch.equal(state, found.state)


def test_a_smooth_slope_is_solved_to_the_tolerance():
    flow = Rough(fast=20.0)
    found = ODESolver("adams", 1e-8, 1e-8).solution(flow, START, 0.0, 1.0)
    assert (found.coarser, found.rtol) == (None, 1e-8)


def test_what_is_wanted_on_the_way_is_handed_over_once():
    """By the walk that counts, not by those that were given up."""
    met: list[float] = []
    places = [0.0, 0.25, 0.5, 1.0]
    with pytest.warns(UserWarning, match="rough in time"):
        ODESolver("adams", 1e-6, 1e-6)(Rough(), START, 0.0, 1.0, places=places, keep=lambda u, y: met.append(u))
    assert met == places


def test_a_walk_that_gets_nowhere_says_what_to_type():
    with pytest.raises(UserError, match=r"rtol=0\.0001 atol=0\.0001, method=dopri5, or max_nfe=40"):
        ODESolver("adams", 1e-6, 1e-6, max_nfe=10)(Rough(fast=20.0), START, 0.0, 1.0)
