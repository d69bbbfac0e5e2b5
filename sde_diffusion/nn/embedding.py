"""Turn the noise number and the conditions into one vector that the blocks of a network are modulated by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_number, check_count, check_sizes
from sde_diffusion.conditions import Condition, Conditions


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
        dim = check_dim(dim)
        highest, lowest = as_number("highest", highest), as_number("lowest", lowest)
        if not 0 < lowest <= highest < math.inf:
            raise ValueError(f"PositionalEmbedding needs 0 < lowest <= highest; got lowest={lowest}, highest={highest}")
        exponents = torch.linspace(math.log(highest), math.log(lowest), dim // 2, dtype=torch.float64)
        super().__init__(exponents.exp())


class StepEmbedding(PositionalEmbedding):
    """DDPM's: frequencies from 1 radian a step down to 1e-4, for step numbers 0 ... 999 (noise_conditioning="step").

    With `PositionalEmbedding` a network told of 999 t would see features that turn 2,500 times along the path, in which
    it is rough: its flow then takes four times the passes to solve.

    Args:
        dim: Number of features; even, at least 4.

    References:
        Ho et al. 2020, appendix B.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1.0, 1e-4)


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
        dim, scale = check_dim(dim), as_number("scale", scale)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive; got {scale}")
        generator = torch.Generator().manual_seed(check_count("seed", seed, least=0))
        super().__init__(2 * math.pi * scale * torch.randn(dim // 2, generator=generator, dtype=torch.float64))


def check_dim(dim: int) -> int:
    """The size of an embedding, as an int.

    Raises:
        ValueError: If it is odd, below 4 or not whole.
    """
    size = check_count("embedding_dim", dim, least=4)
    if size % 2:
        raise ValueError(f"embedding_dim must be even and at least 4; got {dim}")
    return size


EMBEDDINGS: dict[str, type[PositionalEmbedding] | type[FourierEmbedding]] = {
    "positional": PositionalEmbedding,
    "ddpm": StepEmbedding,
    "fourier": FourierEmbedding,
}


class Conditioning(nn.Module):
    """One vector per sample from the noise number and the conditions: SiLU(W_2 SiLU(W_1 f(c) + sum_k e_k(value_k))).

    Args:
        dim: Size of the vector; even, at least 4.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        embedding: The noise features f, "positional", "ddpm" or "fourier", or a module from c_noise [N] to [N, dim].
        conditions: What else the network is told of each sample, by name, each with its embedding e_k.

    Raises:
        ValueError: If embedding is unknown or of another width, n_classes negative, dim odd or below 4, or a condition
            has no good name.
        TypeError: If a condition is none.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int = 0,
        embedding: str | nn.Module = "positional",
        conditions: Mapping[str, Condition] | None = None,
    ) -> None:
        super().__init__()
        dim = check_dim(dim)
        self.conditions = Conditions(conditions, n_classes)
        self.features = _features(embedding, dim)
        self.input = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.embeddings = self.conditions.embeddings(dim)

    def forward(self, c_noise: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """Return [N, dim], with N = B, or N = 1 where no argument varies over the batch.

        Args:
            c_noise: [] or [B], any real number.
            label: [B], int64 in 0 ... n_classes, n_classes being the null class; None: the null class for all.
            **conditions: Values of the others, [B, *shape] each; None: the null value for all.

        Raises:
            ValueError: If a condition is given that the network was built without.
        """
        given = {name: value for name, value in {"label": label, **conditions}.items() if value is not None}
        if strange := ", ".join(name for name in given if name not in self.conditions):
            takes = ", ".join(self.conditions) or "none"
            raise ValueError(
                f"this network was built without the condition {strange} (with {takes}); set n_classes or conditions, "
                "or pass None"
            )
        h = self.input(self.features(c_noise.reshape(-1)).to(self.input.weight.dtype))
        for name, embedding in self.embeddings.items():
            value = given.get(name)
            h = h + embedding(self.conditions[name].nulls(1, h.device) if value is None else value)
        return F.silu(self.output(F.silu(h)))


class Network(nn.Module):
    """What the library's networks have in common; see `NetworkDenoiser` for what the attributes say.

    Attributes:
        shape: Of one sample.
        conditioning: The embedding of noise level and conditions.
    """

    casts_inputs = True
    shape: tuple[int, ...]
    conditioning: Conditioning

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Those that the network was built with."""
        return tuple(self.conditioning.conditions)

    def check_conditions(
        self, conditions: Mapping[str, Any], batch: int, device: torch.device, wait: bool = True
    ) -> dict[str, Tensor | None]:
        """Conditions as `forward` takes them; see `Condition.check`."""
        return self.conditioning.conditions.check(conditions, batch, device, wait)

    def extra_repr(self) -> str:
        """Shape and conditions."""
        return f"shape={list(self.shape)}, conditions={self.conditioning.conditions}"


def _features(embedding: str | nn.Module, dim: int) -> nn.Module:
    """The noise features that a name stands for, or those given."""
    if isinstance(embedding, nn.Module):
        with torch.no_grad():
            found = embedding(torch.zeros(1))
        if found.shape != (1, dim):
            raise ValueError(
                f"embedding must map [N] to [N, {dim}] (embedding_dim); it maps [1] to {list(found.shape)}"
            )
        return embedding
    if not isinstance(embedding, str) or embedding not in EMBEDDINGS:
        raise ValueError(
            f"embedding must be one of {', '.join(EMBEDDINGS)}; got {embedding!r} (or give a module [N] -> [N, {dim}])"
        )
    return EMBEDDINGS[embedding](dim)


def check_arguments(x: Tensor, c_noise: Tensor, shape: tuple[int, ...]) -> None:
    """Check the arguments of a network's forward pass.

    Raises:
        ValueError: If x is not [B, *shape] or c_noise is neither [] nor [B].
    """
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"x must be [B, {', '.join(map(str, shape))}]; got {list(x.shape)}")
    if c_noise.ndim > 1 or (c_noise.ndim == 1 and c_noise.shape[0] != x.shape[0]):
        raise ValueError(f"c_noise must be [] or [{x.shape[0]}], one number per sample; got {list(c_noise.shape)}")


def check_shape(shape: Sequence[int], ndim: int | None = None) -> tuple[int, ...]:
    """The shape of one sample, as a tuple of ints.

    Raises:
        ValueError: If the shape is empty, a size is not a positive integer, or there are not `ndim` sizes.
    """
    allowed = f"{'a list of' if ndim is None else ndim} positive sizes without the batch"
    return check_sizes("shape", shape, allowed, least=ndim or 1, most=ndim or math.inf)
