r"""Brownian motions for torchsde, drawn from the noise streams of the samples.

Over an interval [a, b] of length h a Brownian motion is described by its increment W ~ N(0, h) and, independent of it,
its space-time Levy area H ~ N(0, h / 12), with int_a^b (W(s) - W(a)) ds = h (W / 2 + H) (Foster, Oberhauser & Strasser
2020, "An Optimal Polynomial Approximation of Brownian Motion").
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchsde import BaseBrownian

Piece = tuple[Tensor, Tensor]
"""W and H of an interval."""


class SeededBrownian(BaseBrownian):  # type: ignore[misc]
    """The interface of a Brownian motion for torchsde.

    torchsde multiplies the area between components (`return_A`) by the derivative of the diffusion, which is zero for a
    diffusion that does not depend on the state; so a zero is returned in its place.

    Args:
        normal: Standard normals of draw number k, [B, *].
        like: A tensor of the state's shape [B, d], type and device.
        start: The first time.
        levy_area: What the solver requires, by torchsde's names: none, space-time (H), foster (the area, zero here).
    """

    def __init__(self, normal: Callable[[int], Tensor], like: Tensor, start: float, levy_area: str = "none") -> None:
        self._normal = normal
        self._like = like
        self.start = start
        self._levy_area = levy_area

    @abstractmethod
    def increment(self, ta: float, tb: float) -> Tensor:
        """W of the interval [ta, tb], [B, d]."""

    @abstractmethod
    def piece(self, ta: float, tb: float) -> Piece:
        """W and H of the interval [ta, tb], [B, d] each."""

    def draw(self, number: int) -> Tensor:
        """Standard normals of a draw, [B, d]."""
        return self._normal(number).flatten(1)

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        """W(tb) - W(ta), [B, d]; with return_U also the integral of W - W(ta), with return_A also a zero."""
        ta, tb = float(ta), float(tb)
        if not return_U:
            w = self.increment(ta, tb)
            return (w, w.new_zeros(())) if return_A else w
        w, h = self.piece(ta, tb)
        u = (0.5 * w).add_(h).mul_(tb - ta)
        return (w, u, w.new_zeros(())) if return_A else (w, u)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, levy_area={self._levy_area!r})"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the increments."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Device of the increments."""
        return self._like.device

    @property
    def shape(self) -> torch.Size:
        """Shape of the increments, [B, d]."""
        return self._like.shape

    @property
    def levy_area_approximation(self) -> str:
        """What is available beside the increments, by torchsde's name."""
        return self._levy_area


class StepBrownian(SeededBrownian):
    """Increments for a solver in steps of length one, each drawn once and not stored.

    torchsde's own Brownian motions answer for any interval, for which they keep a tree of past draws that costs more
    than the draws, and have one seed for the batch. A fixed-step solver needs each step once, in order.
    """

    def increment(self, ta: float, tb: float) -> Tensor:
        """W of a whole step; see `piece`."""
        # A solver that never asks for H gets draws 0, 1, 2, ...
        return self.draw(self._step(ta, tb) * (1 + self.has_levy))

    def piece(self, ta: float, tb: float) -> Piece:
        """W and H of a whole step [start + k, start + k + 1].

        Raises:
            ValueError: If the interval is not a whole step, or levy_area is not space-time.
        """
        if not self.has_levy:
            raise ValueError('a Brownian motion without H has no U: make it with levy_area="space-time"')
        step = self._step(ta, tb)
        return self.draw(2 * step), self.draw(2 * step + 1).mul_(12**-0.5)

    @property
    def has_levy(self) -> bool:
        """Whether H is drawn."""
        return self._levy_area == "space-time"

    def _step(self, ta: float, tb: float) -> int:
        step = round(ta - self.start)
        if abs(tb - ta - 1) > 1e-9 or abs(ta - self.start - step) > 1e-9:
            raise ValueError(f"StepBrownian gives increments of whole steps only; asked for [{ta}, {tb}]")
        return step


class TreeBrownian(SeededBrownian):
    """One path, whatever intervals are asked for and in whatever order: a virtual Brownian tree.

    The interval [start, 0] is halved repeatedly; the (W, H) of a half are computed from its parent's by draws whose
    numbers are determined by the place in the tree. So the path is a function of the seed alone, and solvers with
    other methods or other steps, adaptive ones too, follow the same path. Times that are multiples of (-start) 2^-depth
    are exact; between two of them the path is given by one split of their interval, so that each time has the right
    distribution given all others at least one leaf away.

    The last split of each depth is cached, so that a walk in small steps redraws only the deepest splits.

    Within a leaf the path is smooth, and has too little variation for a solver with shorter steps. Adaptive solvers
    take steps down to 2^-20 of the walk and below, hence the depth.

    Args:
        normal: See `SeededBrownian`.
        like: See `SeededBrownian`.
        start: The first time, negative; the last is 0.
        levy_area: See `SeededBrownian`.
        depth: How often the interval is halved, at least 0. The numbers of the draws are below 2^(depth + 2).

    References:
        Li et al. 2020, "Scalable Gradients for Stochastic Differential Equations", algorithm 3; Jelincic, Foster &
        Kidger 2024, "Single-seed Generation of Brownian Paths and Integrals for Adaptive and High Order SDE Solvers".
    """

    def __init__(
        self,
        normal: Callable[[int], Tensor],
        like: Tensor,
        start: float,
        levy_area: str = "none",
        depth: int = 30,
    ) -> None:
        super().__init__(normal, like, start, levy_area)
        self.depth = depth
        length = -start
        self._root: Piece = self.draw(0).mul_(length**0.5), self.draw(1).mul_((length / 12) ** 0.5)
        self._splits: dict[int, tuple[int, Piece, Piece]] = {}

    def increment(self, ta: float, tb: float) -> Tensor:
        """W of [ta, tb]; see `piece`."""
        return self.piece(ta, tb)[0]

    def piece(self, ta: float, tb: float) -> Piece:
        """W and H of [ta, tb], start <= ta <= tb <= 0."""
        if tb <= ta:
            zero = torch.zeros_like(self._root[0])
            return zero, zero
        length = -self.start
        return self._between((ta + length) / length, (tb + length) / length, 0, 0, self._root)[0]

    def _between(self, a: float, b: float, generation: int, cell: int, piece: Piece) -> tuple[Piece, float]:
        """W and H of the part of [a, b] in a cell, and its length; places are shares of [start, 0].

        Cell number `cell` of a generation (0: all, 1: halves, ...) spans [cell, cell + 1] 2^-generation.
        """
        width = 0.5**generation
        a, b = max(a, cell * width), min(b, (cell + 1) * width)
        if b - a >= width:
            return piece, width
        if generation == self.depth:
            return self._within_leaf(a / width - cell, b / width - cell, cell, piece), b - a
        left, right = self._halves(generation, cell, piece)
        middle = (cell + 0.5) * width
        if b <= middle:
            return self._between(a, b, generation + 1, 2 * cell, left)
        if a >= middle:
            return self._between(a, b, generation + 1, 2 * cell + 1, right)
        first, before = self._between(a, middle, generation + 1, 2 * cell, left)
        second, after = self._between(middle, b, generation + 1, 2 * cell + 1, right)
        return join(first, before, second, after), before + after

    def _halves(self, generation: int, cell: int, piece: Piece) -> tuple[Piece, Piece]:
        """The two halves of a cell."""
        if generation not in self._splits or self._splits[generation][0] != cell:
            self._splits[generation] = (cell, *self._split(generation, cell, piece, 0.5))
        return self._splits[generation][1:]

    def _within_leaf(self, a: float, b: float, cell: int, piece: Piece) -> Piece:
        """The part [a, b] of a leaf, in shares of it."""
        if b >= 1:
            return self._split(self.depth, cell, piece, a)[1]
        until_b, _ = self._split(self.depth, cell, piece, b)
        if a <= 0:
            return until_b
        until_a, _ = self._split(self.depth, cell, piece, a)
        return rest(until_a, until_b, a / b)

    def _split(self, generation: int, cell: int, piece: Piece, share: float) -> tuple[Piece, Piece]:
        number = 2 * (2**generation + cell)  # draws 0 and 1 are the root's
        noise = self.draw(number), self.draw(number + 1)
        return split(piece, -self.start * 0.5**generation, share, noise)


def split(piece: Piece, length: float, share: float, noise: Piece) -> tuple[Piece, Piece]:
    """Split an interval's Brownian motion in two, given its (W, H).

    Args:
        piece: W and H of the interval.
        length: Its length.
        share: Where it is cut, as a share of the length, in (0, 1).
        noise: Two independent standard normals.

    Returns:
        (W, H) on the left and on the right.
    """
    w, h = piece
    z, z_levy = noise
    p, q = share, 1 - share
    # Regression of the left part's (W, H) and the right part's H on (W, H); the residual has two dimensions.
    cubes = p**3 + q**3
    spread = (length * p * q / cubes) ** 0.5
    left = (p * w).add_(h, alpha=6 * p * q).add_(z, alpha=spread * cubes)
    left_levy = (p**2 * h).add_(z, alpha=-0.5 * spread * p**2).add_(z_levy, alpha=spread * q / math.sqrt(12))
    right_levy = (q**2 * h).add_(z, alpha=-0.5 * spread * q**2).add_(z_levy, alpha=-spread * p / math.sqrt(12))
    return (left, left_levy), (w - left, right_levy)


def join(first: Piece, before: float, second: Piece, after: float) -> Piece:
    """(W, H) of two adjacent intervals with lengths in the ratio before : after."""
    (w, h), (v, k) = first, second
    # The integrals add up, the second's beginning at W: H = (p h + q k) + (q w - p v) / 2 with shares p and q.
    p, q = before / (before + after), after / (before + after)
    return w + v, (p * h).add_(k, alpha=q).add_(w, alpha=0.5 * q).add_(v, alpha=-0.5 * p)


def rest(first: Piece, joined: Piece, share: float) -> Piece:
    """(W, H) of the second part of what `join` returned, the first being a share in (0, 1) of it."""
    (w, h), (total, levy) = first, joined
    v = total - w
    p, q = share, 1 - share
    return v, (levy / q).sub_(h, alpha=p / q).sub_(w, alpha=0.5).add_(v, alpha=0.5 * p / q)
