"""Functions for pictures: figures, grids, panels side by side, films, and the curves and histograms of a run."""

from __future__ import annotations

import csv
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sde_diffusion.storage.files import writing

_LOG_SNR = r"log-SNR, $\log(\alpha^2 / \sigma^2)$: noise on the left, data on the right"


def image_grid(images: Tensor, min_side: int = 640, columns: int | None = None) -> Image.Image:
    """A nearly square grid of images with a thin border; small images are enlarged by an integer factor.

    Args:
        images: [B, H, W, C], uint8. Of three or more channels the first three are shown as colours; of fewer, the first
            as grey.
        min_side: Smallest width of the grid in pixels.
        columns: Number of columns; None: nearly as many as rows.

    Returns:
        The picture.
    """
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = math.ceil(n / columns)
    zoom = max(1, math.ceil(min_side / (columns * (width + 1))))
    tiles = np.full((rows * columns, height * zoom + 1, width * zoom + 1, 3), 64, dtype=np.uint8)
    colours = images[..., :3] if channels >= 3 else images[..., :1].expand(-1, -1, -1, 3)
    tiles[:n, :-1, :-1] = colours.numpy().repeat(zoom, axis=1).repeat(zoom, axis=2)
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return Image.fromarray(tiles.reshape(rows * tiles.shape[1], -1, 3))


def limits(x: Tensor) -> tuple[list[float], list[float]]:
    """Ends of axes [D] for points [N, D], with a margin; of equal length unless the columns differ fivefold."""
    low, high = x.double().amin(0), x.double().amax(0)
    length = (high - low).clamp(min=1e-300)
    if float(length.max()) < 5 * float(length.min()):
        length = length.max().expand_as(length)
    middle, half = (low + high) / 2, 0.53 * length
    return (middle - half).tolist(), (middle + half).tolist()


def size_in_words(shape: Sequence[int]) -> str:
    """The size of pictures [C, H, W], such as "8x8, grey"."""
    colours = {1: "grey", 3: "RGB"}.get(shape[0], f"{shape[0]} channels")
    return f"{'x'.join(map(str, reversed(shape[1:])))}, {colours}"


def side_by_side(panels: dict[str, Image.Image], title: int, gap: int, size: int) -> Image.Image:
    """Pictures from left to right, each with its title above.

    Args:
        panels: The pictures by title.
        title: Height of the titles in pixels.
        gap: Pixels between the pictures.
        size: Font size in pixels.
    """
    font = ImageFont.load_default(size=size)
    width = sum(panel.width for panel in panels.values()) + gap * (len(panels) - 1)
    picture = Image.new("RGB", (width, title + max(panel.height for panel in panels.values())), "white")
    left = 0
    for words, panel in panels.items():
        picture.paste(panel, (left, title))
        ImageDraw.Draw(picture).text((left + 4, (title - size) // 2 - 2), words, "black", font)
        left += panel.width + gap
    return picture


def save_film(frames: list[Image.Image], path: Path, milliseconds: int = 80, rest: int = 1500) -> None:
    """Write an animated GIF atomically; it loops, and shows its last picture longer."""
    durations = [milliseconds] * (len(frames) - 1) + [rest]
    with writing(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False
        )


def loss_plot(metrics_csv: Path, axis: str = "loss") -> Image.Image:
    """Training and validation loss over steps, from the `metrics.csv` of a run; axis says what they are."""
    drawing, ((axes,),) = figure((6.0, 4.0))
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
    axes.set_ylabel(axis)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.legend()
    return render(drawing)


@dataclass(frozen=True)
class Curves:
    """What a picture shows of the logged metrics of a run.

    Attributes:
        metrics: Names of metrics, and the labels of their curves.
        axis: What they are, with its unit.
        what: What the picture shows, in words.
        factors: By which metrics are multiplied, by name; 1 for all others.
        top: Upper end of the axis; None: by the values.
    """

    metrics: Mapping[str, str]
    axis: str
    what: str
    factors: Mapping[str, float] = field(default_factory=dict)
    top: float | None = None

    def plot(self, metrics_csv: Path) -> Image.Image | None:
        """The curves over steps, from the `metrics.csv` of a run; None if it has none of the metrics."""
        with metrics_csv.open(newline="") as file:
            rows = list(csv.DictReader(file))
        drawing, ((axes,),) = figure((6.0, 4.0))
        highest = 1e-6
        for key, label in self.metrics.items():
            factor = self.factors.get(key, 1.0)
            curve = [(int(row["step"]) + 1, factor * float(row[key])) for row in rows if row.get(key)]
            if curve:
                highest = max(highest, *(value for _, value in curve))
                axes.plot(*zip(*curve, strict=True), "o-", markersize=3, label=f"{label}: {curve[-1][1]:.3g}")
        if not axes.lines:
            return None
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(self.axis)
        axes.set_ylim(bottom=0, top=self.top or 1.05 * highest)  # by its own rule, it would cut markers
        drawing.legend(loc="outside right upper")
        return render(drawing)


def loss_by_level(rows: list[dict[str, float]], most: int = 6) -> Image.Image:
    """Loss as a function of log-SNR, with a curve for each of several steps (first to last, dark to bright).

    Args:
        rows: Dicts of `step`, `log_snr` and `loss`.
        most: Largest number of curves.

    Returns:
        The picture.
    """
    drawing, ((axes,),) = figure((6.0, 4.0))
    _curves_by_step(axes, rows, lambda some: [(row["log_snr"], row["loss"]) for row in some], most, marker=".")
    axes.set_xlabel(_LOG_SNR)
    axes.set_ylabel("validation loss")
    if min(row["loss"] for row in rows) > 0:  # bounds on densities may be negative
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    axes.legend()
    return render(drawing)


def schedule(rows: list[dict[str, float]], most: int = 6) -> Image.Image:
    """A path's log-SNR as a function of time, and the density of the noise levels that training draws.

    Args:
        rows: Dicts of `step`, `share`, `log_snr` and `drawn`; see `LearnedSchedule`.
        most: Largest number of curves in each panel, for several steps.

    Returns:
        The picture.
    """
    drawing, ((path, density),) = figure((9.0, 4.0), (1, 2))
    _curves_by_step(path, rows, lambda some: [(row["share"], row["log_snr"]) for row in some], most)
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    style = {"color": "tab:orange", "ls": "--", "label": "noise levels drawn, last step"}
    path.plot([row["share"] for row in last], [row["drawn"] for row in last], **style)
    path.set_xlabel("time, from the first to the last (dashed: share of the draws)")
    path.set_ylabel("log-SNR")

    def slopes(some: list[dict[str, float]]) -> list[tuple[float, float]]:
        steps = [(a["drawn"], b["drawn"], b["share"] - a["share"]) for a, b in itertools.pairwise(some)]
        return [((high + low) / 2, share / (high - low)) for high, low, share in steps if high > low]

    _curves_by_step(density, rows, slopes, most)
    density.set_xlabel(_LOG_SNR)
    density.set_ylabel("density of the noise levels drawn in training")
    path.legend()
    density.legend()
    return render(drawing)


def _curves_by_step(
    axes: Any,
    rows: list[dict[str, float]],
    curve: Callable[[list[dict[str, float]]], list[tuple[float, float]]],
    most: int,
    **style: Any,
) -> None:
    """A curve for each of several steps, first to last, dark to bright."""
    steps = sorted({int(row["step"]) for row in rows})
    shown = [steps[round(i * (len(steps) - 1) / max(1, most - 1))] for i in range(most)]
    for index, step in enumerate(dict.fromkeys(shown)):
        share = index / max(1, min(most, len(steps)) - 1)
        shade = "C0" if len(steps) == 1 else (0.1 + 0.65 * share, 0.25 + 0.45 * share, 0.55)
        points = curve([row for row in rows if row["step"] == step])
        axes.plot(*zip(*points, strict=True), color=shade, label=f"step {step:,}", **style)


def histogram(values: dict[str, Tensor], label: str) -> Image.Image:
    """Overlaid histograms of several sets of numbers [N], by name, with common bins."""
    drawing, ((axes,),) = figure((6.0, 4.0))
    low, high = (float(end(end(numbers) for numbers in values.values())) for end in (min, max))
    bins = min(50, max(10, round(2 * max(map(len, values.values())) ** 0.5)))  # few items in many bins are spikes
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for index, (name, numbers) in enumerate(values.items()):
        style: dict[str, Any] = {"histtype": "stepfilled", "lw": 1.5, "ec": f"C{index}", "fc": (f"C{index}", 0.15)}
        legend = f"{name}: mean {float(numbers.mean()):.3f} ({len(numbers):,} items)"
        axes.hist(numbers.numpy(), bins=edges, density=True, label=legend, **style)
    axes.set_xlabel(label)
    axes.set_ylabel("density")
    axes.legend()
    return render(drawing)


def plain_numbers(axis: Any) -> None:
    """Write the numbers on a logarithmic axis as 0.3, not as 3 x 10^-1."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if high < 3 * low:  # a logarithmic locator would place one number there, or none
        axis.set_major_locator(MaxNLocator(6))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, atomically."""
    with writing(path) as temporary:
        picture.save(temporary, format="PNG")


def figure(size: tuple[float, float], panels: tuple[int, int] = (1, 1), **options: Any) -> tuple[Any, Any]:
    """A Matplotlib figure of a size in inches, and its panels [rows, columns]; options are those of `subplots`."""
    drawing = blank_figure(size)
    return drawing, drawing.subplots(*panels, squeeze=False, **options)


def blank_figure(size: tuple[float, float]) -> Any:
    """A Matplotlib figure of a size in inches, without panels."""
    # Matplotlib costs half a second: imported where a plot is drawn. No pyplot: no global state, no display.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained", dpi=110)


def render(figure: Any) -> Image.Image:
    """A Matplotlib figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
