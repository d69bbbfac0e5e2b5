"""Images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from sde_diffusion.modality import pictures, restored, strips
from sde_diffusion.modality.base import Array, Modality
from sde_diffusion.modality.levels import from_levels, to_levels
from sde_diffusion.modality.units import Units

_WIDEST = 16  # variations of an image in a row of a picture, at most


class Images(Modality):
    """Images [C, H, W], clamped to [-1, 1].

    They are stored as uint8 [N, H, W, C] on 0 ... 255 if the data have levels, else as float32 in the data's own units.
    Metrics get them on [-1, 1], as feature extractors expect.

    Args:
        shape: [C, H, W].
        levels: See `Modality`.
        units: See `Modality`.
        eight_bits: Whether they are stored as uint8; by default if the data have levels.
    """

    unit, axes = "images", "CHW"
    most_drawn = 256
    bounded = True
    mirrored = True

    def __init__(
        self,
        shape: Sequence[int],
        levels: int | None = None,
        units: Units | None = None,
        eight_bits: bool | None = None,
    ) -> None:
        super().__init__(shape, levels, units)
        self.eight_bits = self.levels is not None if eight_bits is None else eight_bits

    @property
    def in_pictures(self) -> bool:
        """Whether there are 1 or 3 channels."""
        return self.shape[0] in (1, 3)

    @property
    def _metric_scale(self) -> float:
        return 1.0

    def to_file(self, x: Tensor) -> Array:
        """Samples [B, C, H, W] as stored in `samples.npz`, [B, H, W, C]."""
        # Fewer levels are stored on 256: if rounding differs, then by 1 of 255. Masks have no grey levels.
        if not self.eight_bits:
            return self.in_own_units(self.as_data(x.float())).movedim(1, -1).contiguous().numpy()
        return to_uint8(self.as_data(x.float()) if self.levels == 2 else x).numpy()

    def from_file(self, y: Tensor) -> Tensor:
        """Map stored samples [B, H, W, C], uint8 or float, to the values that models take, [B, C, H, W]."""
        x = y.movedim(-1, 1)
        return super().from_file(x) if x.is_floating_point() else from_levels(x, 256)

    def check_file(self, array: Array) -> str:
        """What is wrong with an array of a file; "" if it can hold samples."""
        floats = self.levels is None and array.dtype.kind == "f"
        if (array.dtype == np.uint8 or floats) and array.ndim == 4:
            return ""
        also = ", or floats in the data's own units" if self.levels is None else ""
        return f"images must be uint8 [N, H, W, C] on 0 ... 255{also}; got {array.dtype} {list(array.shape)}"

    def shape_in_file(self, array: Array) -> tuple[int, ...]:
        """[C, H, W] of an array [N, H, W, C]."""
        return (array.shape[-1], *array.shape[1:-1])

    def arrange(self, array: Array) -> Array | None:
        """Images of a user's file, [N, C, H, W], [N, H, W, C], [N, D] or of one channel [N, H, W]."""
        found = super().arrange(array)
        if found is None and array.shape[1:] == (*self.shape[1:], self.shape[0]):
            return np.moveaxis(array, -1, 1)
        return found

    def draw(self, x: Tensor) -> Image:
        """A grid of images."""
        return pictures.image_grid(to_uint8(x))

    def draw_edits(self, x: Tensor, reference: Tensor) -> Image:
        """For each image one or more rows: the image, and its variations."""
        rows = math.ceil(x.shape[1] / _WIDEST)
        width = math.ceil(x.shape[1] / rows)
        tiles = x.new_ones(len(x), rows * (width + 1), *self.shape)
        variations = torch.arange(x.shape[1])
        tiles[:, variations // width * (width + 1) + variations % width + 1] = x
        tiles[:, 0] = reference
        grid = pictures.image_grid(to_uint8(tiles.flatten(0, 1)), columns=width + 1)
        edge = grid.width // (width + 1)
        given, edited = grid.crop((0, 0, edge, grid.height)), grid.crop((edge, 0, *grid.size))
        return pictures.side_by_side({"given": given, f"edited: {x.shape[1]} of each": edited}, 24, 12, 16)

    def beside(self, x: Tensor, reference: Tensor, *, names: tuple[str, str] = ("samples", "data")) -> Image:
        """Two grids of images of the same size; of the second at most as many as of the first."""
        sets = {f"{name}: {len(some)} images": some for name, some in zip(names, (x, reference[: len(x)]), strict=True)}
        columns = math.ceil(math.sqrt(len(x)))  # of both, so that they are enlarged by the same factor
        grids = {name: pictures.image_grid(to_uint8(some), columns=columns) for name, some in sets.items()}
        return pictures.side_by_side(grids, 24, 12, 16)

    def draw_rows(self, x: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Image:
        """A picture of images [R, n, C, H, W] in rows and columns with these names."""
        return strips.images(x, rows, columns)

    def draw_posterior(
        self, draws: Tensor, measured: Tensor | None = None, truth: Tensor | None = None, known: Tensor | None = None
    ) -> Image:
        """A row for each: what was measured, the truth, draws, their mean, and the spread of each pixel."""
        return restored.rows(draws, measured, truth, known)

    def _plot_frame(self, panel: Any, x: Tensor, row: int, ends: tuple[list[float], list[float]]) -> None:
        picture = to_uint8(x[row : row + 1])[0]
        colours = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., 0]
        panel.imshow(colours, cmap="gray", vmin=0, vmax=255)

    def _draw_frame(self, x: Tensor, extent: float) -> Image:
        return pictures.image_grid(to_uint8(x), 260)


def to_uint8(x: Tensor) -> Tensor:
    """Images on [-1, 1] as integers on 0 ... 255, clamped, then rounded: round(127.5 (x + 1)).

    Args:
        x: [B, C, H, W], float.

    Returns:
        [B, H, W, C], uint8.
    """
    return to_levels(x, 256).movedim(1, -1).cpu().contiguous()
