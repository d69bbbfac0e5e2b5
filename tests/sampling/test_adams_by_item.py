"""adams_by_item against closed-form solutions: each item has its own error and passes, whatever the others need."""

import math
from copy import copy

import pytest
import torch
from torch import Tensor

from sde_diffusion.sampling.adams import RoughError, adams
from sde_diffusion.sampling.adams_by_item import adams_by_item
from sde_diffusion.sampling.ode_kinds import worst_rms

START = torch.tensor([[0.05, 0.3], [0.6, 0.95], [0.2, 0.4], [0.5, 0.1]], dtype=torch.float64)
RATES = torch.tensor([2.0, 60.0, 8.0, 0.5], dtype=torch.float64)


class Turning:
    """Each item turns by the angle rate sin(u): dy/du = rate cos(u) (-y_2, y_1); counts the passes of each."""

    def __init__(self, rates: Tensor = RATES, rows: int = 4) -> None:
        self.rates, self.items, self.rows = rates, torch.arange(len(rates)), rows
        self.counts = torch.zeros(len(rates), dtype=torch.int64)
        self.sizes_seen: list[int] = []

    def part(self, items: Tensor):
        part = copy(self)
        part.rates, part.items = self.rates[items], self.items[items]
        return part

    def sizes(self, error: Tensor) -> Tensor:
        return error.square().mean(1).sqrt()

    def drift(self, u, y: Tensor) -> Tensor:
        assert len(y) == len(self.items) <= self.rows
        self.counts[self.items] += 1
        self.sizes_seen.append(len(y))
        u = torch.as_tensor(u, dtype=torch.float64)
        return (self.rates * u.cos()).unsqueeze(1) * torch.stack([-y[:, 1], y[:, 0]], 1)

    def exact(self, y: Tensor, start: float, end: float) -> Tensor:
        angle = self.rates * (math.sin(end) - math.sin(start))
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * y[:, 0] - sin * y[:, 1], sin * y[:, 0] + cos * y[:, 1]], 1)


def solve(flow, y: Tensor, tolerance: float, order: int = 4, start: float = 0.0, end: float = 1.0, **options):
    return adams_by_item(
        flow, lambda u, y, part: part.drift(u, y), y, start, end, tolerance, tolerance, order, **options
    )


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("order", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_error_of_each_item_follows_the_tolerance(start, end, order):
    tolerances = (1e-3, 1e-4) if order == 1 else (1e-5, 1e-8)
    for tolerance in tolerances:
        flow = Turning()
        found = solve(flow, START, tolerance, order, start, end)
        error = (found - flow.exact(START, start, end)).abs().amax(1)
        # Nothing amplifies a step's error, which is at most rtol |y| + atol.
        assert bool((error < 2 * tolerance * flow.counts).all())


def test_an_item_does_not_depend_on_the_others_and_costs_what_it_needs():
    """The fast one takes five times the passes of the slow ones, and these no more than alone."""
    flow = Turning()
    together = solve(flow, START, 1e-6)
    for i in range(4):
        one = Turning(RATES[i : i + 1])
        alone = solve(one, START[i : i + 1], 1e-6)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-13)
        assert int(one.counts) == int(flow.counts[i])
    assert flow.counts[1] > 5 * flow.counts[3]
    whole = Turning()
    adams(whole.drift, START, 0.0, 1.0, 1e-6, 1e-6, worst_rms, 4)
    assert flow.counts.sum() < 0.6 * whole.counts.sum()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_items_that_wait_take_the_places_of_those_at_the_end(rows):
    flow, together = Turning(rows=rows), Turning()
    found = solve(flow, START, 1e-6)
    torch.testing.assert_close(found, solve(together, START, 1e-6), rtol=1e-12, atol=1e-13)
    assert flow.counts.tolist() == together.counts.tolist()
    # As many calls as if each item went to the place that is free first, in their order.
    ends = [0] * rows
    for count in flow.counts.tolist():
        ends[ends.index(min(ends))] += count
    assert len(flow.sizes_seen) == max(ends)


class Broken(Turning):
    """Item 2 has a value that is none from u = 0.5 on."""

    value = math.nan

    def drift(self, u, y: Tensor) -> Tensor:
        wrong = (self.items == 2) & (torch.as_tensor(u) >= 0.5)
        return torch.where(wrong.unsqueeze(1), self.value, super().drift(u, y))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6], ids=["nan", "inf", "jump"])
def test_gives_up_if_any_item_does(value):
    flow = Broken()
    flow.value = value
    assert solve(flow, START, 1e-12) is None


class Shaking(Turning):
    """Item 1 has a slope that is noise in time."""

    def drift(self, u, y: Tensor) -> Tensor:
        noise = (1e6 * torch.as_tensor(u)).sin() * (self.items == 1)
        return super().drift(u, y) + 0.1 * noise.reshape(-1, 1)


def test_a_rough_item_is_found():
    """And no other: these are followed to the end."""
    flow = Shaking(RATES[[0, 0, 2, 3]], rows=2)
    with pytest.raises(RoughError) as caught:
        solve(flow, START, 1e-7, test_roughness=True)
    assert caught.value.items.tolist() == [1]
    smooth = [0, 2, 3]
    expected = solve(Turning(RATES[[0, 2, 3]]), START[smooth], 1e-7)
    torch.testing.assert_close(caught.value.state[smooth], expected, rtol=1e-12, atol=1e-13)


def test_no_trembling_where_stability_keeps_the_steps_short():
    """dy/du = 300 (cos u - y), as for `adams`, beside items that are not stiff."""

    class Stiff(Turning):
        def drift(self, u, y: Tensor) -> Tensor:
            slope = super().drift(u, y)
            u = torch.as_tensor(u).expand(len(y)).unsqueeze(1)
            stiff = 300 * (torch.cos(u) - y)
            if bool((self.items == 0).any()):
                met.extend((stiff[self.items == 0] * (u[self.items == 0] > 0.5)).flatten().tolist())
            return torch.where((self.items == 0).unsqueeze(1), stiff, slope)

    met: list[float] = []
    flow = Stiff()
    assert solve(flow, START, 1e-4) is not None
    # A low order has longer stable steps: at order 4 all the way it would take 1,858 passes.
    assert flow.counts[0] < 1200
    # At the equilibrium the slope is about -sin u; half a tolerance off it.
    assert max(abs(slope) for slope in met) < math.sin(1) + 300 * 0.5e-4
