r"""Adams' method with steps of its own for each item of a batch.

The method is that of `adams`; here each item has its own place u, its own step and its own error. An item that is at
the end leaves the batch, so that a batch costs the sum of what its items need, not its size times what the most
difficult one needs, and a solution does not depend on the other items. The order, up to k, is each item's own too, the
one with the longest steps.

References: Hairer, Norsett & Wanner 1993, section III.7 (variable order).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

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
from sde_diffusion.sampling.exponential import lagrange_weights
from sde_diffusion.sampling.flow import Flow
from sde_diffusion.sde import expand, on_device

_SAFETY, _GROW_AT_FIRST, _RELUCTANCE = 0.7, 5.0, 0.9
"""Step size control as in `adams`, but with a smaller safety factor (here every item has an error near its tolerance),
and a larger growth of the first steps; and the factor of a step of another order when the two are compared."""

_FAR = -1e30
"""Where a missing node is put: its polynomial is zero within the step, and those of the other nodes are as without."""


class Separable(Flow, Protocol):
    """A flow of which each item can be at a place of its own: `drift` takes u [B]."""

    def part(self, items: Tensor) -> Separable:
        """The flow of some items; items: [N], int64, on the CPU."""

    def sizes(self, error: Tensor) -> Tensor:
        """Size of each item's error, [B, *] -> [B]."""


Slope = Callable[[Tensor | float, Tensor, Flow], Tensor]
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
        y: State at start, [B, *].
        start: Where the solution begins.
        end: Where it ends, above or below start.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        order: Largest order k of the predictor, at least 1.
        smallest_step: Stop if a step of an item gets shorter than this share of the interval.
        test_roughness: See `adams`; for each item by itself.

    Returns:
        The state at end, [B, *]; None if the tolerance cannot be met, or a slope is NaN or infinite, for any item.

    Raises:
        RoughError: If test_roughness finds that the slope of an item is rough in time.
    """
    if start == end:
        return y
    walk = _Walk(flow, slope, y, start, end, rtol, atol, order)
    if walk.h is None:
        return None
    while len(walk.items):
        if not walk.step(test_roughness) or bool((walk.h < smallest_step * abs(end - start)).any()):
            return None
    return walk.out


class _Walk:
    """The items that are not yet at the end. Places and steps are on the CPU, [B], states on their device."""

    def __init__(
        self, flow: Separable, slope: Slope, y: Tensor, start: float, end: float, rtol: float, atol: float, order: int
    ) -> None:
        self.flow, self.slope, self.end, self.order = flow, slope, end, order
        self.rtol, self.atol = rtol, atol
        self.sign = 1.0 if end > start else -1.0
        self.items = torch.arange(len(y))
        self.y, self.out = y, torch.empty_like(y)
        self.slopes = [slope(start, y, flow)]  # newest first
        self.u = torch.full((len(y),), start, dtype=torch.float64)
        self.nodes = self.u.unsqueeze(1).expand(-1, order).clone()  # [B, order]; the first `known` of them count
        self.known = torch.ones(len(y), dtype=torch.int64)
        self.using = torch.ones_like(self.known)  # the predictor's order in the next step, at most `known`
        self.tighter = torch.ones_like(self.u)  # by which the tolerances are multiplied
        self.turns, self.taken = torch.zeros_like(self.known), torch.zeros_like(self.known)
        self.before: Tensor | None = None
        steepness = self._sizes(self.slopes[0].abs() / (y.abs() * rtol + atol)) * abs(end - start)
        finite = bool(torch.isfinite(steepness).all())
        self.h = first_step(steepness, abs(end - start)) if finite else None

    def step(self, test_roughness: bool) -> bool:
        """One step of each item, accepted or not; False if an error is NaN or infinite."""
        assert self.h is not None
        left = (self.end - self.u).abs()
        last = self.h >= 0.999 * left
        length = torch.where(last, left, self.h)
        ahead = torch.where(last, self.end, self.u + self.sign * length)
        step = self.sign * length
        seen, nodes = self._attempt(ahead, step)
        corrected, errors = self._corrected(seen, nodes, step)
        scale = torch.maximum(self.y.abs(), corrected.abs()).mul_(self.rtol).add_(self.atol)
        if bool((self.tighter < 1).any()):
            scale *= expand(self.tighter, scale)
        relative = errors / scale
        lower, sizes, higher = self._sizes(relative.flatten(0, 1)).reshape(3, -1)
        if not bool(torch.isfinite(sizes).all()):
            return False
        accepted = sizes <= 1
        # At first the order grows with each step; then it is the one with the longest step.
        grows = accepted & (self.known < self.order)
        using, change = self._best(lower, sizes, higher)
        using = torch.where(grows, self.using + 1, using)
        change = torch.where(grows, _change(sizes, self.using), change)
        self.h = length * change.clamp(min=SHRINK).minimum(torch.where(grows, _GROW_AT_FIRST, GROW).to(change))
        self.using = using
        self._accept(accepted, ahead, seen, corrected)
        self._test(accepted & ~last, relative[1], scale, test_roughness)
        done = accepted & last
        if bool(done.any()):
            self._leave(done)
        return True

    def _attempt(self, ahead: Tensor, step: Tensor) -> tuple[list[Tensor], Tensor]:
        """Predict and evaluate: the slopes with the new one before them, and their places in units of the step (0 its
        beginning, 1 its end).
        """
        k = len(self.slopes)
        back = (self.nodes[:, :k] - self.u.unsqueeze(1)) / step.unsqueeze(1)
        back = torch.where(torch.arange(k) < self.known.unsqueeze(1), back, _far(k))
        moved = _combined(self.slopes, step * _integrals(back, self.using.unsqueeze(0) - 1))
        seen = [self.slope(ahead, moved[0].add_(self.y), self.flow), *self.slopes]
        return seen, torch.cat([torch.ones_like(back[:, :1]), back], 1)

    def _corrected(self, seen: list[Tensor], nodes: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """The corrected state, [B, *], and estimates of its error at the order below, at its own, and above, [3, B, *].

        The estimate at an order is the difference to the correction without the last node.
        """
        shares = _integrals(nodes, self.using + torch.arange(-2, 2).unsqueeze(1))  # with one node more each
        moved = _combined(seen, step * torch.cat([shares[:, 2:3], shares.diff(dim=1)], 1))
        return moved[0] + self.y, moved[1:]

    def _best(self, lower: Tensor, sizes: Tensor, higher: Tensor) -> tuple[Tensor, Tensor]:
        """The order, this one or its neighbours, for which the next step would be longest, and the change to it.

        On a stiff stretch that is a low order, whose range of stable steps is larger.

        Args:
            lower: Size of each item's error at the order below, [B].
            sizes: At its own.
            higher: At the one above.
        """
        best, change = self.using, _change(sizes, self.using)
        for order, found, possible in (
            (self.using - 1, lower, self.using > 1),
            (self.using + 1, higher, self.using < self.known),
        ):
            other = torch.where(possible, _RELUCTANCE * _change(found, order), 0.0)
            best, change = torch.where(other > change, order, best), torch.maximum(other, change)
        return best, change

    def _accept(self, accepted: Tensor, ahead: Tensor, seen: list[Tensor], corrected: Tensor) -> None:
        """Move on the items whose step is accepted."""
        nodes = torch.cat([ahead.unsqueeze(1), self.nodes], 1)[:, : self.order]
        if bool(accepted.all()):
            self.y, self.u, self.slopes, self.nodes = corrected, ahead, seen[: self.order], nodes
        else:
            moved = accepted.to(self.y.device).reshape(-1, *(1,) * (self.y.ndim - 1))
            older = [*self.slopes, seen[-1]]  # an item that stays has one slope less: the last does not count
            self.slopes = [torch.where(moved, a, b) for a, b in zip(seen[: self.order], older, strict=False)]
            self.y = torch.where(moved, corrected, self.y)
            self.u = torch.where(accepted, ahead, self.u)
            self.nodes = torch.where(accepted.unsqueeze(1), nodes, self.nodes)
        self.known = (self.known + accepted).clamp(max=self.order)

    def _test(self, moved: Tensor, relative: Tensor, scale: Tensor, test_roughness: bool) -> None:
        """Count alternations of the error's sign; test items for stiffness and roughness, as `adams` does."""
        self.taken += moved
        turned = torch.zeros_like(moved)
        if self.before is not None:
            alternates = ((relative * self.before).flatten(1).sum(1) < 0).cpu()
            going = self.turns < TURNS
            self.turns = torch.where(moved & going, torch.where(alternates, self.turns + 1, 0), self.turns)
            turned = moved & going & (self.turns == TURNS)
        if self.before is None or bool(moved.all()):
            self.before = relative
        else:
            self.before = torch.where(expand(moved.double(), relative) > 0, relative, self.before)
        asked = turned | (moved & (self.taken % TESTED_EVERY == 0) & test_roughness)
        if not bool(asked.any()):
            return
        chosen = asked.nonzero().squeeze(1)
        roughness = self._roughness(chosen, scale)
        limit = torch.where(self.taken[chosen] < LONG, ROUGH, STIFF)
        if test_roughness and bool((roughness > limit).any()):
            raise RoughError
        self.tighter[chosen[turned[chosen] & (roughness < STIFF)]] *= 0.01

    def _roughness(self, chosen: Tensor, scale: Tensor) -> Tensor:
        """Size of a step's fourth difference of the slope at a fixed state; see `adams`. Of some items, [N]."""
        assert self.h is not None
        there = chosen.to(self.y.device)
        part, y, scale = self.flow.part(chosen), self.y[there], scale[there]
        u = self.u[chosen]
        step = self.sign * torch.minimum(self.h[chosen], (self.end - u).abs())
        difference = torch.zeros_like(y)
        for k, weight in enumerate((1, -4, 6, -4, 1)):
            difference += weight * self.slope(u + step * k / 4, y, part)
        return part.sizes(expand(step / self.tighter[chosen], y) * difference / scale).double().cpu()

    def _leave(self, done: Tensor) -> None:
        """Keep the results of items that are at the end, and go on without them."""
        there = done.to(self.y.device)
        self.out[self.items.to(there.device)[there]] = self.y[there]
        stay, rest = ~done, (~done).nonzero().squeeze(1)
        names = ("items", "u", "h", "nodes", "known", "using", "tighter", "turns", "taken")
        for name in names:
            setattr(self, name, getattr(self, name)[stay])
        kept = rest.to(self.y.device)
        self.y, self.slopes = self.y[kept], [slope[kept] for slope in self.slopes]
        self.before = None if self.before is None else self.before[kept]
        if len(rest):
            self.flow = self.flow.part(rest)

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
