"""How good are restored pictures? Residuals, figures against the truth, and a picture of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sde_diffusion.commands.measurements import Measurements
from sde_diffusion.guidance import Operator
from sde_diffusion.modality import Modality, pictures
from sde_diffusion.modality.images import to_uint8

_ROWS, _DRAWS, _SIDE = 12, 8, 88  # inputs and draws in the picture; the least width of each, in pixels


def exactly(operator: Operator, x: Tensor, y: Tensor) -> Tensor:
    """The nearest data that agree with y, x - A^+ A x + A^+ y; x itself if A^+ is not known or amplifies errors.

    For a mask the known pixels are then y, to the last digit.
    """
    try:
        eigenvalues = operator.spectrum(y.shape[1:])
    except ValueError:
        return x
    if eigenvalues.min() < 1e-2 * eigenvalues.max():
        return x
    return x - operator.pinv(operator(x)) + operator.pinv(y)


def left_open(operator: Operator, dims: tuple[int, ...]) -> Tensor:
    """Which numbers of the data a measurement without noise does not determine, bool [*dims]; all if none or unknown.

    These are the numbers that differ between some data u and A^+ A u.
    """
    u = torch.randn(1, *dims, generator=torch.Generator().manual_seed(0))
    try:
        found = (u - operator.pinv(operator(u)))[0].abs() > 1e-3
    except ValueError:
        found = torch.zeros(dims, dtype=torch.bool)
    return found if bool(found.any()) else torch.ones(dims, dtype=torch.bool)


def residuals(operator: Operator, x: Tensor, y: Tensor) -> Tensor:
    """Root mean square of y - A x over all draws, for each input, [N].

    Args:
        operator: A.
        x: The draws, [N, n, *dims].
        y: The measurements, [N, *out].
    """
    rows = [(operator(draws) - one).double().square().mean().sqrt() for draws, one in zip(x, y, strict=True)]
    return torch.stack(rows)


def against_truth(x: Tensor, truth: Tensor, modality: Modality, where: Tensor) -> dict[str, Any]:
    """How far the draws are from the truth, and whether their spread says so.

    Args:
        x: The draws, [N, n, *dims].
        truth: [N, *dims].
        modality: The kind of data; draws are clamped if it is bounded, and for ranks rounded, as they are stored.
        where: Which numbers to compare, bool [*dims].

    Returns:
        `rmse` of the mean of the draws; `spread`, the root mean square of the draws' standard deviation;
        `error_over_spread` = rmse / (spread sqrt(1 + 1 / n)), 1 for draws from the posterior, more if they are too
        certain; `outside`, the share of the truth below or above all draws, and `outside_if_calibrated` = 2 / (n + 1);
        `ranks`, how often the truth has so many draws below it, even counts if calibrated. Ties are broken at random,
        and numbers in which all agree are left out of `outside` and `ranks`.
    """
    n = x.shape[1]
    x = x.clamp(-1, 1) if modality.bounded else x
    error = (x.mean(1) - truth)[:, where].double()
    rmse = float(error.square().mean().sqrt())
    spread = float(x.var(1)[:, where].double().mean().sqrt()) if n > 1 else None
    draws = modality.as_data(x.flatten(0, 1)).reshape(x.shape)[:, :, where]
    own = modality.as_data(truth)[:, where].unsqueeze(1)
    below, equal = (draws < own).sum(1), (draws == own).sum(1)
    chance = torch.rand(equal.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranks = (below + (chance * (equal + 1)).floor().long())[equal < n]
    counts = torch.bincount(ranks, minlength=n + 1)
    return {
        "rmse": rmse,
        "spread": spread,
        "error_over_spread": rmse / (spread * math.sqrt(1 + 1 / n)) if spread else None,
        "outside": float(counts[0] + counts[-1]) / len(ranks) if len(ranks) else None,
        "outside_if_calibrated": 2 / (n + 1),
        "ranks": counts.tolist(),
        "pixels": f"{int(where.sum())} of {where.numel()} numbers, those that the measurement leaves open",
    }


def draw_grid(operator: Operator, measured: Measurements, x: Tensor, where: Tensor) -> Image.Image:
    """A row for each input: the measurement, the truth if it is known, draws, their mean, their spread, and its error.

    The spread is the draws' standard deviation, and the error is the mean minus the truth; of both, root mean squares
    over the channels, in the colours of the scale on the right.

    Args:
        operator: The operator.
        measured: The measurements.
        x: The draws, [N, n, C, H, W].
        where: Which numbers the measurement leaves open, bool [C, H, W]; they are blue if it is not a picture itself.
    """
    x, y = x[:_ROWS].clamp(-1, 1), measured.y[:_ROWS]
    columns, amounts = {f"draw {number}": x[:, number] for number in range(min(_DRAWS, x.shape[1]))}, {}
    if x.shape[1] > 1:
        columns["mean"], amounts["spread"] = x.mean(1), _over_channels(x.std(1))
    if measured.truth is not None:
        truth = measured.truth[:_ROWS]
        columns, amounts["error"] = {"truth": truth, **columns}, _over_channels(x.mean(1) - truth)
    largest = max((float(values.max()) for values in amounts.values()), default=0.0) or 1.0
    columns |= {title: _heat(values / largest) for title, values in amounts.items()}
    zoom = max(1, math.ceil(_SIDE / x.shape[-1]))
    size = (zoom * x.shape[-1], zoom * x.shape[-2])
    if y.ndim == x.ndim - 1:
        first = _column(y, size)
    else:
        hole = where.any(0).numpy().repeat(zoom, 0).repeat(zoom, 1)
        first = _column(operator.adjoint(y), size, Image.fromarray(hole))
    panels = {"measured": first} | {title: _column(values, size) for title, values in columns.items()}
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
    found = to_uint8(images)
    colours = found[..., :3] if found.shape[-1] >= 3 else found[..., :1].expand(-1, -1, -1, 3)
    column = Image.new("RGB", (size[0], (size[1] + 6) * len(images)), "white")
    for row, colour in enumerate(colours):
        tile = Image.fromarray(colour.numpy().copy()).resize(size, Image.Resampling.NEAREST)
        if hole is not None:
            tile.paste((70, 100, 170), (0, 0), hole)
        column.paste(tile, (0, row * (size[1] + 6)))
    return column


def in_words(figures: Mapping[str, Any]) -> list[str]:
    """The figures against the truth, for the log."""
    ratio = figures["error_over_spread"]
    lines = [
        f"  against the truth, in {figures['pixels']}:",
        f"    RMSE of the draws' mean {figures['rmse']:.3f} on [-1, 1]",
    ]
    if ratio is not None:
        lines.append(f"    error over spread {ratio:.2f} (1: the spread of the draws is right; above: too certain)")
    if figures["outside"] is not None:
        right = figures["outside_if_calibrated"]
        lines.append(f"    truth outside all draws: {figures['outside']:.2f} of them ({right:.2f} if calibrated)")
    return lines
