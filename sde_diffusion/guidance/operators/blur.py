"""Deblurring: a convolution of the data is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion.checks import as_numbers, as_positive, check_choice
from sde_diffusion.guidance.operators.base import Operator

_PADDING = {"circular": "circular", "reflect": "reflect", "zero": "constant"}


class Blur(Operator):
    """Each channel convolved with a kernel; the size of the data stays.

    Args:
        kernel: The kernel, [h, w] for pictures [C, H, W] or [k] for signals [C, L] and vectors [D], of odd sizes; its
            centre is the middle.
        boundary: What lies beyond the edges: "circular" (the opposite side; A A^T is then diagonal in Fourier space),
            "reflect" or "zero".

    Raises:
        ValueError: If a size of the kernel is even, or the boundary is unknown; from a call, if the kernel does not
            fit the data.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, boundary: str = "circular") -> None:
        super().__init__()
        kernel = as_numbers("kernel", kernel)
        if kernel.ndim not in (1, 2) or not all(size % 2 for size in kernel.shape):
            raise ValueError(f"kernel must be [h, w], or [k], of odd sizes; got {list(kernel.shape)}")
        self.boundary = check_choice("boundary", boundary, _PADDING)
        self.register_buffer("kernel", kernel)

    @classmethod
    def gaussian(cls, std: float, dims: int = 2, boundary: str = "circular") -> Blur:
        """A Gaussian kernel of sum 1, cut at three standard deviations.

        Args:
            std: Standard deviation in pixels, positive.
            dims: 2 for pictures, 1 for signals.
            boundary: See `Blur`.
        """
        reach = math.ceil(3 * as_positive("std", std))
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / std).square())
        line = line / line.sum()
        return cls(line if dims == 1 else line[:, None] * line, boundary)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution; see `Operator.forward`."""
        sizes = x.shape[min(2, x.ndim - 1) :]
        reach = [size // 2 for size in self.kernel.shape]
        if len(sizes) != self.kernel.ndim or any(n <= r for n, r in zip(sizes, reach, strict=True)):
            raise ValueError(
                f"a kernel of shape {list(self.kernel.shape)} does not fit data of shape {list(x.shape[1:])}"
            )
        rows = x.reshape(-1, 1, *sizes)
        rows = F.pad(rows, [r for r in reversed(reach) for _ in range(2)], _PADDING[self.boundary])
        convolve = F.conv2d if self.kernel.ndim == 2 else F.conv1d
        kernel = self.kernel.to(x).flip(tuple(range(self.kernel.ndim)))  # torch's convolution does not flip it
        return convolve(rows, kernel[None, None]).reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """By differentiation; see `Operator.adjoint`."""
        with torch.inference_mode(False), torch.enable_grad():
            fixed = y.clone() if y.is_inference() else y
            probe = torch.zeros_like(fixed, requires_grad=True)
            (found,) = torch.autograd.grad(self(probe), probe, fixed, create_graph=fixed.requires_grad)
        return found

    def filter(self, y: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        """Multiplication in Fourier space, for circular boundaries; see `Operator.filter`."""
        if self.boundary != "circular":
            return super().filter(y, response)
        sizes = y.shape[min(2, y.ndim - 1) :]
        axes = tuple(range(-self.kernel.ndim, 0))
        precise = y.to(torch.promote_types(y.dtype, torch.float32))
        eigenvalues = torch.fft.rfftn(self._padded(sizes, y.device), dim=axes).abs().square().to(precise.dtype)
        spectrum = torch.fft.rfftn(precise, dim=axes)
        found: Tensor = torch.fft.irfftn(response(eigenvalues.expand(spectrum.shape)) * spectrum, s=sizes, dim=axes)
        return found.to(y.dtype)

    def spectrum(self, out: Sequence[int]) -> Tensor:
        """For circular boundaries, the squares of the kernel's Fourier transform; see `Operator.spectrum`."""
        if self.boundary != "circular":
            return super().spectrum(out)
        sizes, axes = out[min(1, len(out) - 1) :], tuple(range(-self.kernel.ndim, 0))
        values: Tensor = torch.fft.fftn(self._padded(sizes, self.kernel.device), dim=axes).abs().square()
        return values.flatten().repeat(math.prod(out) // values.numel())

    def _padded(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """The kernel in a corner of zeros, float64."""
        padded = torch.zeros(tuple(sizes), dtype=torch.float64, device=device)
        rows = [torch.arange(k, device=device) % size for k, size in zip(self.kernel.shape, sizes, strict=True)]
        place = torch.meshgrid(*rows, indexing="ij")  # a kernel that is larger than the data goes around them
        return padded.index_put(place, self.kernel.to(device, torch.float64), accumulate=True)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel={list(self.kernel.shape)}, boundary={self.boundary!r}"


class GaussianBlur(Blur):
    """`Blur.gaussian` as a class of its own, which configurations can name.

    Args:
        std: Standard deviation in pixels, positive.
        boundary: See `Blur`.
        dims: 2 for pictures, 1 for signals.
    """

    def __init__(self, std: float, boundary: str = "circular", dims: int = 2) -> None:
        super().__init__(Blur.gaussian(std, dims).kernel, boundary)
