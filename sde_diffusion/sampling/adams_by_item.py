r"""Adams' method with steps of its own for each item of a batch.

The method is that of `adams`; here each item has its own place u, its own step and its own error. An item that is at
the end leaves, and one that waits takes its place: a batch costs the sum of what its items need, not its size times
what the most difficult one needs, and a solution does not depend on the other items. The order, up to k, is each item's
own too, the one with the longest steps.

References: Hairer, Norsett & Wanner 1993, section III.7 (variable order).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sde_diffusion.sampling.adams import (
    GROW,
    LONG,
    ROUGH,
    SHRINK,
    STIFF,
    TESTED_EVERY,
    TURNS,
    RoughError,
    first_step,
)
from sde_diffusion.sampling.adams_items import Items
from sde_diffusion.sampling.exponential import lagrange_weights
from sde_diffusion.sampling.flow import Separable
from sde_diffusion.sde import expand, on_device

_SAFETY, _GROW_AT_FIRST, _RELUCTANCE = 0.7, 5.0, 0.9
"""Step size control as in `adams`, but with a smaller safety factor (here every item has an error near its tolerance),
and a larger growth of the first steps; and the factor of a step of another order when the two are compared."""

_FAR = -1e30
"""Where a missing node is put: its polynomial is zero within the step, and those of the other nodes are as without."""


Slope = Callable[[Tensor | float, Tensor, Separable], Tensor]
"""The slope of a flow at u and y: (u, y, flow) -> [B, *]."""


def adams_by_item(
    flow: Separable,
    slope: Slope,
    y: Tensor,
    start: float,
    end: float,
    rtol: float,
    atol: float,
    order: int,
    smallest_step: float = 1e-9,
    test_roughness: bool = False,
) -> Tensor | None:
    """Solve dy/du = flow.drift(u, y) from start to end, each item with its own steps.

    Args:
        flow: The equation.
        slope: Evaluates it, within [start, end] only.
        y: State at start, [N, *].
        start: Where the solution begins.
        end: Where it ends, above or below start.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        order: Largest order k of the predictor, at least 1.
        smallest_step: Stop if a step of an item gets shorter than this share of the interval.
        test_roughness: See `adams`; for each item by itself.

    Returns:
        The state at end, [N, *]; None if the tolerance cannot be met, or a slope is NaN or infinite, for any item.

    Raises:
        RoughError: If test_roughness finds that the slopes of some items are rough in time; the others are at the end.
    """
    if start == end:
        return y
    walk = _Walk(flow, slope, y, start, end, rtol, atol, order, smallest_step * abs(end - start))
    while len(walk.items.index):
        if not walk.step(test_roughness):
            return None
    if walk.rough:
        raise RoughError(torch.cat(walk.rough).sort().values, walk.out)
    return walk.out


class _Walk:
    """At most `flow.rows` items on their way at once, and those that wait for their turn."""

    def __init__(
        self,
        flow: Separable,
        slope: Slope,
        y: Tensor,
        start: float,
        end: float,
        rtol: float,
        atol: float,
        order: int,
        smallest_step: float,
    ) -> None:
        self.all, self.slope, self.start, self.end, self.order = flow, slope, start, end, order
        self.rtol, self.atol, self.smallest_step = rtol, atol, smallest_step
        self.sign = 1.0 if end > start else -1.0
        self.starts, self.out = y, torch.empty_like(y)
        self.rough: list[Tensor] = []  # which items have left because their slopes are
        self.begun = min(flow.rows, len(y))
        self.items = Items.at(start, torch.arange(self.begun), y[: self.begun], order, 1)
        self.flow = flow if self.begun == len(y) else flow.part(self.items.index)

    def step(self, test_roughness: bool) -> bool:
        """One step of each item, accepted or not, or its first slope; False if an error is NaN or infinite, or a step
        too short.
        """
        items = self.items
        new = items.known == 0
        left = (self.end - items.u).abs()
        last = items.h >= 0.999 * left
        length = torch.where(last, left, items.h)
        ahead = torch.where(last, self.end, items.u + self.sign * length)
        step = self.sign * length
        seen, nodes = self._attempt(ahead, step)
        corrected, errors = self._corrected(seen, nodes, step)
        scale = torch.maximum(items.y.abs(), corrected.abs()).mul_(self.rtol).add_(self.atol)
        if bool((items.tighter < 1).any()):
            scale *= expand(items.tighter, scale)
        relative = errors / scale
        lower, sizes, higher = self._sizes(relative.flatten(0, 1)).reshape(3, -1)
        accepted = sizes <= 1
        # At first the order grows with each step; then it is the one with the longest step.
        grows = accepted & (items.known < self.order)
        using, change = self._best(lower, sizes, higher)
        using = torch.where(grows, items.using + 1, using)
        change = torch.where(grows, _change(sizes, items.using), change)
        items.h = length * change.clamp(min=SHRINK).minimum(torch.where(grows, _GROW_AT_FIRST, GROW).to(change))
        items.using = using
        if not bool(torch.isfinite(sizes).all()) or bool((items.h < self.smallest_step)[~new].any()):
            return False
        if bool(new.any()):
            steepness = self._sizes(seen[0].abs() / scale) * abs(self.end - self.start)
            if not bool(torch.isfinite(steepness[new]).all()):
                return False
            items.h = torch.where(new, first_step(steepness, abs(self.end - self.start)), items.h)
        self._accept(accepted, ahead, seen, corrected)
        done = accepted & last
        done = done | self._rough(accepted & ~last & ~new, relative[1], scale, test_roughness)
        if bool(done.any()):
            self._exchange(done)
        return True

    def _attempt(self, ahead: Tensor, step: Tensor) -> tuple[list[Tensor], Tensor]:
        """Predict and evaluate: the slopes with the new one before them, and their places in units of the step (0 its
        beginning, 1 its end).
        """
        items = self.items
        k = len(items.slopes)
        back = (items.nodes[:, :k] - items.u.unsqueeze(1)) / step.unsqueeze(1)
        back = torch.where(torch.arange(k) < items.known.unsqueeze(1), back, _far(k))
        moved = _combined(items.slopes, step * _integrals(back, items.using.unsqueeze(0) - 1))
        seen = [self.slope(ahead, moved[0].add_(items.y), self.flow), *items.slopes]
        return seen, torch.cat([torch.ones_like(back[:, :1]), back], 1)

    def _corrected(self, seen: list[Tensor], nodes: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """The corrected state, [B, *], and estimates of its error at the order below, at its own, and above, [3, B, *].

        The estimate at an order is the difference to the correction without the last node.
        """
        items = self.items
        shares = _integrals(nodes, items.using + torch.arange(-2, 2).unsqueeze(1))  # with one node more each
        moved = _combined(seen, step * torch.cat([shares[:, 2:3], shares.diff(dim=1)], 1))
        return moved[0] + items.y, moved[1:]

    def _best(self, lower: Tensor, sizes: Tensor, higher: Tensor) -> tuple[Tensor, Tensor]:
        """The order, this one or its neighbours, for which the next step would be longest, and the change to it.

        On a stiff stretch that is a low order, whose range of stable steps is larger.

        Args:
            lower: Size of each item's error at the order below, [B].
            sizes: At its own.
            higher: At the one above.
        """
        items = self.items
        best, change = items.using, _change(sizes, items.using)
        for order, found, possible in (
            (items.using - 1, lower, items.using > 1),
            (items.using + 1, higher, items.using < items.known),
        ):
            other = torch.where(possible, _RELUCTANCE * _change(found, order), 0.0)
            best, change = torch.where(other > change, order, best), torch.maximum(other, change)
        return best, change

    def _accept(self, accepted: Tensor, ahead: Tensor, seen: list[Tensor], corrected: Tensor) -> None:
        """Move on the items whose step is accepted."""
        items = self.items
        nodes = torch.cat([ahead.unsqueeze(1), items.nodes], 1)[:, : self.order]
        if bool(accepted.all()):
            items.y, items.u, items.slopes, items.nodes = corrected, ahead, seen[: self.order], nodes
        else:
            moved = accepted.to(items.y.device).reshape(-1, *(1,) * (items.y.ndim - 1))
            older = [*items.slopes, seen[-1]]  # an item that stays has one slope less: the last does not count
            items.slopes = [torch.where(moved, a, b) for a, b in zip(seen[: self.order], older, strict=False)]
            items.y = torch.where(moved, corrected, items.y)
            items.u = torch.where(accepted, ahead, items.u)
            items.nodes = torch.where(accepted.unsqueeze(1), nodes, items.nodes)
        items.known = (items.known + accepted).clamp(max=self.order)

    def _rough(self, moved: Tensor, relative: Tensor, scale: Tensor, test_roughness: bool) -> Tensor:
        """Test items for stiffness and roughness, as `adams` does; for which the slope is rough, [B]."""
        items = self.items
        items.taken = items.taken + moved
        alternates = ((relative * items.before).flatten(1).sum(1) < 0).cpu()
        going = items.turns < TURNS
        items.turns = torch.where(moved & going, torch.where(alternates, items.turns + 1, 0), items.turns)
        turned = moved & going & (items.turns == TURNS)
        if bool(moved.all()):
            items.before = relative
        else:
            items.before = torch.where(expand(moved.double(), relative) > 0, relative, items.before)
        asked = turned | (moved & (items.taken % TESTED_EVERY == 0) & test_roughness)
        rough = torch.zeros_like(moved)
        if not bool(asked.any()):
            return rough
        chosen = asked.nonzero().squeeze(1)
        roughness = self._roughness(chosen, scale)
        limit = torch.where(items.taken[chosen] < LONG, ROUGH, STIFF)
        items.tighter[chosen[turned[chosen] & (roughness < STIFF)]] *= 0.01
        rough[chosen] = (roughness > limit) & test_roughness
        if bool(rough.any()):
            self.rough.append(items.index[rough])
        return rough

    def _roughness(self, chosen: Tensor, scale: Tensor) -> Tensor:
        """Size of a step's fourth difference of the slope at a fixed state; see `adams`. Of some items, [N]."""
        items = self.items
        there = chosen.to(items.y.device)
        part, y, scale = self.flow.part(chosen), items.y[there], scale[there]
        u = items.u[chosen]
        step = self.sign * torch.minimum(items.h[chosen], (self.end - u).abs())
        difference = torch.zeros_like(y)
        for k, weight in enumerate((1, -4, 6, -4, 1)):
            difference += weight * self.slope(u + step * k / 4, y, part)
        return part.sizes(expand(step / items.tighter[chosen], y) * difference / scale).double().cpu()

    def _exchange(self, done: Tensor) -> None:
        """Keep the states of items that leave, and go on with items that wait in their places."""
        items = self.items
        self.out[items.index[done].to(self.out.device)] = items.y[done.to(self.out.device)]
        self.items = items.rows(~done)
        count = min(int(done.sum()), len(self.starts) - self.begun)
        if count:
            waiting = slice(self.begun, self.begun + count)
            index = torch.arange(waiting.start, waiting.stop)
            new = Items.at(self.start, index, self.starts[waiting], self.order, len(items.slopes))
            self.items, self.begun = self.items + new, waiting.stop
        if len(self.items.index):
            self.flow = self.all.part(self.items.index)

    def _sizes(self, error: Tensor) -> Tensor:
        return self.flow.sizes(error).double().cpu()


def _far(k: int) -> Tensor:
    """Places of k nodes that do not count, [k]: each another, as polynomials need."""
    return _FAR * torch.arange(1, k + 1, dtype=torch.float64)


def _integrals(nodes: Tensor, last: Tensor) -> Tensor:
    """Integrals over [0, 1] of Lagrange's polynomials on the nodes 0 ... last of each row, 0 for others.

    Args:
        nodes: [B, K].
        last: [N, B], for N sets of polynomials; -1 for none.

    Returns:
        [K, N, B].
    """
    count = nodes.shape[1]
    counts = torch.arange(count) <= last.unsqueeze(2)
    places = torch.where(counts, nodes, _far(count)).flatten(0, 1)
    found = lagrange_weights(places, torch.ones(len(places), dtype=torch.float64), rate=0.0)
    return torch.where(counts, found.view_as(counts), 0.0).permute(2, 0, 1)


def _change(sizes: Tensor, order: Tensor) -> Tensor:
    """Change of the step after an error of a size, [B], before limits."""
    return _SAFETY * sizes.clamp(min=1e-10) ** (-1.0 / (order + 1))


def _combined(slopes: list[Tensor], factors: Tensor) -> Tensor:
    """Sums over k of factors_k slopes_k; of as many slopes [B, *], factors [K, N, B]; [N, B, *]."""
    one = slopes[0]
    factors = on_device(factors, one.device, one.dtype).reshape(*factors.shape, *(1,) * (one.ndim - 1))
    total = one * factors[0]
    for slope, factor in zip(slopes[1:], factors[1:], strict=True):
        total.addcmul_(factor, slope)
    return total
