"""A network that judges whether patches of an image look real."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sde_diffusion.checks import check_count, check_sizes
from sde_diffusion.nn.layers import convolution, group_norm


class PatchDiscriminator(nn.Module):
    """n 4x4 convolutions of stride 2, each with twice the channels of the one before, and a 3x3 one with one output.

    Each output depends on a patch of 5 2^n - 2 pixels a side. Between the convolutions are leaky rectifiers of slope
    0.2 and, from the second on, group norms: no statistics of a batch.

    Args:
        shape: Shape of the images, [C, H, W].
        layers: n, at least 1.
        channels: Number of channels after the first convolution, at least 1.

    Raises:
        ValueError: If a number is out of its range, or the images are smaller than the patch.

    References:
        Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2.
    """

    def __init__(self, shape: Sequence[int], layers: int = 1, channels: int = 32) -> None:
        super().__init__()
        shape, layers = check_sizes("shape", shape), check_count("layers", layers)
        self.field = 5 * 2**layers - 2
        if len(shape) != 3:
            raise ValueError(f"a patch discriminator is for images [C, H, W], and the data are {list(shape)}")
        if self.field > min(shape[1:]):
            fitting = [n for n in range(1, layers) if 5 * 2**n - 2 <= min(shape[1:])]
            advice = f"take layers={fitting[-1]}" if fitting else "leave it out"
            raise ValueError(
                f"layers={layers} looks at {self.field}x{self.field} pixels, and the images have "
                f"{shape[1]}x{shape[2]}: {advice}"
            )
        widths = [check_count("channels", channels) * 2**n for n in range(layers)]
        parts: list[nn.Module] = []
        for before, width in zip([shape[0], *widths[:-1]], widths, strict=True):
            parts.append(nn.Conv2d(before, width, 4, stride=2, padding=1))
            parts += [group_norm(width)] if len(parts) > 1 else []
            parts.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*parts)
        self.output = convolution(widths[-1], 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to numbers [B, 1, H / 2^n, W / 2^n], rounded down: above 0 for real ones."""
        out: Tensor = self.output(self.body(x))
        return out
