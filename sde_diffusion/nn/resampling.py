"""Halving and doubling the size of signals [B, C, L] and images [B, C, H, W]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_positive
from sde_diffusion.nn.layers import CONVOLUTIONS, LayerStyle

_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d}
CONVOLVE = {1: F.conv1d, 2: F.conv2d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d}


def halve(x: Tensor) -> Tensor:
    """Average windows of 2 (x 2), smaller ones at the border: [B, C, H, W] to [B, C, ceil(H/2), ceil(W/2)]."""
    return _POOLS[x.ndim - 2](x, 2, ceil_mode=True)


def double(x: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat each pixel 2 (x 2) times and crop to a size, such as (H, W): from the size that `halve` returns."""
    out = F.interpolate(x, scale_factor=2.0, mode="nearest")
    for dim, length in enumerate(size):
        out = out.narrow(2 + dim, 0, length)
    return out


class Resampling(nn.Module):
    """Halve and double with a filter: [1, 1] averages and repeats, at any size; [1, 3, 3, 1] is that of NCSN++.

    The image is zero outside. The filter is normalised to sum 1 for halving and, in each dimension, 2 for doubling, so
    that constants stay what they are.

    Args:
        taps: The filter, of even length.
        dims: 1 or 2.

    Raises:
        ValueError: If the filter is not a list of an even number of positive numbers.

    References:
        Song et al. 2021, appendix H (FIR filters, after StyleGAN2); Karras et al. 2022, appendix F.
    """

    taps: Tensor

    def __init__(self, taps: Sequence[float] = (1, 1), dims: int = 2) -> None:
        super().__init__()
        if not isinstance(taps, list | tuple) or len(taps) % 2 or not taps:
            raise ValueError(
                "resample_filter must be a list of an even number of positive numbers, such as [1, 3, 3, 1]; got "
                f"{taps!r}"
            )
        taps = [as_positive("resample_filter", tap) for tap in taps]
        self.dims, self.padding = dims, len(taps) // 2 - 1
        self.averages = taps == [1, 1]
        line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        window = line if dims == 1 else line[:, None] * line  # of small binary fractions: the same in bfloat16
        self.register_buffer("taps", window[None, None], persistent=False)

    def down(self, x: Tensor) -> Tensor:
        """Halve the size."""
        return halve(x) if self.averages else self._filtered(x, self.padding, 2)

    def smooth(self, x: Tensor, padding: int) -> Tensor:
        """Filter, with `padding` zeros at each end in addition to those of `down`, and keep the size."""
        return self._filtered(x, self.padding + padding, 1)

    def up(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Double the size, to `size`."""
        if self.averages:
            return double(x, size)
        taps = (self.taps * 2**self.dims).to(x.dtype).expand(x.shape[1], *self.taps.shape[1:])
        return _TRANSPOSED[self.dims](x, taps, stride=2, padding=self.padding, groups=x.shape[1])

    def _filtered(self, x: Tensor, padding: int, stride: int) -> Tensor:
        taps = self.taps.to(x.dtype).expand(x.shape[1], *self.taps.shape[1:])
        return CONVOLVE[self.dims](x, taps, stride=stride, padding=padding, groups=x.shape[1])


class ConvolutionDown(nn.Module):
    """A convolution of kernel 3 and stride 2, after zeros on the right and below (DDPM), or on all sides."""

    def __init__(self, channels: int, style: LayerStyle, symmetric: bool = False) -> None:
        super().__init__()
        self.padding = (int(symmetric), 1) * style.dims
        self.conv = CONVOLUTIONS[style.dims](channels, channels, 3, stride=2)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor, resample: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Halve the size; the other arguments are those of a block that resamples, and have no effect."""
        out: Tensor = self.conv(F.pad(x, self.padding))
        return out


class ConvolutionUp(nn.Module):
    """Each pixel repeated, and a convolution of kernel 3 (DDPM)."""

    def __init__(self, channels: int, style: LayerStyle) -> None:
        super().__init__()
        self.conv = style.convolution(channels, channels, 3)

    def forward(self, x: Tensor, embedding: Tensor, resample: Callable[[Tensor], Tensor]) -> Tensor:
        """Double the size by `resample`, and convolve."""
        out: Tensor = self.conv(resample(x))
        return out


@dataclass(frozen=True)
class ConvolutionResampling:
    """Makes the convolutions that halve and double, from (channels, style)."""

    down: Callable[[int, LayerStyle], nn.Module]
    up: Callable[[int, LayerStyle], nn.Module] = ConvolutionUp


RESAMPLINGS: dict[str, ConvolutionResampling | None] = {
    "block": None,
    "convolution": ConvolutionResampling(ConvolutionDown),
    "symmetric_convolution": ConvolutionResampling(partial(ConvolutionDown, symmetric=True)),
}
"""What halves and doubles in a `UNet`; None: residual blocks do."""


class PyramidSkip(nn.Module):
    """The input at half its size, added to the features: (resampled, h + W resampled) (EDM's encoder "skip")."""

    def __init__(self, in_channels: int, channels: int, style: LayerStyle) -> None:
        super().__init__()
        self.conv = style.convolution(in_channels, channels, 1)
        self.out_channels = in_channels

    def forward(self, pyramid: Tensor, h: Tensor, resampling: Resampling) -> tuple[Tensor, Tensor]:
        """Map the pyramid [B, C_in, H, W] and features [B, C, H/2, W/2] to both at half the size."""
        pyramid = resampling.down(pyramid)
        return pyramid, h + self.conv(pyramid)


class PyramidResidual(nn.Module):
    """A filtered convolution of stride 2 of the input, joined with the features by a residual sum (NCSN++)."""

    def __init__(self, in_channels: int, channels: int, style: LayerStyle) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[style.dims](in_channels, channels, 3, stride=2)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.gain = style.gain
        self.out_channels = channels

    def forward(self, pyramid: Tensor, h: Tensor, resampling: Resampling) -> tuple[Tensor, Tensor]:
        """See `PyramidSkip.forward`; the sum is both the next pyramid and the features."""
        joined = (h + self.conv(resampling.smooth(pyramid, 1))) * self.gain
        return joined, joined


PYRAMIDS: dict[str, type[PyramidSkip] | type[PyramidResidual] | None] = {
    "standard": None,
    "skip": PyramidSkip,
    "residual": PyramidResidual,
}
"""What an encoder does with the input at lower resolutions, by EDM's names."""
