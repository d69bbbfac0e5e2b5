"""Pictures of draws given measurements, for `Modality.draw_posterior`.

All functions take draws [N, n, *shape], measurements [N, *] (which are data of perhaps another size), the truth
[N, *shape], and where the measurements are known, bool [*shape]; all but the draws may be None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sde_diffusion.modality import pictures
from sde_diffusion.modality.levels import to_levels

if TYPE_CHECKING:
    from sde_diffusion.modality.base import Modality

_ROWS, _DRAWS, _SIDE = 12, 8, 88  # items and draws in a picture of images; the least width of each, in pixels
_PANELS, _CHANNELS = 6, 3  # items and channels in a picture of other data


def rows(draws: Tensor, measured: Tensor | None, truth: Tensor | None, known: Tensor | None) -> Image.Image:
    """Images: a row for each item, the measurement (blue where nothing is known), truth, draws, mean, spread and error.

    The spread is the draws' standard deviation, and the error is the mean minus the truth; of both, root mean squares
    over the channels, in the colours of the scale on the right.
    """
    draws, n = draws[:_ROWS].clamp(-1, 1), min(_DRAWS, draws.shape[1])
    zoom = max(1, math.ceil(_SIDE / draws.shape[-1]))
    size = (zoom * draws.shape[-1], zoom * draws.shape[-2])
    panels: dict[str, Image.Image] = {}
    if measured is not None:
        hole = None
        if known is not None:
            hole = Image.fromarray((~known).any(0).numpy().repeat(zoom, 0).repeat(zoom, 1))
        panels["measured"] = _column(measured[: len(draws)], size, hole)
    columns, amounts = {f"draw {number}": draws[:, number] for number in range(n)}, {}
    if draws.shape[1] > 1:
        columns["mean"], amounts["spread"] = draws.mean(1), _over_channels(draws.std(1))
    if truth is not None:
        columns = {"truth": truth[: len(draws)], **columns}
        amounts["error"] = _over_channels(draws.mean(1) - truth[: len(draws)])
    largest = max((float(values.max()) for values in amounts.values()), default=0.0) or 1.0
    columns |= {title: _heat(values / largest) for title, values in amounts.items()}
    panels |= {title: _column(values, size) for title, values in columns.items()}
    scale = {"on [-1, 1]": _scale(largest, size[1])} if amounts else {}
    return pictures.side_by_side(panels | scale, 22, 6, 13)


def _over_channels(x: Tensor) -> Tensor:
    """Root mean square over the channels of pictures, [N, C, H, W] -> [N, 1, H, W]."""
    return x.square().mean(1, keepdim=True).sqrt()


def _heat(amount: Tensor) -> Tensor:
    """Amounts [N, 1, H, W] as colours [N, 3, H, W]: 0 is black, then red and yellow; 1 and more is white."""
    return 2 * (3 * amount - torch.arange(3.0)[:, None, None]).clamp(0, 1) - 1


def _scale(largest: float, height: int) -> Image.Image:
    """The colours of `_heat` from 0 to `largest`, with numbers."""
    colours = _column(_heat(torch.linspace(1, 0, height)[None, None, :, None]), (14, height))
    scale = Image.new("RGB", (76, height), "white")
    scale.paste(colours, (4, 0))
    for share in (0, 0.5, 1):
        where = (24, 6 + (1 - share) * (height - 14))
        ImageDraw.Draw(scale).text(where, f"{share * largest:.2g}", "black", ImageFont.load_default(size=13), "lm")
    return scale


def _column(images: Tensor, size: tuple[int, int], hole: Image.Image | None = None) -> Image.Image:
    """Pictures [N, C, H, W] below one another, each enlarged to `size`, with blue where `hole` is true."""
    found = to_levels(images, 256).movedim(1, -1).cpu()
    colours = found[..., :3] if found.shape[-1] >= 3 else found[..., :1].expand(-1, -1, -1, 3)
    column = Image.new("RGB", (size[0], (size[1] + 6) * len(images)), "white")
    for row, colour in enumerate(colours):
        tile = Image.fromarray(colour.numpy().copy()).resize(size, Image.Resampling.NEAREST)
        if hole is not None:
            tile.paste((70, 100, 170), (0, 0), hole)
        column.paste(tile, (0, row * (size[1] + 6)))
    return column


def scatter(
    modality: Modality, draws: Tensor, measured: Tensor | None, truth: Tensor | None, known: Tensor | None
) -> Image.Image:
    """Points in two dimensions: a panel for each item, with a line at a coordinate that is known."""
    x, y, t = (None if one is None else modality.in_own_units(one[:_PANELS]) for one in (draws, None, truth))
    assert x is not None
    if measured is not None and known is not None:
        y = modality.in_own_units(measured[:_PANELS])
    low, high = pictures.limits(torch.cat([x.flatten(0, 1)] + ([] if t is None else [t])))

    def plot(panel: Any, item: int) -> None:
        panel.plot(*x[item].T.numpy(), ".", color="tab:blue", markersize=3, alpha=0.6, label="draws")
        if y is not None and known is not None:
            for axis, line in ((0, panel.axvline), (1, panel.axhline)):
                if bool(known[axis]):
                    line(float(y[item, axis]), color="tab:orange", linewidth=1, label="measured")
        panel.plot(*x[item].mean(0).tolist(), "P", color="tab:purple", markersize=8, label="mean")
        if t is not None:
            panel.plot(*t[item].tolist(), "*", color="black", markersize=10, label="truth")
        panel.set_xlim(low[0], high[0])
        panel.set_ylim(low[1], high[1])
        panel.set_box_aspect(1)

    return _panels(len(x), 1, (2.6, 2.6), plot)


def error_bars(
    modality: Modality, draws: Tensor, measured: Tensor | None, truth: Tensor | None, known: Tensor | None
) -> Image.Image:
    """Any data: a panel for each item, with the draws of each number one beside the other, on the model's scale."""
    x, t = draws[:_PANELS].flatten(2), None if truth is None else truth[:_PANELS].flatten(1)
    y = None if measured is None or known is None else measured[:_PANELS].flatten(1)
    low, high = pictures.limits(x.reshape(-1, 1) if t is None else torch.cat([x.flatten(), t.flatten()])[:, None])
    places = np.arange(x.shape[2])

    def plot(panel: Any, item: int) -> None:
        panel.plot(places, x[item].T.numpy(), "_", color="tab:blue", alpha=0.5, markersize=8)
        panel.plot(places, x[item].mean(0).numpy(), "P", color="tab:purple", markersize=6, label="mean of the draws")
        if y is not None and known is not None:
            where = known.flatten().numpy()
            panel.plot(places[where], y[item].numpy()[where], "s", color="tab:orange", mfc="none", label="measured")
        if t is not None:
            panel.plot(places, t[item].numpy(), "*", color="black", markersize=8, label="truth")
        panel.set_xlim(-0.5, len(places) - 0.5)
        panel.set_ylim(low[0], high[0])
        panel.set_xlabel("number", fontsize=8)

    return _panels(len(x), 1, (3.2, 2.2), plot)


def waveforms(
    modality: Modality, draws: Tensor, measured: Tensor | None, truth: Tensor | None, known: Tensor | None
) -> Image.Image:
    """Signals: a panel for each item and channel."""
    x = modality.in_own_units(draws[:_PANELS])[:, :, :_CHANNELS]
    t = None if truth is None else modality.in_own_units(truth[:_PANELS])
    y = None if measured is None else modality.in_own_units(measured[:_PANELS])
    channels, length = x.shape[2:]

    def plot(panel: Any, place: int) -> None:
        item, channel = divmod(place, channels)
        panel.plot(x[item, :, channel].T.numpy(), color="tab:blue", linewidth=0.6, alpha=0.6)
        panel.plot(x[item, :, channel].mean(0).numpy(), color="tab:purple", linewidth=1.4, label="mean of the draws")
        if t is not None:
            panel.plot(t[item, channel].numpy(), color="black", linewidth=1, linestyle=":", label="truth")
        if y is not None and channel < y.shape[1]:
            values = y[item, channel].numpy()
            steps = (np.arange(len(values)) + 0.5) * length / len(values) - 0.5
            where = np.ones(len(values), bool) if known is None else known[channel].numpy()
            panel.plot(steps[where], values[where], ".", color="tab:orange", markersize=4, label="measured")
        panel.grid(alpha=0.25)

    return _panels(len(x), channels, (3.6, 1.6), plot)


def _panels(items: int, each: int, size: tuple[float, float], plot: Callable[[Any, int], None]) -> Image.Image:
    """Panels for some items, up to three in a row, or those of each item in a row of their own; with one legend."""
    columns = each if each > 1 else min(3, items)
    grid = (math.ceil(items * each / columns), columns)
    drawing, axes = pictures.figure((size[0] * grid[1] + 0.4, size[1] * grid[0] + 0.6), grid)
    panels = [panel for row in axes for panel in row]
    for place, panel in enumerate(panels):
        if place < items * each:
            plot(panel, place)
            panel.tick_params(labelsize=7)
        else:
            panel.set_axis_off()
    handles, words = panels[0].get_legend_handles_labels()
    kept = dict(zip(words, handles, strict=True))
    drawing.legend(kept.values(), kept.keys(), loc="outside lower center", ncols=len(kept), fontsize=8, frameon=False)
    return pictures.render(drawing)
