"""Augmentation of images that does not leak into samples, as the model is told about it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_fraction, as_number, check_bool
from sde_diffusion.conditions import AugmentationLabels, Condition

AUGMENT = "augment"
"""Name of the condition."""


class Augmentation(nn.Module):
    """Random mirrorings, scalings, rotations, stretches and shifts of training images, and their parameters.

    Each image is mirrored left to right with probability 1/2 and, with probability `probability` each and independently
    of each other,

    - turned upside down, or not, with equal probabilities;
    - scaled by 2^(scale w), w standard normal;
    - rotated by an angle a, uniform on [-pi, pi];
    - stretched by 2^(stretch v) along a direction b and by 2^(-stretch v) across it, v standard normal, where b = 0 or,
      with probability 1/2, uniform on [-pi/2, pi/2]. (On [-pi, pi], as in EDM, the distribution is the same, but a
      stretch along b and one across it would have the same labels.)
    - shifted by translation (u_1 width, u_2 height), u standard normal.

    What lies beyond the border is the image reflected; in between pixels it is interpolated (bicubic; EDM's own code
    interpolates by a wavelet filter). The labels are (mirrored, turned, w, cos a - 1, sin a, v cos b, v sin b, u_1,
    u_2), 0 where nothing was done. A model that is given them as the condition `augment` learns the distribution of
    images for each value, so that for 0, the null value, it draws images as they were. The condition is set in training
    only.

    Args:
        probability: In [0, 1]; 0: images stay as they are.
        mirror: Whether to mirror left to right.
        turn: Whether to turn upside down.
        scale: Standard deviation of log2 of the scale, at least 0.
        rotate: Whether to rotate.
        stretch: Standard deviation of log2 of the stretch, at least 0.
        translation: Standard deviation of the shift, in widths and heights, at least 0.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B; Karras et al.
        2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix F.2: probability 0.12.
    """

    n_labels = 9
    _chances: Tensor  # of the six

    def __init__(
        self,
        probability: float = 0.12,
        mirror: bool = True,
        turn: bool = True,
        scale: float = 0.2,
        rotate: bool = True,
        stretch: float = 0.2,
        translation: float = 0.125,
    ) -> None:
        super().__init__()
        self.probability = as_fraction("probability", probability)
        self.mirror, self.turn, self.rotate = (
            check_bool(name, value) for name, value in (("mirror", mirror), ("turn", turn), ("rotate", rotate))
        )
        self.scale, self.stretch = as_number("scale", scale), as_number("stretch", stretch)
        self.translation = as_number("translation", translation)
        for name in ("scale", "stretch", "translation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a standard deviation, at least 0; got {getattr(self, name)}")
        chances = [float(self.probability > 0), *[self.probability] * 5]
        self.register_buffer("_chances", torch.tensor(chances)[:, None], persistent=False)

    def conditions(self) -> dict[str, Condition]:
        """The condition of a network that is trained with it, by name."""
        return {AUGMENT: AugmentationLabels(self.n_labels)}

    def check(self, shape: Sequence[int]) -> None:
        """Check the shape of one sample.

        Raises:
            ValueError: If it is not that of an image of at least 2x2 pixels.
        """
        if len(shape) != 3 or min(shape[-2:]) < 2:
            raise ValueError(f"augmentation is for images [C, H, W] of at least 2x2 pixels; got {list(shape)}")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Augment images; draws with torch's global generator, on their device.

        Args:
            x: [B, C, H, W], H and W at least 2.

        Returns:
            (images [B, C, H, W], labels float32 [B, 9]). Images whose labels are 0 are the same bit for bit.

        Raises:
            ValueError: If x is of another shape.
        """
        self.check(x.shape[1:])
        labels, inverse, shift = self.draw(len(x), x.device)
        mirrored, turned = (labels[:, i, None, None, None] > 0 for i in (0, 1))
        x = torch.where(mirrored, x.flip(-1), x)
        x = torch.where(turned, x.flip(-2), x)
        moved = labels[:, 2:].any(1)[:, None, None, None]
        return torch.where(moved, transformed(x, inverse, shift), x), labels

    def draw(self, n: int, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the parameters of n images.

        Returns:
            (labels [n, 9], the inverse of the linear map of points [n, 2, 2], shifts in widths and heights [n, 2]).
        """
        on = (torch.rand(6, n, device=device) < self._chances.to(device)).float()  # which of the six are done
        coins = torch.randint(2, (3, n), device=device).float()
        normal = torch.randn(4, n, device=device)
        angles = math.pi * (2 * torch.rand(2, n, device=device) - 1)

        mirrored, turned = coins[0] * on[0] * self.mirror, coins[1] * on[1] * self.turn
        w = normal[0] * on[2] * bool(self.scale)
        a = angles[0] * on[3] * self.rotate
        v, b = normal[1] * on[4] * bool(self.stretch), angles[1] / 2 * coins[2]
        u = normal[2:] * on[5] * bool(self.translation)
        labels = [mirrored, turned, w, a.cos() - 1, a.sin(), v * b.cos(), v * b.sin(), u[0], u[1]]

        # Of the points, first scaled, then rotated, then stretched: the inverses in the other order.
        k, zoom = math.log(2) * self.stretch * v, torch.exp2(-self.scale * w)
        slanted = k.sinh() * (2 * b).cos(), k.sinh() * (2 * b).sin()
        unstretched = _matrix(k.cosh() - slanted[0], -slanted[1], -slanted[1], k.cosh() + slanted[0])
        unrotated = _matrix(a.cos(), a.sin(), -a.sin(), a.cos())
        return torch.stack(labels, 1), zoom[:, None, None] * (unrotated @ unstretched), self.translation * u.T

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"probability={self.probability:g}, mirror={self.mirror}, turn={self.turn}, scale={self.scale:g}, "
            f"rotate={self.rotate}, stretch={self.stretch:g}, translation={self.translation:g}"
        )


def transformed(x: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
    """Images whose points p, in pixels from the centre, are moved to A p + t.

    Args:
        x: [B, C, H, W], H and W at least 2, reflected at the centres of the pixels at the border.
        inverse: A^-1, [B, 2, 2], acting on (x, y).
        shift: t in widths and heights, [B, 2].

    Returns:
        [B, C, H, W].
    """
    height, width = x.shape[-2:]
    half = (width - 1) / 2, (height - 1) / 2  # pixels for 1 of grid_sample's units
    moved = torch.stack([shift[:, 0] * width, shift[:, 1] * height], -1)[..., None]
    rows = torch.cat([inverse[..., :1] * half[0], inverse[..., 1:] * half[1], -(inverse @ moved)], -1)
    theta = torch.stack([rows[:, 0] / half[0], rows[:, 1] / half[1]], 1)
    grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=True)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b], [c, d]] of numbers [n], [n, 2, 2]."""
    return torch.stack([a, b, c, d], -1).view(-1, 2, 2)
