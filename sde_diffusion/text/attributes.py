"""Closed-form attributes of handwriting: how thick it is, and which way it leans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

THICKNESSES = ("thin", "bold")
SLANTS = ("left", "upright", "right")


def ink(x: Tensor) -> Tensor:
    """The sum of all pixels, [N], with 0 for black and 1 for white.

    Args:
        x: Images, [N, C, H, W] on [-1, 1].
    """
    return ((x + 1) / 2).flatten(1).sum(1)


def shear(x: Tensor) -> Tensor:
    """How many pixels to the right the strokes move from one row to the row above, [N].

    This is -sum p dx dy / sum p dy^2, where p is a pixel on [0, 1], and (dx, dy) its position from the centre of mass,
    dy downwards: the slope of the regression of x on the height. It is positive if the writing leans to the right, and
    0 for a black image.

    Args:
        x: Images, [N, C, H, W] on [-1, 1].
    """
    p = ((x + 1) / 2).mean(1)
    rows = torch.arange(p.shape[1], dtype=p.dtype, device=p.device)[:, None]
    columns = torch.arange(p.shape[2], dtype=p.dtype, device=p.device)
    mass = p.sum((1, 2), keepdim=True).clamp(min=1e-6)
    dy = rows - (p * rows).sum((1, 2), keepdim=True) / mass
    dx = columns - (p * columns).sum((1, 2), keepdim=True) / mass
    return -(p * dx * dy).sum((1, 2)) / (p * dy.square()).sum((1, 2)).clamp(min=1e-6)


@dataclass(frozen=True)
class StrokeAttributes:
    """Thickness and slant of images, in classes whose borders are those of the training images.

    Attributes:
        medians: The median ink of each class, [K]: below it writing is thin, else bold.
        terciles: The two terciles of the shear: writing leans left, is upright, or leans right.
    """

    medians: Tensor
    terciles: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor], labels: Tensor) -> StrokeAttributes:
        """The borders of a training split.

        Args:
            batches: Its images in order, [B, C, H, W] on [-1, 1] each.
            labels: Their classes, [N].
        """
        measured = [(ink(x), shear(x)) for x in batches]
        inks, shears = torch.cat([one for one, _ in measured]), torch.cat([one for _, one in measured])
        classes = range(int(labels.max()) + 1)
        medians = [inks[labels == k].median() if bool((labels == k).any()) else inks.median() for k in classes]
        return cls(torch.stack(medians), shears.double().quantile(torch.tensor([1 / 3, 2 / 3]).double()).to(shears))

    def thickness(self, x: Tensor, labels: Tensor) -> Tensor:
        """0 (thin) or 1 (bold) for each image, [N], by the class that it is of.

        Args:
            x: Images, [N, C, H, W].
            labels: Their classes, [N].
        """
        return (ink(x) >= self.medians.to(x.device)[labels]).long()

    def slant(self, x: Tensor) -> Tensor:
        """0 (left), 1 (upright) or 2 (right) for each image [N, C, H, W]."""
        return torch.bucketize(shear(x), self.terciles.to(x.device))
