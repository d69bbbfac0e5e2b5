"""Pictures a person can look at: grids of images, scatter plots of points, loss curves."""

from __future__ import annotations

import csv
import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sde_diffusion.levels import to_levels
from sde_diffusion.storage.files import writing


def to_uint8(x: Tensor) -> Tensor:
    """Images on [-1, 1] as integers on 0 ... 255, clamped, then rounded: round(127.5 (x + 1)).

    Args:
        x: [B, C, H, W], float.

    Returns:
        [B, H, W, C], uint8.
    """
    return to_levels(x, 256).movedim(1, -1).cpu().contiguous()


def image_grid(images: Tensor, min_side: int = 640) -> Image.Image:
    """A square-ish grid of images with a thin border, small images enlarged to whole multiples.

    Args:
        images: [B, H, W, C], uint8. Three or more channels show as the first three colours, fewer as the first in grey.
        min_side: Least width of the grid in pixels.

    Returns:
        The picture.
    """
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    zoom = max(1, math.ceil(min_side / (columns * (width + 1))))
    tiles = np.full((rows * columns, height * zoom + 1, width * zoom + 1, 3), 64, dtype=np.uint8)
    colours = images[..., :3] if channels >= 3 else images[..., :1].expand(-1, -1, -1, 3)
    tiles[:n, :-1, :-1] = colours.numpy().repeat(zoom, axis=1).repeat(zoom, axis=2)
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return Image.fromarray(tiles.reshape(rows * tiles.shape[1], -1, 3))


def scatter(points: Tensor, reference: Tensor | None = None) -> Image.Image:
    """A scatter plot of the first two coordinates, beside those of reference data where given, on the same axes.

    Args:
        points: [B, D], D >= 1; of one coordinate a histogram.
        reference: [N, D] or None.

    Returns:
        The picture.
    """
    sets = {"samples": points, **({} if reference is None else {"data": reference})}
    sets = {name: data.detach().float().cpu() for name, data in sets.items()}
    figure, (panels,) = _figure((4.5 * len(sets), 4.5), (1, len(sets)))
    low, high = _limits(torch.cat(list(sets.values()))[:, :2])
    for panel, (name, data) in zip(panels, sets.items(), strict=True):
        panel.set_title(f"{name} ({len(data)})")
        panel.set_xlabel("$x_1$")
        panel.locator_params(axis="x", nbins=5)
        panel.set_xlim(low[0], high[0])
        if data.shape[1] == 1:
            panel.hist(data[:, 0].numpy(), bins=np.linspace(low[0], high[0], 41), density=True)
            panel.set_ylabel("density")
            continue
        panel.plot(data[:, 0], data[:, 1], ".", color="0.5" if name == "data" else "tab:blue", markersize=2)
        panel.set_ylabel("$x_2$" if data.shape[1] == 2 else f"$x_2$ (2 of {data.shape[1]} columns)")
        panel.set_ylim(low[1], high[1])
        panel.set_box_aspect(1)
    return _render(figure)


def _limits(x: Tensor) -> tuple[list[float], list[float]]:
    """Ends of axes [D] that hold points [N, D], with a margin: of equal length unless columns differ fivefold."""
    low, high = x.double().amin(0), x.double().amax(0)
    length = (high - low).clamp(min=1e-300)
    if float(length.max()) < 5 * float(length.min()):
        length = length.max().expand_as(length)
    middle, half = (low + high) / 2, 0.53 * length
    return (middle - half).tolist(), (middle + half).tolist()


def draw(x: Tensor) -> Image.Image:
    """A picture of a batch: a grid for images [B, C, H, W], a scatter plot for vectors [B, D]."""
    return image_grid(to_uint8(x)) if x.ndim == 4 else scatter(x.flatten(1))


def beside(x: Tensor, reference: Tensor) -> Image.Image:
    """Samples [B, ...] on the left and data [N, ...] on the right, with titles: grids of images, or scatter plots."""
    if x.ndim != 4:
        return scatter(x.flatten(1), reference.flatten(1))
    sets = {"samples": x, "data": reference}
    grids = {name: image_grid(to_uint8(images)) for name, images in sets.items()}
    title, gap = 24, 12
    width = sum(grid.width for grid in grids.values()) + gap
    picture = Image.new("RGB", (width, title + max(grid.height for grid in grids.values())), "white")
    left = 0
    for name, grid in grids.items():
        picture.paste(grid, (left, title))
        font = ImageFont.load_default(size=16)
        ImageDraw.Draw(picture).text((left + 4, 2), f"{name} ({len(sets[name])})", "black", font)
        left += grid.width + gap
    return picture


def film_strip(trajectory: Tensor, times: list[float]) -> Image.Image:
    """Beliefs along a walk: a row for each sample, time running to the right; for vectors a scatter plot a frame.

    Args:
        trajectory: [frames, B, *dims], images or vectors.
        times: The frames' times.

    Returns:
        The picture.
    """
    frames, n = trajectory.shape[:2]
    images = trajectory.ndim == 5
    figure, axes = _figure((1.1 * frames, 1.1 * n + 0.5 if images else 1.8), (n if images else 1, frames))
    low, high = ([], []) if images else _limits(trajectory.flatten(2)[..., :2].flatten(0, 1).float())  # of all frames
    figure.suptitle(r"belief $E[x_0 \mid x_t]$ along the walk", fontsize=8)
    for column, t in enumerate(times):
        axes[0][column].set_title(f"t = {t:.3g}", fontsize=7)
        for row in range(len(axes)):
            panel = axes[row][column]
            panel.set_xticks([])
            panel.set_yticks([])
            if images:
                picture = to_uint8(trajectory[column, row : row + 1])[0]
                panel.imshow(
                    picture[..., :3] if picture.shape[-1] >= 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255
                )
            else:
                points = trajectory[column].flatten(1).float()
                panel.plot(points[:, 0], points[:, min(1, points.shape[1] - 1)], ".", markersize=2)
                panel.set_xlim(low[0], high[0])
                panel.set_ylim(low[-1], high[-1])
                panel.set_box_aspect(1)
    return _render(figure)


def film_frames(states: Tensor, beliefs: Tensor, times: list[float]) -> list[Image.Image]:
    """The pictures of a film: on the left the states, on the right the beliefs, with the time; points on fixed axes.

    Args:
        states: [frames, B, *dims], images or vectors, of about unit size.
        beliefs: Of the same shape.
        times: The frames' times.

    Returns:
        [frames] pictures of one size.
    """
    title, gap, side = 26, 8, 260
    font = ImageFont.load_default(size=14)
    both = torch.stack([states, beliefs]).flatten(3)[..., :2]
    extent = 1.05 * float(both.abs().max().clamp(min=1.0))  # nothing leaves the picture
    frames = []
    for state, belief, t in zip(states, beliefs, times, strict=True):
        panels = [
            image_grid(to_uint8(x), side) if x.ndim == 4 else _dots(x.flatten(1), extent, side) for x in (state, belief)
        ]
        width, height = panels[0].size
        frame = Image.new("RGB", (2 * width + gap, title + height), "white")
        for left, panel, words in ((0, panels[0], f"x_t, t = {t:.3g}"), (width + gap, panels[1], "E[x_0 | x_t]")):
            frame.paste(panel, (left, title))
            ImageDraw.Draw(frame).text((left + 4, 4), words, "black", font)
        frames.append(frame)
    return frames


def _dots(points: Tensor, extent: float, side: int) -> Image.Image:
    """The first two coordinates of points [B, D] (one: along a line) on axes from -extent to extent."""
    x = points.float()
    x = (0.5 + 0.5 * (x[:, :2] if x.shape[1] > 1 else x * x.new_tensor([[1.0, 0.0]])) / extent) * side
    picture = Image.new("RGB", (side, side), (245, 245, 245))
    pen = ImageDraw.Draw(picture)
    for across, up in x.clamp(-9, side + 9).tolist():
        pen.ellipse((across - 2, side - up - 2, across + 2, side - up + 2), fill=(31, 119, 180))
    return picture


def save_film(frames: list[Image.Image], path: Path, milliseconds: int = 80, rest: int = 1500) -> None:
    """Write an animated GIF that plays for ever and rests on its last picture, whole or not at all."""
    durations = [milliseconds] * (len(frames) - 1) + [rest]
    with writing(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False
        )


def loss_plot(metrics_csv: Path) -> Image.Image:
    """Training and validation loss over steps, from the `metrics.csv` of a run."""
    figure, ((axes,),) = _figure((6.0, 4.0))
    with metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for key, colour in (("train/loss", "0.6"), ("val/loss", "tab:blue")):
        curve = [(int(row["step"]) + 1, float(row[key])) for row in rows if row.get(key)]  # Lightning counts from 0
        if curve:
            axes.plot(*zip(*curve, strict=True), label=key, color=colour, marker="o" if len(curve) < 3 else None)
        if curve and key == "val/loss":
            step, loss = min(curve, key=operator.itemgetter(1))
            axes.plot([step], [loss], "*", color="tab:orange", markersize=12, label=f"lowest, step {step:,}: best.ckpt")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.legend()
    return _render(figure)


def loss_by_level(rows: list[dict[str, float]], most: int = 6) -> Image.Image:
    """Loss against log-SNR, a curve for each of some steps (first to last, dark to bright).

    Args:
        rows: Dicts of `step`, `log_snr` and `loss`.
        most: Curves, at most.

    Returns:
        The picture.
    """
    figure, ((axes,),) = _figure((6.0, 4.0))
    steps = sorted({int(row["step"]) for row in rows})
    shown = [steps[round(i * (len(steps) - 1) / max(1, most - 1))] for i in range(most)]
    for index, step in enumerate(dict.fromkeys(shown)):
        curve = [(row["log_snr"], row["loss"]) for row in rows if row["step"] == step]
        shade = f"C{index}" if len(steps) == 1 else (0.1 + 0.13 * index, 0.25 + 0.09 * index, 0.55)
        axes.plot(*zip(*curve, strict=True), ".-", color=shade, label=f"step {step:,}")
    axes.set_xlabel(r"$\log(\alpha^2 / \sigma^2)$: noise on the left, data on the right")
    axes.set_ylabel("validation loss")
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.legend()
    return _render(figure)


def histogram(values: dict[str, Tensor], label: str) -> Image.Image:
    """Histograms over one another of several sets of numbers [N], by name, on common bins."""
    figure, ((axes,),) = _figure((6.0, 4.0))
    low, high = (float(end(end(numbers) for numbers in values.values())) for end in (min, max))
    bins = min(50, max(10, round(2 * max(map(len, values.values())) ** 0.5)))  # few items in many bins are spikes
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for index, (name, numbers) in enumerate(values.items()):
        style: dict[str, Any] = {"histtype": "stepfilled", "lw": 1.5, "ec": f"C{index}", "fc": (f"C{index}", 0.15)}
        legend = f"{name}: mean {float(numbers.mean()):.3f} ({len(numbers)})"
        axes.hist(numbers.numpy(), bins=edges, density=True, label=legend, **style)
    axes.set_xlabel(label)
    axes.set_ylabel("density")
    axes.legend()
    return _render(figure)


def plain_numbers(axis: Any) -> None:
    """Plain numbers on a logarithmic axis: 0.3 and not 3 x 10^-1."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if high < 3 * low:  # a logarithmic locator would place one number there, or none
        axis.set_major_locator(MaxNLocator(6))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with writing(path) as temporary:
        picture.save(temporary, format="PNG")


def _figure(size: tuple[float, float], panels: tuple[int, int] = (1, 1)) -> tuple[Any, Any]:
    # Matplotlib costs half a second: imported where a plot is drawn. No pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=110)
    return figure, figure.subplots(*panels, squeeze=False)


def _render(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
