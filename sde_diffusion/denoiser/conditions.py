"""Which keywords of a call are conditions, and the error messages for others."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

_SEEDS = "for reproducible results give seeds=, one integer for each sample"
_LABEL = "classes are given as label=, integers"
_STEPS = "this is an argument of the sampler's constructor, as in AncestralSampler(steps=50)"
_SHAPE = "the number of samples is the first size of shape, (B, *dims)"
_LATENT = "the starting noise is given as latent="
_HINTS = {
    **dict.fromkeys(("seed", "seeds", "generator", "generators", "rng", "random_state"), _SEEDS),
    **dict.fromkeys(("labels", "y", "class_label", "class_labels", "classes", "cls"), _LABEL),
    **dict.fromkeys(("steps", "n_steps", "num_steps", "num_inference_steps", "eta", "grid", "denoise"), _STEPS),
    **dict.fromkeys(("n", "batch_size", "num_samples", "n_samples", "size"), _SHAPE),
    **dict.fromkeys(("latents", "noise", "init", "x_T", "z"), _LATENT),
}
"""Keywords of other libraries, with the hint that replaces each."""

_RESERVED = ("seed", "seeds", "generator")
"""Conditions only if a denoiser names them: if they were ignored silently, the samples would be the wrong ones."""


def keyword_names(function: Callable[..., Any], first: int) -> tuple[str, ...] | None:
    """The keywords that a function takes after its first arguments; None if it takes any, or they are unknown."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(parameter.name for parameter in parameters[first:] if parameter.kind in named)


def check_names(given: Mapping[str, Any], allowed: Collection[str] | None, owner: str) -> dict[str, Any]:
    """Check that all conditions are known. Unknown ones that are None are ignored.

    Args:
        given: The conditions.
        allowed: Names of the known conditions; None: any name is allowed.
        owner: Whose conditions they are, for the message.

    Returns:
        The known conditions.

    Raises:
        TypeError: If one is not known; the message lists those that are, and what may have been meant.
    """
    known = {}
    for name, value in given.items():
        if name in allowed if allowed is not None else name not in _RESERVED:
            known[name] = value
        elif value is not None:
            raise TypeError(_unknown(name, allowed, owner))
    return known


def _unknown(name: str, allowed: Collection[str] | None, owner: str) -> str:
    if allowed is None:
        return f"{name!r} is not a condition unless {owner} names it in its `forward` or `conditions`: {_SEEDS}"
    what = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
    known = dict(_HINTS)
    if "label" not in allowed:
        known = {typed: hint for typed, hint in known.items() if hint is not _LABEL}
    close = difflib.get_close_matches(name, [*allowed, *known], 1, 0.8)
    hint = ""
    if close:
        hint = known.get(close[0], f"did you mean {close[0]}=?")
    return f"{owner} takes no condition {name!r} ({what}){': ' if hint else ''}{hint}"


def repeated(value: Any, times: int, batch: int | None = None) -> Any:
    """A tensor [B, *], `times` times one after another; with `batch` = B given, another value stays as it is."""
    if batch is None or (isinstance(value, Tensor) and value.ndim and len(value) == batch):
        return value.repeat(times, *(1,) * (value.ndim - 1))
    return value


def chosen(value: Any, items: Tensor | slice, batch: int) -> Any:
    """A condition for some items of a batch: of a tensor with a row for each sample their rows; others stay."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[items.to(value.device) if isinstance(items, Tensor) else items]
    return value
