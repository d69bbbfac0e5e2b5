"""Checks of what metrics are given: samples, extractors and features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sde_diffusion.errors import UserError
from sde_diffusion.modality import kind_by_shape


def check_samples(x: Tensor) -> None:
    """Check that a batch of samples is in the form that models produce.

    Args:
        x: [B, ...]; images [B, C, H, W] must lie on [-1, 1], others may have any range.

    Raises:
        UserError: If the samples are not floating point, are NaN or infinite, or are images out of range.
    """
    if not x.is_floating_point():
        raise UserError(
            f"samples are {str(x.dtype).removeprefix('torch.')}; metrics take floats on [-1, 1]: "
            "convert integer levels by sde_diffusion.data.from_levels"
        )
    if not x.isfinite().all():
        bad = int((~x.flatten(1).isfinite().all(1)).sum())
        raise UserError(
            f"{bad} of {len(x)} samples have NaN or infinite numbers: the sampler that made them diverged, or its "
            "input did"
        )
    if kind_by_shape(x.shape[1:]).bounded and len(x) and x.abs().max() > 1.001:
        raise UserError(
            f"images must lie on [-1, 1]; these run from {float(x.min()):.3g} to {float(x.max()):.3g}: "
            "scale images on [0, 255] as x / 127.5 - 1, and clamp a model's samples to the range"
        )


def num_features(extractor: nn.Module) -> int:
    """The number of features of an extractor.

    Raises:
        ValueError: If the extractor does not state it.
    """
    found = getattr(extractor, "num_features", None)
    if not isinstance(found, int):
        raise ValueError(f"extractor must have an int num_features; got {type(extractor).__name__} with {found!r}")
    return found


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )


def check_features(features: Tensor, side: str, metric: str, least: int = 2) -> None:
    """Check that there are enough features, and that all are finite.

    Raises:
        UserError: Otherwise.
    """
    if len(features) < least:
        raise UserError(f"{metric}: {len(features)} {side} seen; at least {least} are needed, and thousands are better")
    if not features.isfinite().all():
        raise UserError(f"{metric}: some of {len(features)} {side} have NaN or infinite features")
