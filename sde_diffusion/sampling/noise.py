r"""Per-sample noise: the noise of sample i is a function of its own seed alone.

This is a counter-based generator (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): the j-th number
of draw k for seed s is a hash of (s, k, j). It has no state, draws the batch at once, and gives the same integers on
every device, in every batch and in every process. The hash is splitmix64 (Steele et al. 2014, "Fast Splittable
Pseudorandom Number Generators", with Stafford's constants): a Weyl sequence from a hashed key, and a finaliser. The
normals are by Box and Muller, from 32 bits each, so that none exceeds 6.8 in size. Seeds are taken modulo 2^64.
"""

from __future__ import annotations

import copy
import hashlib
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.checks import check_sizes

_WEYL = 0x9E3779B97F4A7C15  # the odd integer nearest 2^64 / golden ratio
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_LOW_32 = 0xFFFFFFFF


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64: torch has no unsigned arithmetic, but wraps around in the same way."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser: a bijection of the 64-bit integers that flips each output bit with probability 1/2."""
    x = x.bitwise_xor(_shift_right(x, 30)).mul_(_signed(_MIX_1))
    x = x.bitwise_xor_(_shift_right(x, 27)).mul_(_signed(_MIX_2))
    return x.bitwise_xor_(_shift_right(x, 31))


def _multiples(count: int, device: torch.device) -> Tensor:
    """1, 2, ..., count times the Weyl constant, int64."""
    return torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(_signed(_WEYL))


def as_seeds(seeds: Sequence[int], count: int | None = None) -> list[int]:
    """Seeds as Python integers, from a sequence, an array or a tensor.

    Args:
        seeds: The seeds.
        count: How many there must be; None: any number.

    Raises:
        ValueError: If there are none or not so many, or one is not an integer.
    """
    try:
        values = seeds.tolist() if hasattr(seeds, "tolist") else list(seeds)
        found = [operator.index(seed) for seed in values if not isinstance(seed, bool)]
    except TypeError:
        values, found = [], []
    if not found or len(found) != len(values):
        raise ValueError(f"seeds must be one integer for each sample, such as range(8); got {seeds!r:.80}")
    if count not in (None, len(found)):
        raise ValueError(f"one seed for each sample is needed: {count} samples, {len(found)} seeds")
    return found


class Noise:
    """Independent streams of standard normals, one for each sample.

    Args:
        seeds: One integer for each sample, [B].
        dims: Shape of one sample.
        device: Where the noise is wanted.
        dtype: float32 or float64.

    Raises:
        ValueError: If there are no seeds, or one is not an integer.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        dims: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        signed = [_signed(seed) for seed in as_seeds(seeds)]
        self.dtype = dtype
        self.device = torch.device(device)
        keys = torch.tensor(signed, dtype=torch.int64, device=device)
        # Hashed twice with different offsets, so that the streams of seeds 0, 1, 2, ... are unrelated.
        self._keys = _mix(_mix(keys + _signed(_WEYL)) + _signed(_MIX_2))
        self._lay_out(dims)

    def _lay_out(self, dims: Sequence[int]) -> None:
        self.dims = check_sizes("dims", dims, least=0)
        self._pairs = -(-math.prod(self.dims) // 2)

    def stream(self, name: str, dims: Sequence[int] | None = None, n: int = 1) -> Noise:
        """Further streams of the same samples, independent of these and of those of other names.

        Args:
            name: What the draws are for.
            dims: Shape of one draw; that of these streams by default.
            n: Number of streams for each sample.

        Returns:
            The noise of B n streams, those of one sample next to each other.
        """
        found = copy.copy(self)
        tag = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        each = _multiples(n, self.device)
        found._keys = _mix(_mix(self._keys + _signed(tag)).unsqueeze(1) + each).flatten()
        found._lay_out(self.dims if dims is None else dims)
        return found

    def normal(self, draw: int) -> Tensor:
        """Standard normals of draw number `draw`, independent of those of other numbers, [B, *dims]."""
        bits = self._bits(draw)
        # 32 bits each: u in (0, 1], so that its logarithm is finite, and an angle.
        scale = 2.0**-32
        u = _shift_right(bits, 32).to(self.dtype).add_(0.5).mul_(scale)
        angle = bits.bitwise_and_(_LOW_32).to(self.dtype).mul_(2 * math.pi * scale)
        radius = u.log_().mul_(-2).sqrt_()
        normals = torch.empty(len(bits), 2, self._pairs, dtype=self.dtype, device=bits.device)
        torch.mul(radius, angle.cos(), out=normals[:, 0])
        torch.mul(radius, angle.sin_(), out=normals[:, 1])
        return self._shaped(normals)

    def uniform(self, draw: int) -> Tensor:
        """Uniform numbers in (0, 1] of the same draw, [B, *dims], float64; take `normal` or these from a draw."""
        bits = self._bits(draw)
        halves = torch.stack([_shift_right(bits, 32), bits.bitwise_and(_LOW_32)], 1)
        return self._shaped(halves.double().add_(0.5).mul_(2.0**-32))

    def _bits(self, draw: int) -> Tensor:
        keys = _mix(self._keys + _signed((draw + 1) * _MIX_1))
        # Counted anew for each draw: kept, the counters would take as much memory as a sample all along the walk.
        return _mix(keys.unsqueeze(1) + _multiples(self._pairs, self.device))

    def _shaped(self, values: Tensor) -> Tensor:
        return values.flatten(1)[:, : math.prod(self.dims)].reshape(len(values), *self.dims)
