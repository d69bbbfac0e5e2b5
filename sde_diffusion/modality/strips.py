"""Pictures of items in named rows and columns, for `Modality.draw_rows`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sde_diffusion.modality import pictures
from sde_diffusion.modality.levels import to_levels

if TYPE_CHECKING:
    from sde_diffusion.modality.base import Modality

_SIDE, _GAP, _TITLE, _FONT = 56, 4, 20, 12  # in pixels: least side of an image, gaps, height of titles, font size


def images(x: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Images [R, n, C, H, W] on [-1, 1]; small ones are enlarged by an integer factor."""
    colours = to_levels(x, 256).movedim(2, -1).cpu()
    colours = colours[..., :3] if x.shape[2] >= 3 else colours[..., :1].expand(*colours.shape[:-1], 3)
    zoom = max(1, math.ceil(_SIDE / min(x.shape[-2:])))
    height, width = (zoom * side for side in x.shape[-2:])
    font = ImageFont.load_default(size=_FONT)
    left = 2 * _GAP + math.ceil(max(font.getlength(name) for name in rows))
    size = (left + (width + _GAP) * len(columns), _TITLE + (height + _GAP) * len(rows))
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for column, title in enumerate(columns):
        pen.text((left + (width + _GAP) * column + width / 2, _TITLE / 2), title, "black", font, "mm")
    for row, name in enumerate(rows):
        top = _TITLE + (height + _GAP) * row
        pen.text((_GAP, top + height / 2), name, "black", font, "lm")
        for column in range(len(columns)):
            tile = Image.fromarray(colours[row, column].contiguous().numpy())
            picture.paste(tile.resize((width, height), Image.Resampling.NEAREST), (left + (width + _GAP) * column, top))
    return picture


def plots(modality: Modality, x: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Items of any kind [R, n, *shape], each in a panel, on the same axes."""
    drawing, axes = pictures.figure((1.1 * len(columns) + 0.8, 1.2 * len(rows) + 0.4), (len(rows), len(columns)))
    ends = modality._film_limits(x.cpu())
    for row, name in enumerate(rows):
        axes[row][0].set_ylabel(name, fontsize=7)
        for column, title in enumerate(columns):
            panel = axes[row][column]
            if row == 0:
                panel.set_title(title, fontsize=7)
            panel.set_xticks([])
            panel.set_yticks([])
            modality._plot_frame(panel, x[row, column][None].cpu(), 0, ends)
    return pictures.render(drawing)
