"""Turn the noise number and the class label into one vector that the blocks of a network are modulated by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _frequency_buffer(frequencies: Tensor) -> Tensor:
    """Round angular frequencies to bfloat16 values, so that `network.to(dtype)` never changes the function.

    The product omega c reaches thousands of radians: a frequency rounded by 2^-8 after training would shift the phase
    by radians.
    """
    return frequencies.to(torch.bfloat16).to(torch.float32)


class SinusoidalFeatures(nn.Module):
    """Features sqrt(2) cos(omega_k c), sqrt(2) sin(omega_k c) of a number c, omega_k fixed; mean square 1.

    Args:
        frequencies: omega, [dim / 2], radians per unit of c.
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", _frequency_buffer(frequencies))

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map c_noise [N] (any real, no unit) to features [N, dim], in float32 or the wider type of c_noise."""
        # Half precision has no digits left for a phase of thousands of radians.
        dtype = torch.promote_types(c_noise.dtype, torch.float32)
        phase = c_noise.to(dtype)[:, None] * self.frequencies.to(dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=1) * math.sqrt(2)


class PositionalEmbedding(SinusoidalFeatures):
    """Sines and cosines of geometrically spaced frequencies: omega_k = highest (lowest / highest)^(k / (dim/2 - 1)).

    The usual frequencies, 1 down to 1e-4, were made for steps 0 ... 999; on log(sigma/alpha)/4, a range of about
    [-4, 4], most of those features are constants. From 16 radians a unit down to 1e-3 the same features resolve both:
    0.01 of log(sigma/alpha)/4 turns the fastest phase by 0.16 rad, and the slowest by 1 rad over the 999 of 999 t.

    Args:
        dim: Number of features; even, at least 4.
        highest: Largest angular frequency, radians per unit of c_noise; positive.
        lowest: Smallest, in (0, highest].

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B.
    """

    def __init__(self, dim: int, highest: float = 16.0, lowest: float = 1e-3) -> None:
        _check_dim(dim)
        if not 0 < lowest <= highest:
            raise ValueError(f"PositionalEmbedding needs 0 < lowest <= highest; got lowest={lowest}, highest={highest}")
        exponents = torch.linspace(math.log(highest), math.log(lowest), dim // 2, dtype=torch.float64)
        super().__init__(exponents.exp())


class FourierEmbedding(SinusoidalFeatures):
    """Sines and cosines of random, fixed frequencies: omega_k = 2 pi scale z_k, z_k standard normal.

    Drawn once from a generator of fixed seed: equal in each process and each construction, and stored with the weights.

    Args:
        dim: Number of features; even, at least 4.
        scale: Standard deviation of the frequencies, in turns per unit of c_noise; positive. 1 suits
            log(sigma/alpha)/4; NCSN++ takes 16.
        seed: Of the generator.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Tancik et al. 2020, "Fourier Features"; Song et al. 2021, appendix H (NCSN++).
    """

    def __init__(self, dim: int, scale: float = 1.0, seed: int = 0) -> None:
        _check_dim(dim)
        if not scale > 0:
            raise ValueError(f"scale must be positive; got {scale}")
        generator = torch.Generator().manual_seed(seed)
        super().__init__(2 * math.pi * scale * torch.randn(dim // 2, generator=generator, dtype=torch.float64))


def _check_dim(dim: int) -> None:
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be even and at least 4; got {dim}")


EMBEDDINGS: dict[str, type[PositionalEmbedding] | type[FourierEmbedding]] = {
    "positional": PositionalEmbedding,
    "fourier": FourierEmbedding,
}


class Conditioning(nn.Module):
    """One vector per sample from the noise number and the class label: SiLU(W_2 SiLU(W_1 f(c) + e_label)).

    Args:
        dim: Size of the vector; even, at least 4.
        n_classes: Labels are 0 ... n_classes - 1, and n_classes is the null class, "no label"; 0: the network takes no
            label.
        embedding: The noise features f, "positional" or "fourier".

    Raises:
        ValueError: If embedding is unknown, n_classes negative or dim odd or below 4.

    References:
        Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", section 3.2 (the null class).
    """

    def __init__(self, dim: int, n_classes: int = 0, embedding: str = "positional") -> None:
        super().__init__()
        if embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be one of {', '.join(EMBEDDINGS)}; got {embedding!r}")
        if n_classes < 0:
            raise ValueError(f"n_classes must be 0 (no labels) or positive; got {n_classes}")
        self.n_classes = n_classes
        self.features = EMBEDDINGS[embedding](dim)
        self.input = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.labels = nn.Embedding(n_classes + 1, dim) if n_classes else None

    def forward(self, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return [N, dim], with N = B, or N = 1 where neither argument varies over the batch.

        Args:
            c_noise: [] or [B], any real number.
            label: [B], int64 in 0 ... n_classes, n_classes being the null class; None: the null class for all.

        Raises:
            ValueError: If a label is given to a network built with n_classes = 0.
        """
        h = self.input(self.features(c_noise.reshape(-1)).to(self.input.weight.dtype))
        if self.labels is not None:
            h = h + (self.labels.weight[-1:] if label is None else self.labels(label))
        elif label is not None:
            raise ValueError("this network was built with n_classes=0 and takes no label; set n_classes or pass None")
        return F.silu(self.output(F.silu(h)))


def check_arguments(x: Tensor, c_noise: Tensor, shape: tuple[int, ...]) -> None:
    """Check the arguments of a network's forward pass.

    Raises:
        ValueError: If x is not [B, *shape] or c_noise is neither [] nor [B].
    """
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"x must be [B, {', '.join(map(str, shape))}]; got {list(x.shape)}")
    if c_noise.ndim > 1 or (c_noise.ndim == 1 and c_noise.shape[0] != x.shape[0]):
        raise ValueError(f"c_noise must be [] or [{x.shape[0]}], one number per sample; got {list(c_noise.shape)}")


def check_shape(shape: tuple[int, ...], ndim: int | None = None) -> None:
    """Check the shape of one sample.

    Raises:
        ValueError: If the shape is empty, a size is not positive, or there are not `ndim` sizes.
    """
    if not shape or min(shape) < 1 or (ndim is not None and len(shape) != ndim):
        allowed = "a list of positive sizes" if ndim is None else f"{ndim} positive sizes"
        raise ValueError(f"shape must be {allowed} without the batch; got {list(shape)}")
