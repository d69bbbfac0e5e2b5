"""The base class of all kinds of data."""

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
from sde_diffusion.modality import pictures, restored, strips
from sde_diffusion.modality.levels import from_levels, to_levels
from sde_diffusion.modality.units import Units

Array = np.ndarray[Any, Any]


class Modality(ABC):
    """The kind of data of one data set: shape and values, and how items are stored, drawn, named and compared.

    Models take x [B, *shape] in float32, with the data's range mapped to [-1, 1]. A new kind of data is a subclass that
    defines `unit`, `axes` and the abstract methods; the other methods are right for any array of numbers. A data set
    names it in `DataModule.modality_class`, or it is listed in `KINDS`; commands find it in the checkpoint.

    Args:
        shape: Shape of one item.
        levels: Number of integer levels of the values, 2 to 256; None for continuous values.
        units: The map from the data's own units, for continuous values; None if those are on [-1, 1] already.

    Raises:
        ValueError: If an item cannot have the shape, or the number of levels is out of range.
    """

    unit: ClassVar[str]
    """The name of the items, in the plural: in logs ("images/s"), and of the array in `samples.npz`."""

    axes: ClassVar[str]
    """A letter for each axis of an item, such as CHW."""

    bounded: ClassVar[bool] = False
    """Whether samples are clamped to [-1, 1]."""

    mirrored: ClassVar[bool] = False
    """Whether items may be mirrored along the last axis, as augmentation."""

    few_dimensions: ClassVar[bool] = False
    """Whether metrics that are meant for points are computed by default."""

    most_drawn: ClassVar[int] = 5000
    """Maximum number of samples in one of a command's pictures."""

    def __init__(self, shape: Sequence[int], levels: int | None = None, units: Units | None = None) -> None:
        self.shape = self.check_shape(shape)
        self.levels = None if levels is None else check_count("levels", levels, least=2, most=256)
        self.units = units

    @classmethod
    def check_shape(cls, shape: Sequence[int]) -> tuple[int, ...]:
        """Check the shape of an item.

        Raises:
            ValueError: If an item cannot have it.
        """
        allowed = f"[{', '.join(cls.axes)}] for {cls.unit}, of positive sizes"
        return check_sizes("shape", shape, allowed, least=len(cls.axes), most=len(cls.axes))

    def describe(self) -> dict[str, Any]:
        """What a checkpoint stores: the class, and its further arguments.

        Shape, levels and units are separate entries in the description of the data; see `modality_of`.
        """
        return {"_target_": public_path(type(self))}

    @property
    def kind(self) -> str:
        """Name and shape of the items, for messages."""
        return f"{self.unit} of shape {list(self.shape)}"

    @property
    def in_pictures(self) -> bool:
        """Whether image files (.png, .jpg) can hold such items."""
        return False

    # Values

    @property
    def own(self) -> Units | None:
        """The map from the data's own units (0 ... levels - 1 for levels); None if they are on [-1, 1] already."""
        return self.units if self.levels is None else Units((0.0,), (self.levels - 1.0,))

    def encode(self, y: Tensor) -> Tensor:
        """Map data from their own units to the values that models take, float32 [B, *shape]."""
        if self.levels is not None:
            return from_levels(y, self.levels)
        return y.float() if self.units is None else self.units.encode(y)

    def decode(self, x: Tensor) -> Tensor:
        """Map values that models take or return, [B, *shape], to the data's own units: float32, or uint8 for levels.

        The inverse of `encode`.
        """
        return self.in_own_units(x) if self.levels is None else to_levels(x, self.levels)

    def in_own_units(self, x: Tensor) -> Tensor:
        """As `decode`, in float32 and not rounded to levels."""
        return x.float() if self.own is None else self.own.decode(x)

    def as_data(self, x: Tensor) -> Tensor:
        """Samples [B, *shape] rounded to the levels, if the data have levels, and clamped if `bounded`."""
        if self.levels is not None:
            return from_levels(to_levels(x, self.levels), self.levels)
        return x.clamp(-1, 1) if self.bounded else x

    # Metrics

    def for_metrics(self, x: Tensor) -> Tensor:
        """Samples or data [B, *shape] for metrics: `as_data`, times the scale of the data's unit.

        Distances are then in that unit, if all values share one. Columns with different ranges have no common unit, and
        the widest would dominate: they keep the values that models take, in units of half of each range. Nothing is
        shifted, since metrics do not depend on it and large offsets cost digits.

        Returns:
            float32 [B, *shape].
        """
        x, scale = self.as_data(x), self._metric_scale
        return x if scale == 1 else x * scale

    def from_metrics(self, x: Tensor) -> Tensor:
        """The inverse of the scaling of `for_metrics`, [B, *shape]."""
        return x / self._metric_scale

    @property
    def _metric_scale(self) -> float:
        if self.own is None or len(self.own.low) > 1:
            return 1.0
        return (self.own.high[0] - self.own.low[0]) / 2

    def extractor(self, n: int) -> str:
        """Name of the default feature extractor for n samples: the principal components of the training split.

        Args:
            n: The smaller of the number of samples and the number of data.
        """
        return "pca"

    # Files

    def to_file(self, x: Tensor) -> Array:
        """Samples [B, *shape] as stored in `samples.npz`: in the data's own units; rounded if there are two levels.

        Returns:
            float32 [B, *shape].
        """
        x = x.float()  # Masks have no grey levels. Data with more levels keep values in between.
        return self.in_own_units(self.as_data(x) if self.levels == 2 else x).numpy()

    def from_file(self, y: Tensor) -> Tensor:
        """Map stored samples [B, ...] to the values that models take, float32 [B, *shape]."""
        return y.float() if self.own is None else self.own.encode(y)

    def check_file(self, array: Array) -> str:
        """What is wrong with an array [N, ...] of a file; "" if it can hold samples. Its shape is checked elsewhere."""
        if array.dtype.kind in "buif" and array.ndim > 1:
            return ""
        return f"{self.unit} must be numbers [N, {', '.join(self.axes)}]; got {array.dtype} {list(array.shape)}"

    def shape_in_file(self, array: Array) -> tuple[int, ...]:
        """The shape, for models, of the items of a stored array [N, ...]."""
        return tuple(array.shape[1:])

    def arrange(self, array: Array) -> Array | None:
        """Items of a user's file, [N, ...], rearranged to [N, *shape]; None if their shape does not fit."""
        found = array.shape[1:]
        if found == self.shape:
            return array
        if found == (math.prod(self.shape),) or (self.shape[0] == 1 and found == self.shape[1:]):
            return array.reshape(-1, *self.shape)
        return None

    # Pictures, of values that models take

    @abstractmethod
    def draw(self, x: Tensor) -> Image:
        """A picture of samples [B, *shape]; its axes, if any, are in the data's own units."""

    @abstractmethod
    def beside(self, x: Tensor, reference: Tensor, *, names: tuple[str, str] = ("samples", "data")) -> Image:
        """A picture of samples [B, *shape] and data [N, *shape] side by side, on the same scale, with these names."""

    def draw_edits(self, x: Tensor, reference: Tensor) -> Image:
        """A picture of variations [N, n, *shape] of items [N, *shape] beside them."""
        return self.beside(x.flatten(0, 1), reference, names=("edited", "given"))

    def draw_rows(self, x: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Image:
        """A picture of items [R, n, *shape] in rows and columns with these names."""
        return strips.plots(self, x, rows, columns)

    def draw_posterior(
        self, draws: Tensor, measured: Tensor | None = None, truth: Tensor | None = None, known: Tensor | None = None
    ) -> Image:
        """A picture of draws given measurements, with a row or a panel for each of the first few items.

        Args:
            draws: [N, n, *shape].
            measured: The measurements as data, perhaps of other sizes, [N, *]; None if they are none.
            truth: What was measured, [N, *shape]; None if it is not known.
            known: Which numbers of `measured` are known, bool [*shape]; None if it has another shape.
        """
        return restored.error_bars(self, draws, measured, truth, known)

    def film_strip(self, trajectory: Tensor, times: Sequence[float]) -> Image:
        """A picture of the beliefs along a walk, with time running to the right.

        Args:
            trajectory: [frames, B, *shape].
            times: The times of the frames.
        """
        rows = self._film_rows(trajectory.shape[1])
        drawing, axes = pictures.figure((1.1 * len(times), self._film_height * rows + 0.5), (rows, len(times)))
        drawing.suptitle(r"predicted $x_0$ at time t, from noise (left) to data (right)", fontsize=8)
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
        """The pictures of an animation: states on the left, beliefs on the right, and the time.

        Args:
            states: [frames, B, *shape], scaled to about unit variance.
            beliefs: [frames, B, *shape].
            times: The times of the frames.

        Returns:
            [frames] pictures of equal size.
        """
        both = torch.stack([states, beliefs])
        # All values are within the picture.
        extent = 1.05 * float(self._film_values(both.flatten(0, 2)).abs().max().clamp(min=1.0))
        return [
            pictures.side_by_side(
                {
                    f"x_t, t = {t:.3g}": self._draw_frame(state, extent),
                    "E[x_0 | x_t]": self._draw_frame(belief, extent),
                },
                26,
                8,
                14,
            )
            for state, belief, t in zip(states, beliefs, times, strict=True)
        ]

    _film_height: ClassVar[float] = 1.1  # of a row, in inches

    def _film_rows(self, n: int) -> int:
        """Number of rows of the film strip of n samples: one for each."""
        return n

    def _film_values(self, x: Tensor) -> Tensor:
        """The values of [B, *shape] that the film shows on axes."""
        return x

    def _film_limits(self, trajectory: Tensor) -> tuple[list[float], list[float]]:
        """Ends of the film strip's axes."""
        return pictures.limits(self._film_values(trajectory.flatten(0, 1)).reshape(-1, 1).float())

    @abstractmethod
    def _plot_frame(self, panel: Any, x: Tensor, row: int, ends: tuple[list[float], list[float]]) -> None:
        """Plot samples [B, *shape] in a panel of a row of the film strip."""

    @abstractmethod
    def _draw_frame(self, x: Tensor, extent: float) -> Image:
        """A picture of samples [B, *shape], about 260 pixels wide, on axes from -extent to extent."""
