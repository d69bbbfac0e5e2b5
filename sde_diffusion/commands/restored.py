"""How good are restored data? Residuals, figures against the truth, evidence, and a picture of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sde_diffusion.commands.measurements import Measurements
from sde_diffusion.guidance import Operator
from sde_diffusion.metrics.calibration import ranks_of
from sde_diffusion.modality import Modality


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
    ranks, counted = ranks_of(draws, modality.as_data(truth)[:, where])
    counts = torch.bincount(ranks[counted], minlength=n + 1)
    some = int(counts.sum())
    return {
        "rmse": rmse,
        "spread": spread,
        "error_over_spread": rmse / (spread * math.sqrt(1 + 1 / n)) if spread else None,
        "outside": float(counts[0] + counts[-1]) / some if some else None,
        "outside_if_calibrated": 2 / (n + 1),
        "ranks": counts.tolist(),
        "compared": f"{int(where.sum())} of {where.numel()} numbers, those that the measurement leaves open",
    }


def evidence(log_evidence: Tensor) -> dict[str, Any]:
    """Estimates of log p(y) for each measurement, from those of its draws, [N, n].

    Returns:
        `log_evidence`, the logarithm of the mean of Z over draws, each of which is an unbiased estimate of p(y), in
        nats, [N]; and its `std_errors` (of Z, over Z; None for a single draw), [N], which are rough if they are not
        small.
    """
    n = log_evidence.shape[1]
    found = log_evidence.logsumexp(1) - math.log(n)
    z = (log_evidence - found.unsqueeze(1)).exp()
    errors = z.std(1) / math.sqrt(n) if n > 1 else None
    return {"log_evidence": found.tolist(), "std_errors": None if errors is None else errors.tolist()}


def draw_grid(operator: Operator, measured: Measurements, x: Tensor, modality: Modality) -> Image.Image:
    """A picture of the measurements, the truth if it is known, and the draws, as the kind of data is drawn.

    Args:
        operator: The operator.
        measured: The measurements.
        x: The draws, [N, n, *dims].
        modality: The kind of data.
    """
    y: Tensor | None = measured.y
    known = None
    if operator.part_of_data:
        y = operator.adjoint(measured.y)
        known = operator.adjoint(torch.ones_like(measured.y[:1]))[0] != 0
    elif measured.y.ndim != x.ndim - 1 or x.ndim < 4:  # the data have axes but channels; measurements have them too
        y = operator.adjoint(measured.y) if operator.linear and modality.in_pictures else None
    return modality.draw_posterior(x, y, measured.truth, known)


def in_words(figures: Mapping[str, Any]) -> list[str]:
    """The figures against the truth, for the log."""
    ratio = figures["error_over_spread"]
    lines = [
        f"  against the truth, in {figures['compared']}:",
        f"    RMSE of the draws' mean {figures['rmse']:.3f} on [-1, 1]",
    ]
    if ratio is not None:
        lines.append(f"    error over spread {ratio:.2f} (1: the spread of the draws is right; above: too certain)")
    if figures["outside"] is not None:
        right = figures["outside_if_calibrated"]
        lines.append(f"    share of the truth outside all draws: {figures['outside']:.2f} ({right:.2f} if calibrated)")
    return lines
