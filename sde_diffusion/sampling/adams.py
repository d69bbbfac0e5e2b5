r"""Adams' method with adaptive steps: one network pass a step.

Predictions change smoothly along a walk, and a network pass costs far more than a linear combination of earlier ones.
A step from u to u + h, with the slopes f_0 = f(u), f_1, ... of the last k points (nearest first),

    predicts    p = y + int P(f_0, ..., f_{k-1}),                        Adams-Bashforth, order k,
    evaluates   f* = f(u + h, p),
    corrects    y + int P(f*, f_0, ..., f_{k-1}),                        Adams-Moulton, order k + 1,

where each integral is over the step, of the polynomial through these slopes at their own places (the spacing may be
any). The error estimate is the difference to the correction without f_{k-1}, which is of order k. The first steps use
fewer points.

With a single evaluation a step, the range of stable steps shrinks with the order: on stiff equations a high order
takes many times the passes of a low one (benchmarks/README.md).

References: Hairer, Norsett & Wanner 1993, "Solving Ordinary Differential Equations I", sections III.1, III.5 and III.7
(predict-evaluate-correct, without a second evaluation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_diffusion.sampling.exponential import lagrange_weights

_SAFETY, SHRINK, GROW, GROW_AT_FIRST = 0.85, 0.3, 1.5, 3.0
"""Step size control: safety factor, smallest and largest change, and the largest while the order still grows."""

TURNS = 50
"""Consecutive changes of the error's sign from which stability, not accuracy, is taken to limit the steps. The last
steps of an ordinary walk have up to 40 if one of many samples is far out; a tighter tolerance would gain nothing
there."""

TESTED_EVERY = 150
"""The slope is tested for roughness every so many steps; most smooth walks take fewer."""

STIFF, ROUGH = 0.01, 1.0
"""Fourth differences in time of the slope at a fixed state, over a step, in tolerances. Below the first, the dependence
on time does not limit the steps. A step limited by its own fourth derivative shows 0.15, and one within which the slope
is noisy about 40."""

LONG = 900
"""After so many steps a slope counts as rough if its dependence on time alone limits the steps."""


class RoughError(Exception):
    """The slope is rough in time: noisy, or so oscillatory that following it would take too many steps.

    Attributes:
        items: The items for which it is, [N], int64, on the CPU; None: all together.
        state: The state at the end, [B, *], of the other items.
    """

    def __init__(self, items: Tensor | None = None, state: Tensor | None = None) -> None:
        super().__init__(items, state)
        self.items, self.state = items, state


def adams(
    drift: Callable[[float, Tensor], Tensor],
    y: Tensor,
    start: float,
    end: float,
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor],
    order: int,
    smallest_step: float = 1e-9,
    places: Sequence[float] = (),
    keep: Callable[[float, Tensor], None] | None = None,
    test_roughness: bool = False,
) -> Tensor | None:
    """Solve dy/du = drift(u, y) from start to end.

    Args:
        drift: The slope f(u, y), evaluated within [start, end] only.
        y: State at start.
        start: Where the solution begins.
        end: Where it ends, above or below start.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        norm: Size of an error in tolerances; a step is accepted if it is at most 1.
        order: Order k of the predictor, at least 1.
        smallest_step: Stop if a step gets shorter than this share of the interval.
        places: Where the solution is wanted between start and end, in the order of the walk.
        keep: Called with each of these and the state there, interpolated by the polynomial of the step.
        test_roughness: Test the slope for roughness (five passes) every 150 steps, and when errors alternate in sign.

    If a flow contracts steeply, stability rather than accuracy limits the steps: the solution oscillates within the
    tolerance, whatever that is, and a quantity with a sharp extremum there (a divergence far from all data) gets a
    systematic error. Such errors alternate in sign from step to step, unlike those of a smooth solution. So after 50
    alternations in a row the tolerance is divided by 100 for the rest of the walk. That costs few steps here, but more
    if errors alternate because the flow itself rotates.

    Errors also alternate if the slope is rough in time, as for a network whose time features oscillate thousands of
    times along the walk. Then the error of a step is proportional to its length, a tolerance ten times smaller costs
    ten times the passes, and a tighter tolerance does not help. So the slope is first tested at a fixed state.

    Returns:
        The state at end; None if the tolerance cannot be met, or a slope is NaN or infinite.

    Raises:
        RoughError: If test_roughness finds that the slope is rough in time.
    """
    if start == end:
        return y
    u, length = start, abs(end - start)
    ahead_of, turns, taken = list(places), _Turns(), 0
    slopes, nodes = [drift(u, y)], [u]
    steepness = norm(slopes[0].detach() / (atol + rtol * y.detach().abs())) * length
    if not float(steepness) < torch.inf:
        return None
    h = float(first_step(steepness, length))
    while True:
        last = h >= 0.999 * abs(end - u)
        step = end - u if last else (h if end > start else -h)
        ahead = end if last else u + step
        back = [(node - u) / step for node in nodes]
        seen, corrected, error = _step(drift, y, ahead, step, slopes, back)
        scale = torch.maximum(y.abs(), corrected.abs()).mul(rtol).add(atol)
        relative = error.detach() / scale.detach()
        size = float(norm(relative))
        if size <= 1:
            while keep is not None and ahead_of and (ahead_of[0] - ahead) * step <= 0:
                place = ahead_of.pop(0)
                keep(place, _interpolate(y, (place - u) / step, step, seen, back))
            if last:
                return corrected
            u, y = ahead, corrected
            slopes, nodes = seen[:order], [ahead, *nodes][:order]
            taken += 1
            turned = turns.reached(relative)
            if turned or (test_roughness and taken % TESTED_EVERY == 0):
                within = step if abs(step) <= abs(end - u) else end - u
                roughness = _roughness(drift, u, y, within, scale, norm)
                if test_roughness and roughness > (ROUGH if taken < LONG else STIFF):
                    raise RoughError
                if turned and roughness < STIFF:
                    rtol, atol = 0.01 * rtol, 0.01 * atol
        elif not size < torch.inf:
            return None
        most = GROW if len(slopes) == order else GROW_AT_FIRST
        h = abs(step) * min(max(_SAFETY * max(size, 1e-10) ** (-1 / (len(back) + 1)), SHRINK), most)
        if h < smallest_step * length:
            return None


class _Turns:
    """Counts consecutive steps whose errors alternate in sign, up to `TURNS`."""

    def __init__(self) -> None:
        self.count = 0
        self.before: Tensor | None = None

    def reached(self, error: Tensor) -> bool:
        """Whether `TURNS` is reached with this step's error, [B, *]; never again after that."""
        if self.count == TURNS:
            return False
        alternates = self.before is not None and float((error * self.before).sum()) < 0
        self.count = self.count + 1 if alternates else 0
        self.before = error
        return self.count == TURNS


def first_step(steepness: Tensor, length: float) -> Tensor:
    """Length of the first step, of order 1, if the slope changes by its own size over the interval.

    Args:
        steepness: Size of the slope times `length`, in tolerances, finite.
        length: Length of the interval.
    """
    return length * torch.where(steepness < 1e4, 0.005, 0.5 * steepness.clamp(min=1.0).rsqrt())


def _step(
    drift: Callable[[float, Tensor], Tensor],
    y: Tensor,
    ahead: float,
    step: float,
    slopes: list[Tensor],
    back: list[float],
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Predict, evaluate, correct; one pass.

    Args:
        drift: The slope.
        y: State at the beginning.
        ahead: u at the end.
        step: Length of the step, signed.
        slopes: The last slopes, nearest first.
        back: Where they are, in units of the step (0 its beginning, 1 its end).

    Returns:
        The slopes with that at the end before them, the corrected state there, and the estimate of its error.
    """
    seen = [drift(ahead, _combine(y, step, slopes, _integrals(back))), *slopes]
    weights = _integrals([1.0, *back])
    lower = [*_integrals([1.0, *back[:-1]]), 0.0]
    error = _combine(None, step, seen, [a - b for a, b in zip(weights, lower, strict=True)])
    return seen, _combine(y, step, seen, weights), error


def _interpolate(y: Tensor, part: float, step: float, seen: list[Tensor], back: list[float]) -> Tensor:
    """The state after a part of a step, by the polynomial through the slopes that `_step` has seen."""
    if not part:
        return y
    return _combine(y, part * step, seen, _integrals([node / part for node in (1.0, *back)]))


def _roughness(
    drift: Callable[[float, Tensor], Tensor],
    u: float,
    y: Tensor,
    step: float,
    scale: Tensor,
    norm: Callable[[Tensor], Tensor],
) -> float:
    """Size of a step's fourth difference of the slope at a fixed state, at times a quarter of the step apart.

    As the state is fixed, stiffness has no influence on it.
    """
    difference = torch.zeros_like(y)
    for k, weight in enumerate((1, -4, 6, -4, 1)):
        difference += weight * drift(u + step * k / 4, y).detach()
    return float(norm(step * difference / scale.detach()))


def _integrals(nodes: list[float]) -> list[float]:
    """Integrals over [0, 1] of Lagrange's polynomials on nodes."""
    weights: list[float] = lagrange_weights(
        torch.tensor([nodes], dtype=torch.float64), torch.ones(1, dtype=torch.float64), rate=0.0
    )[0].tolist()
    return weights


def _combine(y: Tensor | None, step: float, slopes: list[Tensor], weights: list[float]) -> Tensor:
    first = step * weights[0]
    out = slopes[0] * first if y is None else y.add(slopes[0], alpha=first)
    for slope, weight in zip(slopes[1:], weights[1:], strict=True):
        out.add_(slope, alpha=step * weight)
    return out
