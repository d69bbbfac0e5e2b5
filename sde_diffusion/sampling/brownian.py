"""A Brownian motion for torchsde that draws each increment once, from the samples' own streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchsde import BaseBrownian


class StepBrownian(BaseBrownian):  # type: ignore[misc]
    """Increments W(tb) - W(ta) of a solver in steps of length one, each drawn once and not kept.

    torchsde's own Brownian motions can be asked for any interval at any time and pay for it with a tree of past draws
    (2 to 16 ms a step for [64, 3072]), and have one seed for the whole batch. A fixed-step solver asks for each step
    once, in order.

    Args:
        normal: Standard normals of step number k, [B, *].
        like: A tensor of the state's shape [B, d], type and device.
    """

    def __init__(self, normal: Callable[[int], Tensor], like: Tensor) -> None:
        self._normal = normal
        self._like = like

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
        """W(tb) - W(ta) ~ N(0, tb - ta) for a whole step ta = k, tb = k + 1; [B, d]."""
        step, length = round(float(ta)), float(tb) - float(ta)
        if abs(length - 1) > 1e-9 or return_U or return_A:
            raise ValueError(f"StepBrownian gives increments of whole steps only; asked for [{ta}, {tb}]")
        return self._normal(step).flatten(1)

    def __repr__(self) -> str:
        return f"StepBrownian(shape={tuple(self.shape)})"

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
        """No Levy area: Euler-Maruyama needs none."""
        return "none"
