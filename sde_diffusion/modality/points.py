"""Points and other vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sde_diffusion.checks import check_sizes
from sde_diffusion.modality import pictures, restored
from sde_diffusion.modality.base import Modality

SIDE = 260
"""Width of a picture of a film, in pixels."""


class Points(Modality):
    """Points [D], rows of a table, and all data without a kind of their own; drawn by their first two coordinates.

    They are stored as float32 [N, D] in the data's own units.

    Args:
        shape: [D]; items with more axes are treated as vectors of all their numbers.
        levels: See `Modality`.
        units: See `Modality`; each of the D columns may have a range of its own.
    """

    unit, axes = "points", "D"
    few_dimensions = True
    _film_height = 1.3

    @classmethod
    def check_shape(cls, shape: Sequence[int]) -> tuple[int, ...]:
        """Any shape."""
        return check_sizes("shape", shape, "a list of positive sizes", least=1, most=math.inf)

    def extractor(self, n: int) -> str:
        """`pixels`, the points themselves, if there are ten or more for each dimension; otherwise `pca`."""
        return "pixels" if n >= 10 * math.prod(self.shape) else "pca"

    def draw(self, x: Tensor) -> Image.Image:
        """A scatter plot of the first two coordinates; of one coordinate a histogram."""
        return self._scatter({"samples": x})

    def beside(self, x: Tensor, reference: Tensor, *, names: tuple[str, str] = ("samples", "data")) -> Image.Image:
        """Two scatter plots on the same axes."""
        return self._scatter(dict(zip(names, (x, reference), strict=True)))

    def _scatter(self, sets: dict[str, Tensor]) -> Image.Image:
        shown = {name: self.in_own_units(x).flatten(1).detach().cpu() for name, x in sets.items()}
        drawing, (panels,) = pictures.figure((4.5 * len(sets), 4.5), (1, len(sets)))
        low, high = pictures.limits(torch.cat(list(shown.values()))[:, :2])
        for panel, (name, data), colour in zip(panels, shown.items(), ("tab:blue", "0.5"), strict=False):
            panel.set_title(f"{name}: {len(data):,} points")
            size = data.shape[1]
            panel.set_xlabel("$x_1$" if size <= 2 else f"column 1 of {size}")
            panel.locator_params(axis="x", nbins=5)
            panel.set_xlim(low[0], high[0])
            if size == 1:
                panel.hist(data[:, 0].numpy(), bins=np.linspace(low[0], high[0], 41), density=True)
                panel.set_ylabel("density")
                continue
            panel.plot(data[:, 0], data[:, 1], ".", color=colour, markersize=2 if len(data) > 50 else 5)
            panel.set_ylabel("$x_2$" if size == 2 else f"column 2 of {size}")
            panel.set_ylim(low[1], high[1])
            panel.set_box_aspect(1)
        return pictures.render(drawing)

    def draw_posterior(
        self, draws: Tensor, measured: Tensor | None = None, truth: Tensor | None = None, known: Tensor | None = None
    ) -> Image.Image:
        """A panel for each: a scatter plot in two dimensions, or else each number with its draws."""
        plot = restored.scatter if self.shape == (2,) else restored.error_bars
        return plot(self, draws, measured, truth, known)

    def _film_rows(self, n: int) -> int:
        return 1  # all points are in one panel

    def _film_values(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]

    def _film_limits(self, trajectory: Tensor) -> tuple[list[float], list[float]]:
        return pictures.limits(self._film_values(trajectory.flatten(0, 1)).float())

    def _plot_frame(self, panel: Any, x: Tensor, row: int, ends: tuple[list[float], list[float]]) -> None:
        low, high = ends
        points = self._film_values(x).float()
        panel.plot(points[:, 0], points[:, -1], ".", markersize=2)
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[-1], high[-1])
        panel.set_box_aspect(1)

    def _draw_frame(self, x: Tensor, extent: float) -> Image.Image:
        points = self._film_values(x).float()
        if points.shape[1] == 1:  # along a line
            points = torch.cat([points, torch.zeros_like(points)], 1)
        picture = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
        pen = ImageDraw.Draw(picture)
        for across, up in ((0.5 + 0.5 * points / extent) * SIDE).clamp(-9, SIDE + 9).tolist():
            pen.ellipse((across - 2, SIDE - up - 2, across + 2, SIDE - up + 2), fill=(31, 119, 180))
        return picture
