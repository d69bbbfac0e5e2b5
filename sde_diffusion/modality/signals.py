"""Signals: sequences of numbers, of one or more channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sde_diffusion.modality import pictures, restored
from sde_diffusion.modality.base import Modality

_MOST = 12  # waveforms in a picture
_CHANNELS = 4  # at most, that are drawn
_LAGS = 200  # at most, of an autocorrelation
_FILM = (260, 104, 6)  # width and height of a waveform in pixels, and how many
_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))


class Signals(Modality):
    """Signals [C, L]: L numbers in each of C channels, in time or along a line.

    They are stored as float32 [N, C, L] in the data's own units, and drawn as waveforms, with a colour for each
    channel.

    Args:
        shape: [C, L].
        levels: See `Modality`.
        units: See `Modality`; one range for all channels.
    """

    unit, axes = "signals", "CL"

    def draw(self, x: Tensor) -> Image.Image:
        """The first twelve waveforms, each in a panel, on the same scale."""
        x = self._shown(x)
        columns = min(4, math.ceil(math.sqrt(len(x))))
        rows = math.ceil(min(len(x), _MOST) / columns)
        drawing = pictures.blank_figure((2.4 * columns + 0.6, 1.35 * rows + 0.7))
        self._waveforms(drawing, x, (rows, columns), _ends(x))
        if len(x) > rows * columns:
            drawing.suptitle(f"the first {rows * columns} signals", fontsize=10)
        self._name_channels(drawing)
        return pictures.render(drawing)

    def beside(self, x: Tensor, reference: Tensor, *, names: tuple[str, str] = ("samples", "data")) -> Image.Image:
        """Waveforms of both on the same scale; below, the median and the 5% to 95% range at each step.

        Below that, the autocorrelation for each lag.
        """
        sets = dict(zip(names, map(self._shown, (x, reference)), strict=True))
        drawing = pictures.blank_figure((11, 8.2))
        top, middle, bottom = drawing.subfigures(3, 1, height_ratios=(4.4, 2, 2))
        ends = _ends(torch.cat(list(sets.values())))
        for part, (name, signals) in zip(top.subfigures(1, 2, wspace=0.03), sets.items(), strict=True):
            part.suptitle(f"{name}: {len(signals):,} signals", fontsize=11)
            self._waveforms(part, signals, (3, 2), ends)
        self._name_channels(top)
        shown = min(self.shape[0], _CHANNELS)
        for row, plot, words in (
            (middle, _quantiles, ("step", "median, 5% to 95%")),
            (bottom, _correlations, ("lag", "autocorrelation")),
        ):
            panels = row.subplots(1, shown, squeeze=False, sharey=True)[0]
            for channel, panel in enumerate(panels):
                for (name, signals), colour in zip(sets.items(), ("tab:purple", "0.35"), strict=True):
                    plot(panel, signals[:, channel], name, colour)
                panel.set_xlabel(words[0], fontsize=8)
                panel.tick_params(labelsize=7)
                if shown > 1:
                    panel.set_title(f"channel {channel + 1}", fontsize=8)
            panels[0].set_ylabel(words[1], fontsize=8)
            panels[0].legend(fontsize=7)
        return pictures.render(drawing)

    def draw_posterior(
        self, draws: Tensor, measured: Tensor | None = None, truth: Tensor | None = None, known: Tensor | None = None
    ) -> Image.Image:
        """A panel for each item and channel: the draws, their mean, the truth, and what was measured."""
        return restored.waveforms(self, draws, measured, truth, known)

    def _shown(self, x: Tensor) -> Tensor:
        """The channels of signals [B, C, L] that are drawn, in the data's own units."""
        return self.in_own_units(x)[:, :_CHANNELS].detach().cpu()

    def _waveforms(self, figure: Any, x: Tensor, grid: tuple[int, int], ends: tuple[float, float]) -> None:
        """Panels with the first waveforms of [B, C, L], in a figure or a part of one."""
        panels = figure.subplots(*grid, squeeze=False, sharex=True, sharey=True)
        for panel, signal in zip(panels.flat, x[: panels.size], strict=False):
            panel.plot(signal.T.numpy(), linewidth=1)
        for panel in panels.flat:
            panel.set_ylim(*ends)
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.25)
        for panel in panels[-1]:
            panel.set_xlabel("step", fontsize=8)
        for panel in panels[:, 0]:
            panel.set_ylabel("value", fontsize=8)
        for panel in panels.flat[len(x) :]:
            panel.set_axis_off()

    def _name_channels(self, figure: Any) -> None:
        from matplotlib.lines import Line2D

        channels = self.shape[0]
        if channels == 1:
            return
        lines = [Line2D([], [], color=f"C{k}", label=f"channel {k + 1}") for k in range(min(channels, _CHANNELS))]
        more = f"{_CHANNELS} of {channels} channels" if channels > _CHANNELS else None
        style = {"ncols": len(lines), "fontsize": 8, "title_fontsize": 8, "frameon": False}
        figure.legend(handles=lines, loc="outside lower center", title=more, **style)

    def _film_values(self, x: Tensor) -> Tensor:
        return x[:, :_CHANNELS]

    def _plot_frame(self, panel: Any, x: Tensor, row: int, ends: tuple[list[float], list[float]]) -> None:
        panel.plot(self._film_values(x)[row].float().T.numpy(), linewidth=0.7)
        panel.set_ylim(ends[0][0], ends[1][0])

    def _draw_frame(self, x: Tensor, extent: float) -> Image.Image:
        """Waveforms, one below the other."""
        width, height, most = _FILM
        shown = self._film_values(x[:most]).float().cpu()
        picture = Image.new("RGB", (2 * width, 2 * height * len(shown)), (245, 245, 245))  # halved below
        pen = ImageDraw.Draw(picture)
        across = torch.linspace(6, 2 * width - 7, shown.shape[-1]).tolist()
        for row, signal in enumerate(shown):
            middle = (2 * row + 1) * height
            pen.line((0, middle, 2 * width, middle), fill=(215, 215, 215), width=2)
            for colour, channel in reversed(list(zip(_COLOURS, signal, strict=False))):
                down = (middle - height * channel / extent).tolist()
                pen.line(list(zip(across, down, strict=True)), fill=colour, width=3)
            if row:
                pen.line((0, middle - height, 2 * width, middle - height), fill="white", width=6)
        return picture.resize((width, height * len(shown)), Image.Resampling.LANCZOS)


def _ends(x: Tensor) -> tuple[float, float]:
    """Ends of an axis for all values."""
    low, high = pictures.limits(x.reshape(-1, 1))
    return low[0], high[0]


def _quantiles(panel: Any, x: Tensor, name: str, colour: str) -> None:
    """Plot the median of signals [N, L] at each step, and the 5% to 95% band."""
    low, middle, high = np.quantile(x.numpy(), (0.05, 0.5, 0.95), axis=0)
    steps = range(x.shape[1])
    panel.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    panel.plot(steps, middle, color=colour, linewidth=1.2, label=name)


def _correlations(panel: Any, x: Tensor, name: str, colour: str) -> None:
    """Plot the autocorrelation of signals [N, L]: for each lag, the mean over the pairs of steps that far apart."""
    x = x.double()
    scaled = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-300)
    length = x.shape[1]
    lags = range(min(length // 2, _LAGS) + 1)
    found = [float((scaled[:, : length - lag] * scaled[:, lag:]).mean()) for lag in lags]
    panel.plot(lags, found, color=colour, linewidth=1.2, label=name)
