"""Features of the noise level: sines and cosines of a number for each sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.checks import as_number, as_positive, check_bool, check_count
from sde_diffusion.checks.instances import as_instance


def _frequency_buffer(frequencies: Tensor) -> Tensor:
    """Round angular frequencies to bfloat16 values, so that `network.to(dtype)` does not change the features.

    The phase omega c reaches thousands of radians: rounding a frequency by 2^-8 after training would shift it by
    radians.
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
        """Map c_noise [N], real numbers, to features [N, dim], in float32 or the wider type of c_noise."""
        # Half precision has no digits left for a phase of thousands of radians.
        dtype = torch.promote_types(c_noise.dtype, torch.float32)
        phase = c_noise.to(dtype)[:, None] * self.frequencies.to(dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=1) * math.sqrt(2)


class PositionalEmbedding(SinusoidalFeatures):
    """Sines and cosines of geometrically spaced frequencies: omega_k = highest (lowest / highest)^(k / (dim/2 - 1)).

    The usual frequencies, 1 down to 1e-4, were chosen for steps 0 ... 999. On log(sigma/alpha)/4, with a range of about
    [-4, 4], most of those features would be constant. The defaults suit both: a change of 0.01 in log(sigma/alpha)/4
    turns the fastest phase by 0.16 rad, and the slowest turns by 1 rad over 0 ... 999.

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
        dim = check_dim(dim)
        highest, lowest = as_number("highest", highest), as_number("lowest", lowest)
        if not 0 < lowest <= highest < math.inf:
            raise ValueError(f"PositionalEmbedding needs 0 < lowest <= highest; got lowest={lowest}, highest={highest}")
        exponents = torch.linspace(math.log(highest), math.log(lowest), dim // 2, dtype=torch.float64)
        super().__init__(exponents.exp())


class StepEmbedding(PositionalEmbedding):
    """The features of earlier checkpoints with embedding="ddpm", which `timestep` has replaced.

    They differ by a factor, sqrt(2), the order of sines and cosines, and rounded frequencies.

    Args:
        dim: Number of features; even, at least 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1.0, 1e-4)


class FourierEmbedding(SinusoidalFeatures):
    """Sines and cosines of random, fixed frequencies: omega_k = 2 pi scale z_k, z_k standard normal.

    They are drawn from a generator with a fixed seed, so that they are the same in each process, and are stored with
    the weights.

    Args:
        dim: Number of features; even, at least 4.
        scale: Standard deviation of the frequencies, in turns per unit of c_noise; positive. 1 suits
            log(sigma/alpha)/4; NCSN++ uses 16.
        seed: Seed of the generator.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Tancik et al. 2020, "Fourier Features"; Song et al. 2021, appendix H (NCSN++).
    """

    def __init__(self, dim: int, scale: float = 1.0, seed: int = 0) -> None:
        dim, scale = check_dim(dim), as_number("scale", scale)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive; got {scale}")
        generator = torch.Generator().manual_seed(check_count("seed", seed, least=0))
        super().__init__(2 * math.pi * scale * torch.randn(dim // 2, generator=generator, dtype=torch.float64))


def check_dim(dim: int, name: str = "embedding_dim") -> int:
    """The size of an embedding, as an int.

    Raises:
        ValueError: If it is odd, below 4 or not an integer.
    """
    size = check_count(name, dim, least=4)
    if size % 2:
        raise ValueError(f"{name} must be even and at least 4; got {dim}")
    return size


class TimestepEmbedding(nn.Module):
    """Sines and cosines of geometrically spaced frequencies, as the published networks compute them.

    omega_k = max_period^(-k / (dim/2 - 1)), k = 0 ... dim/2 - 1, for steps 0 ... 999, with amplitude 1. The frequencies
    are computed in float32, and not stored.

    Args:
        dim: Number of features; even, at least 4.
        cos_first: Whether the cosines come first: DDPM, DDPM++ and NCSN++ begin with the sines, ADM and DiT with the
            cosines.
        endpoint: Whether the last frequency is 1 / max_period; if not, omega_k = max_period^(-k / (dim/2)).
        max_period: Positive.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Ho et al. 2020 (sines first, with the endpoint); Dhariwal & Nichol 2021 (cosines first, without).
    """

    def __init__(self, dim: int, cos_first: bool = False, endpoint: bool = True, max_period: float = 10_000.0) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        self.cos_first, self.endpoint = check_bool("cos_first", cos_first), check_bool("endpoint", endpoint)
        self.max_period = as_positive("max_period", max_period)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map c_noise [N] to features [N, dim], in float32 or the wider type of c_noise."""
        dtype, half = torch.promote_types(c_noise.dtype, torch.float32), self.dim // 2
        k = torch.arange(half, device=c_noise.device, dtype=torch.float32)
        frequencies = torch.exp(-math.log(self.max_period) * k / (half - int(self.endpoint)))
        phase = c_noise.to(dtype)[:, None] * frequencies.to(dtype)
        parts = [phase.cos(), phase.sin()] if self.cos_first else [phase.sin(), phase.cos()]
        return torch.cat(parts, dim=1)


class _FixedFloats(nn.Module):
    """A module whose buffers keep their type, float32, when the network is cast, and move with it to a device."""

    keeps_buffer_types = True  # for `NetworkDenoiser.compute_dtype`, which casts copies

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and not (buffer.is_meta or moved.is_meta):
                self._buffers[name] = buffer.to(moved.device)
        return self


class GaussianFourierEmbedding(_FixedFloats):
    """NCSN++'s features of c = log sigma: sin(2 pi w_k c), cos(2 pi w_k c), w_k normal of standard deviation `scale`.

    The w_k are fixed, and keep their type, float32, when the network is cast.

    Args:
        dim: Number of features; even, at least 4.
        scale: Positive.
        seed: Seed of the w_k, which are also stored with the weights.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Song et al. 2021, appendix H (NCSN++).
    """

    weight: Tensor

    def __init__(self, dim: int, scale: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        dim, scale = check_dim(dim), as_positive("scale", scale)
        generator = torch.Generator().manual_seed(check_count("seed", seed, least=0))
        self.register_buffer("weight", scale * torch.randn(dim // 2, generator=generator, device="cpu"))

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map c_noise [N] to features [N, dim], in float32 or the wider type of c_noise."""
        dtype = torch.promote_types(c_noise.dtype, torch.float32)
        phase = c_noise.to(dtype)[:, None] * self.weight.to(dtype) * 2 * math.pi
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class PhasedFourierEmbedding(_FixedFloats):
    """EDM2's features sqrt(2) cos(2 pi (w_k c + p_k)), w_k standard normal, p_k uniform on [0, 1], both fixed.

    Args:
        dim: Number of features; even, at least 4.
        bandwidth: Standard deviation of the w_k, positive.
        seed: Seed of the w_k and p_k, which are also stored with the weights.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Karras et al. 2024 (EDM2), equation 75.
    """

    weight: Tensor
    phases: Tensor

    def __init__(self, dim: int, bandwidth: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        dim, bandwidth = check_dim(dim), as_positive("bandwidth", bandwidth)
        generator = torch.Generator().manual_seed(check_count("seed", seed, least=0))
        self.register_buffer("weight", bandwidth * torch.randn(dim, generator=generator, device="cpu"))
        self.register_buffer("phases", torch.rand(dim, generator=generator, device="cpu"))

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map c_noise [N] to features [N, dim], in float32 or the wider type of c_noise."""
        dtype = torch.promote_types(c_noise.dtype, torch.float32)
        turns = c_noise.to(dtype)[:, None] * self.weight.to(dtype) + self.phases.to(dtype)
        return math.sqrt(2) * torch.cos(2 * math.pi * turns)


EMBEDDINGS: dict[str, Callable[[int], nn.Module]] = {
    "positional": PositionalEmbedding,
    "fourier": FourierEmbedding,
    "timestep": TimestepEmbedding,
    "timestep_cos": partial(TimestepEmbedding, cos_first=True, endpoint=False),
    "gaussian_fourier": GaussianFourierEmbedding,
}
"""Features by name, and what they are of:

- positional, fourier: log(sigma/alpha)/4 (positional also of steps);
- timestep (DDPM, DDPM++), timestep_cos (ADM, DiT): steps 0 ... 999;
- gaussian_fourier (NCSN++): log(sigma).
"""

FORMER_NAMES = {"ncsnpp": "gaussian_fourier"}
"""Names of the same features in earlier checkpoints, with those of today."""


def features(embedding: str | nn.Module, dim: int) -> nn.Module:
    """The module that computes features of c_noise, given by name or as it is.

    Raises:
        ValueError: If it is neither, or its features are not [N, dim].
    """
    if isinstance(embedding, str):
        embedding = FORMER_NAMES.get(embedding, embedding)
    if embedding == "ddpm":
        return StepEmbedding(dim)
    table = {name: partial(kind, dim) for name, kind in EMBEDDINGS.items()}
    module: nn.Module = as_instance("embedding", embedding, table, nn.Module, f"a module [N] -> [N, {dim}]")
    if module is embedding:
        with torch.no_grad():
            found = module(torch.zeros(1))
        if found.shape != (1, dim):
            raise ValueError(
                f"embedding must map [N] to [N, {dim}] (feature_dim, or else embedding_dim); it maps [1] to "
                f"{list(found.shape)}"
            )
    return module
