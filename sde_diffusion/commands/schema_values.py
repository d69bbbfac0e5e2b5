"""Types and ranges of values that the commands' own keys may have; see `schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from sde_diffusion.checks.hints import Count, Described, Rule, words
from sde_diffusion.sde import GRIDS

Seed = Annotated[int, Rule("an integer of at most 64 bits", lambda n: True)]
Split = Literal["train", "val", "test"]
Decode = Literal["mean", "draw"]
_NOISE = "a standard deviation on [-1, 1], from 0 to 2 (of grey levels 0 ... 255: divide it by 127.5)"
NoiseScale = Annotated[float, Rule(_NOISE, lambda x: 0 <= x <= 2)]


class Location(TypedDict, total=False):
    """The new location of a model's own data."""

    root: str | None
    path: str | None


class Upsampler(TypedDict):
    """The second model of a cascade."""

    ckpt: str | None
    noise: NoiseScale


class FirstStageSettings(TypedDict):
    """The first stage of latent diffusion."""

    ckpt: str | None


class ELBOSettings(TypedDict):
    """Settings of the ELBO."""

    steps: Count | None
    draws: Count | None
    decoder: Literal["frequencies", "uniform", "dequantised"] | Described
    grid: Literal[tuple(GRIDS)] | Described | None  # type: ignore[valid-type]
    t_end: float | None


_SHARE_OF_NOISE = "a number in (0, 1], the share of noise where the walk begins (1: nothing of what was given is left)"


class Editing(TypedDict):
    """What `sample` varies, and how much."""

    path: str | None
    strength: Annotated[float, Rule(_SHARE_OF_NOISE, lambda x: 0 < x <= 1)]


def _is_interval(ends: list[float] | None) -> bool:
    return ends is None or (len(ends) == 2 and 0 <= ends[0] < ends[1])


Scale = Annotated[float, Rule("a finite number of at least 0 (1: conditional, 0: unconditional)", lambda w: w >= 0)]
Ends = Annotated[list[float] | None, Rule("null or [low,high] in sigma/alpha with 0 <= low < high", _is_interval)]


class Entry(TypedDict):
    """A sampler of `benchmarks.nfe_fid`, and the network passes of its steps."""

    each: Count
    extra: int
    sampler: Described


class Tuning(TypedDict):
    """How `benchmarks.nfe_fid` finds grids: for which samplers and numbers of passes, and by which samples."""

    samplers: list[str]
    nfe: list[Count]
    n: Count
    seed: Seed
    target: Count


def some(hint: Any, example: str) -> Any:
    """The hint of a list that is not empty."""
    return Annotated[list[hint], Rule(f"{words(list[hint])}, such as {example}", bool)]
