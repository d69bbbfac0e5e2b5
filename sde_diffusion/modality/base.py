"""The base class of every kind of data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from sde_diffusion.checks import check_count, check_sizes
from sde_diffusion.config import public_path
from sde_diffusion.modality import pictures
from sde_diffusion.modality.levels import from_levels, to_levels
from sde_diffusion.modality.units import Units

Array = np.ndarray[Any, Any]


class Modality(ABC):
    """What kind of thing x is, of one data set: shape and values, how they are stored, drawn, called and compared.

    Models see x [B, *shape] in float32, the data's range on [-1, 1]. A new kind of data is a subclass that states
    `unit` and `axes` and writes the abstract methods; the others hold for any vector of numbers. Data sets name it in
    `DataModule.modality_class`, or `KINDS` holds it, and commands find it in the checkpoint.

    Args:
        shape: Of one item.
        levels: How many integer levels the values have, 2 to 256; None: they are continuous.
        units: The map from the data's own units, of continuous values; None: those are on [-1, 1] already.

    Raises:
        ValueError: If the shape is none of such an item, or the number of levels is out of range.
    """

    unit: ClassVar[str]
    """What the items are called, in the plural: in logs ("images/s"), and as the array of `samples.npz`."""

    axes: ClassVar[str]
    """A letter for each axis of an item, such as CHW."""

    bounded: ClassVar[bool] = False
    """Whether values beyond [-1, 1] mean nothing, so that samples are clamped."""

    mirrored: ClassVar[bool] = False
    """Whether an item may be mirrored along its last axis, to train on more."""

    few_dimensions: ClassVar[bool] = False
    """Whether metrics that are meant for points are taken of the items without being asked for."""

    def __init__(self, shape: Sequence[int], levels: int | None = None, units: Units | None = None) -> None:
        self.shape = self.check_shape(shape)
        self.levels = None if levels is None else check_count("levels", levels, least=2, most=256)
        self.units = units

    @classmethod
    def check_shape(cls, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of an item, checked.

        Raises:
            ValueError: If it is none.
        """
        allowed = f"[{', '.join(cls.axes)}] for {cls.unit}, of positive sizes"
        return check_sizes("shape", shape, allowed, least=len(cls.axes), most=len(cls.axes))

    def describe(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain containers: the class, and arguments of its own.

        Shape, levels and units stand beside it in the description of the data; see `modality_of`.
        """
        return {"_target_": public_path(type(self))}

    @property
    def kind(self) -> str:
        """The kind and the shape of the items, for messages."""
        return f"{self.unit} of shape {list(self.shape)}"

    @property
    def in_pictures(self) -> bool:
        """Whether files of pictures (.png, .jpg) hold such items."""
        return False

    # Values

    @property
    def own(self) -> Units | None:
        """The map from the data's own units: 0 ... levels - 1 for levels; None where they are on [-1, 1] already."""
        return self.units if self.levels is None else Units((0.0,), (self.levels - 1.0,))

    def encode(self, y: Tensor) -> Tensor:
        """Data in their own units, [B, *shape], as models see them, float32."""
        if self.levels is not None:
            return from_levels(y, self.levels)
        return y.float() if self.units is None else self.units.encode(y)

    def decode(self, x: Tensor) -> Tensor:
        """What models see or make, [B, *shape], in the data's own units: float32, or uint8 levels where there are some.

        The inverse of `encode`.
        """
        return self.in_own_units(x) if self.levels is None else to_levels(x, self.levels)

    def in_own_units(self, x: Tensor) -> Tensor:
        """What models see, [B, *shape], in the data's own units, float32, not rounded to levels."""
        return x.float() if self.own is None else self.own.decode(x)

    def as_data(self, x: Tensor) -> Tensor:
        """Samples [B, *shape] as data would be: rounded to the levels, if there are some, and clamped if bounded."""
        if self.levels is not None:
            return from_levels(to_levels(x, self.levels), self.levels)
        return x.clamp(-1, 1) if self.bounded else x

    # Metrics

    def for_metrics(self, x: Tensor) -> Tensor:
        """Samples or data [B, *shape] as metrics look at them: as data would be, times the scale of the data's unit.

        Distances are then in that unit, where all values have one. Columns with ranges of their own have no common
        unit, and the widest would count alone: they stay as models see them, each in half its range. Nothing is
        shifted, for no metric sees that, and large offsets cost digits.

        Returns:
            float32 [B, *shape].
        """
        x, scale = self.as_data(x), self._metric_scale
        return x if scale == 1 else x * scale

    def from_metrics(self, x: Tensor) -> Tensor:
        """What `for_metrics` gave, [B, *shape], as models see it."""
        return x / self._metric_scale

    @property
    def _metric_scale(self) -> float:
        if self.own is None or len(self.own.low) > 1:
            return 1.0
        return (self.own.high[0] - self.own.low[0]) / 2

    def extractor(self, n: int) -> str:
        """The feature extractor that fits n samples of any such data: the principal components of the training split.

        Args:
            n: The smaller of the numbers of samples and of data.
        """
        return "pca"

    # Files

    def to_file(self, x: Tensor) -> Array:
        """Samples [B, *shape] as `samples.npz` holds them: in the data's own units, two levels rounded.

        Returns:
            float32 [B, *shape].
        """
        x = x.float()  # A mask has no greys. Other levels keep what lies between them.
        return self.in_own_units(self.as_data(x) if self.levels == 2 else x).numpy()

    def from_file(self, y: Tensor) -> Tensor:
        """Samples [B, ...] as a file holds them, as models see them, float32 [B, *shape]."""
        return y.float() if self.own is None else self.own.encode(y)

    def check_file(self, array: Array) -> str:
        """What is wrong with an array [N, ...] of a file; "" if it may hold samples. Its shape is looked at later."""
        if array.dtype.kind in "buif" and array.ndim > 1:
            return ""
        return f"{self.unit} must be numbers [N, {', '.join(self.axes)}]; got {array.dtype} {list(array.shape)}"

    def shape_in_file(self, array: Array) -> tuple[int, ...]:
        """The shape that the items of an array [N, ...] of a file have as models see them."""
        return tuple(array.shape[1:])

    def arrange(self, array: Array) -> Array | None:
        """Items of a user's file, [N, ...], brought to [N, *shape]; None if they are of another shape."""
        found = array.shape[1:]
        if found == self.shape:
            return array
        if found == (math.prod(self.shape),) or (self.shape[0] == 1 and found == self.shape[1:]):
            return array.reshape(-1, *self.shape)
        return None

    # Pictures. Samples and data [B, *shape] come as models see them.

    @abstractmethod
    def draw(self, x: Tensor) -> Image:
        """A picture of samples [B, *shape], in the data's own units where values can be read from it."""

    @abstractmethod
    def beside(self, x: Tensor, reference: Tensor) -> Image:
        """A picture of samples [B, *shape] and data [N, *shape] side by side, on the same scale."""

    def film_strip(self, trajectory: Tensor, times: Sequence[float]) -> Image:
        """Beliefs along a walk, time running to the right.

        Args:
            trajectory: [frames, B, *shape].
            times: The frames' times.
        """
        rows = self._film_rows(trajectory.shape[1])
        drawing, axes = pictures.figure((1.1 * len(times), self._film_height * rows + 0.5), (rows, len(times)))
        drawing.suptitle(r"belief $E[x_0 \mid x_t]$ along the walk", fontsize=8)
        ends = self._film_limits(trajectory)
        for column, t in enumerate(times):
            axes[0][column].set_title(f"t = {t:.3g}", fontsize=7)
            for row in range(rows):
                panel = axes[row][column]
                panel.set_xticks([])
                panel.set_yticks([])
                self._plot_frame(panel, trajectory[column], row, ends)
        return pictures.render(drawing)

    def film_frames(self, states: Tensor, beliefs: Tensor, times: Sequence[float]) -> list[Image]:
        """The pictures of an animation: on the left the states, on the right the beliefs, with the time.

        Args:
            states: [frames, B, *shape], of about unit size.
            beliefs: Of the same shape.
            times: The frames' times.

        Returns:
            [frames] pictures of one size.
        """
        both = torch.stack([states, beliefs])
        # Nothing leaves the picture.
        extent = 1.05 * float(self._film_values(both.flatten(0, 2)).abs().max().clamp(min=1.0))
        return [
            pictures.side_by_side(
                {
                    f"x_t, t = {t:.3g}": self._draw_frame(state, extent),
                    "E[x_0 | x_t]": self._draw_frame(belief, extent),
                },
                *(26, 8, 14),
            )
            for state, belief, t in zip(states, beliefs, times, strict=True)
        ]

    _film_height: ClassVar[float] = 1.1  # of a row, in inches

    def _film_rows(self, n: int) -> int:
        """Rows of the film strip of n samples: one for each."""
        return n

    def _film_values(self, x: Tensor) -> Tensor:
        """Those values of [B, *shape] that the film shows on axes."""
        return x

    def _film_limits(self, trajectory: Tensor) -> tuple[list[float], list[float]]:
        """Ends of the film strip's axes."""
        return pictures.limits(self._film_values(trajectory.flatten(0, 1)).reshape(-1, 1).float())

    @abstractmethod
    def _plot_frame(self, panel: Any, x: Tensor, row: int, ends: tuple[list[float], list[float]]) -> None:
        """Plot samples [B, *shape] in a panel of the film strip, in its row."""

    @abstractmethod
    def _draw_frame(self, x: Tensor, extent: float) -> Image:
        """A picture of samples [B, *shape], about 260 pixels wide, on axes from -extent to extent."""
