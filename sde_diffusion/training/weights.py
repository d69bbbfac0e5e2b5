"""Whether weights from a file fit a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sde_diffusion.checks.reprs import few
from sde_diffusion.training.base import BaseModel
from sde_diffusion.training.entries import ContentsError


@contextmanager
def no_larger_than(weights: Mapping[str, Tensor], path: str = "") -> Iterator[None]:
    """Context in which modules may not have many more parameters than there are weights.

    A configuration from a file may describe a network that fits in no memory, or one with billions of layers. Up to
    twice as many parameters are allowed, so that networks that merely differ are reported by `check_weights`, whose
    message names the differences.

    Args:
        weights: The weights in the file.
        path: The file, for the message.

    Raises:
        ContentsError: When the first parameter beyond this limit is registered.
    """
    of = f"{path}: its " if path else "its "
    left = {"tensors": 2 * len(weights), "values": 2 * sum(tensor.numel() for tensor in weights.values())}

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is not None:
            left["tensors"] -= 1
            left["values"] -= parameter.numel()
        if min(left.values()) < 0:
            raise ContentsError(f"{of}network has more parameters than the file has weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that weights fit a model: the same names, shapes and kinds of numbers, and no NaN or infinite parameters.

    Raises:
        ContentsError: If they do not; the message has the first names of each kind.
    """
    wanted = model.state_dict()
    other = [
        f"{name} {list(weights[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    kind = [
        name for name, tensor in wanted.items() if name in weights and _kind(weights[name].dtype) != _kind(tensor.dtype)
    ]
    parts = {
        "missing": [name for name in wanted if name not in weights],
        "not of its network": [name for name in weights if name not in wanted],
        "of another shape": other,
        "of another kind of number": kind,
    }
    if any(parts.values()):
        found = [f"{len(names)} {what} ({few(names, 3)})" for what, names in parts.items() if names]
        raise ContentsError(f"its weights do not fit its network: {'; '.join(found)}")
    names = [name for name, _ in model.named_parameters()]
    lost = [name for name in names if not bool(torch.isfinite(weights[name]).all())]
    if lost:
        raise ContentsError(f"its weights have NaN or infinite values, in {few(lost, 3)}")


def check_moments(model: BaseModel, optimizer: Mapping[str, Any]) -> None:
    """Check that the state of an optimizer fits the parameters of a model.

    Raises:
        ContentsError: If it does not.
    """
    groups = [group["params"] for group in model.parameter_groups()]
    parameters, kept = list(chain(*groups)), [list(group["params"]) for group in optimizer["param_groups"]]
    if list(map(len, kept)) != list(map(len, groups)) or list(chain(*kept)) != list(range(len(parameters))):
        raise ContentsError(f"its optimizer is not that of the {len(parameters)} parameters of its network")
    for number, state in optimizer["state"].items():
        if number >= len(parameters) or any(
            state[name].shape != parameters[number].shape or not bool(torch.isfinite(state[name]).all())
            for name in ("exp_avg", "exp_avg_sq")
        ):
            raise ContentsError(f"its optimizer's moments do not fit the parameters of its network, from {number} on")


def _kind(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "integer"
