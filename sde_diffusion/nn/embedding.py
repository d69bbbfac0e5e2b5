"""Embed the noise level and the conditions into one vector, which modulates the blocks of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.checks import as_number, check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.conditions import Condition, Conditions


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
    """DDPM's frequencies, 1 down to 1e-4 radians per step, for steps 0 ... 999 (noise_conditioning="step").

    With the default frequencies of `PositionalEmbedding`, features of 999 t would turn 2,500 times along the path. The
    network would then vary rapidly in time, and its probability flow take more network passes to solve.

    Args:
        dim: Number of features; even, at least 4.

    References:
        Ho et al. 2020, appendix B.
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


def check_dim(dim: int) -> int:
    """The size of an embedding, as an int.

    Raises:
        ValueError: If it is odd, below 4 or not an integer.
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
    """One vector for each sample from c_noise and the conditions: SiLU(W_2 SiLU(W_1 f(c) + sum_k e_k(value_k))).

    Args:
        dim: Size of the vector; even, at least 4.
        n_classes: Short for conditions={"label": Label(n_classes)}; 0: no labels.
        embedding: The features f of c_noise: "positional", "ddpm" or "fourier", or a module that maps [N] to [N, dim].
        conditions: The conditions by name, each with an embedding e_k.

    Raises:
        ValueError: If embedding is unknown or of another width, n_classes is negative, dim is odd or below 4, or a name
            cannot be that of a condition.
        TypeError: If a value of `conditions` is not a `Condition`.
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
        self._names_beside = [name for name, kind in self.conditions.items() if kind.beside_x]
        self._names_of_tokens = [name for name, kind in self.conditions.items() if kind.has_tokens]

    @property
    def shapes_beside(self) -> list[tuple[int, ...]]:
        """The shapes of the values of conditions that a network takes beside x."""
        return [kind.shape for kind in self.conditions.values() if kind.beside_x]

    def beside(self, x: Tensor, **conditions: Tensor | None) -> list[Tensor]:
        """The values that a network takes beside x, [B, *shape] each, of x's type; 0 in place of null values.

        Args:
            x: [B, *].
            **conditions: See `forward`.
        """
        found = []
        for name in self._names_beside:
            value = conditions.get(name)
            if value is None:
                value = self.conditions[name].nulls(1, x.device)
            value = torch.where(value.isnan(), 0.0, value).to(x.dtype)
            found.append(value.expand(len(x), *value.shape[1:]))
        return found

    @property
    def has_tokens(self) -> bool:
        """Whether a condition, such as a text, has tokens."""
        return bool(self._names_of_tokens)

    def tokens(self, batch: int, **conditions: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens of all conditions that have some, [batch, n, dim], and which of them there are, bool [batch, n].

        Args:
            batch: Number of samples.
            **conditions: See `forward`.
        """
        found, masks = [], []
        for name in self._names_of_tokens:
            value = conditions.get(name)
            if value is None:
                value = self.conditions[name].nulls(1, self.input.weight.device)
            tokens, mask = self.embeddings[name].tokens(value)  # type: ignore[operator]
            found.append(tokens.expand(batch, *tokens.shape[1:]))
            masks.append(mask.expand(batch, mask.shape[1]))
        return torch.cat(found, 1), torch.cat(masks, 1)

    def forward(self, c_noise: Tensor, label: Tensor | None = None, **conditions: Tensor | None) -> Tensor:
        """Return [N, dim], with N = B, or N = 1 where no argument varies over the batch.

        Args:
            c_noise: [] or [B], any real number.
            label: [B], int64 in 0 ... n_classes, where n_classes is the null class; None: the null class for all.
            **conditions: Values of the other conditions, [B, *shape] each; None: the null value for all.

        Raises:
            ValueError: If a condition is given that the network was built without.
        """
        given = {name: value for name, value in {"label": label, **conditions}.items() if value is not None}
        if unknown := ", ".join(name for name in given if name not in self.conditions):
            known = ", ".join(self.conditions) or "none"
            raise ValueError(
                f"this network was built without the condition {unknown} (it has {known}); set n_classes or "
                "conditions, or pass None"
            )
        h = self.input(self.features(c_noise.reshape(-1)).to(self.input.weight.dtype))
        for name, embedding in self.embeddings.items():
            value = given.get(name)
            h = h + embedding(self.conditions[name].nulls(1, h.device) if value is None else value)
        return F.silu(self.output(F.silu(h)))


def _features(embedding: str | nn.Module, dim: int) -> nn.Module:
    """The module that computes features of c_noise, given by name or as it is.

    Raises:
        ValueError: If it is neither, or its features are not [N, dim].
    """
    table = {name: partial(kind, dim) for name, kind in EMBEDDINGS.items()}
    module: nn.Module = as_instance("embedding", embedding, table, nn.Module, f"a module [N] -> [N, {dim}]")
    if module is embedding:
        with torch.no_grad():
            found = module(torch.zeros(1))
        if found.shape != (1, dim):
            raise ValueError(
                f"embedding must map [N] to [N, {dim}] (embedding_dim); it maps [1] to {list(found.shape)}"
            )
    return module
