"""The base class of all kinds of conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.config import settings_of
from sde_diffusion.errors import UserError

Array = npt.NDArray[Any]


class Condition(ShowsArguments, ABC):
    """A kind of condition: the allowed values, and how a network embeds them.

    The values of a batch are a tensor [B, *shape]. One of them, `null`, stands for "no value": a model without the
    condition and a model with the null value are the same.

    A new kind is a subclass that stores its constructor's arguments (numbers, text, lists) in attributes of the same
    names, sets the attributes below, and defines the abstract methods.

    Attributes:
        dtype: Type of the values.
        shape: Shape of one sample's value; () for a number.
        null: The null value of one sample: a number, or a tensor of that shape.
        each: How messages describe one sample's value.
        names: Names of the values 0, 1, ..., if they are named classes.
        beside_x: Whether the library's networks take the values as further input beside x, and not only their
            embedding; the null value is NaN then.
        has_tokens: Whether the embedding also has a method `tokens`, which maps values [N, *shape] to any number of
            vectors [N, n, dim] and bool [N, n], which of them there are.
        groups: Arguments of its constructor that are chosen by groups of the command `train`, with the groups' names,
            as in {"encoder": "text"}. In the other commands such a name is that of a condition.
        n_numbers: How many numbers `numbers` returns of each value; 0: it is not defined.
        training_only: Whether only training sets it: samplers, guidance and commands leave it at the null value.
    """

    dtype: ClassVar[torch.dtype]
    shape: tuple[int, ...] = ()
    null: int | float | Tensor
    each: str
    names: Sequence[str] | None = None
    beside_x: ClassVar[bool] = False
    has_tokens: ClassVar[bool] = False
    groups: ClassVar[Mapping[str, str]] = MappingProxyType({})
    n_numbers: int = 0
    training_only: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def of(cls, splits: Sequence[Tensor], names: Sequence[str] | None = None) -> Self | None:
        """The condition of a data set's values, or None if they are of another kind.

        Args:
            splits: Values of each split, [N, ...], beginning with the training split.
            names: Names of the classes, if the values are named classes.
        """

    @abstractmethod
    def allowed(self, name: str) -> str:
        """Which values are allowed, for messages: "label must be integers in 0 ... 9 (or 10: no label)"."""

    @abstractmethod
    def takes(self, dtype: torch.dtype) -> bool:
        """Whether values of this type are allowed."""

    @abstractmethod
    def wrong(self, values: Tensor) -> str:
        """The first value of [..., *shape] that is out of range, for messages; "" if there is none."""

    @abstractmethod
    def embedding(self, dim: int) -> nn.Module:
        """A module that maps values [N, *shape], including null values, to vectors [N, dim]."""

    def numbers(self, values: Tensor) -> Tensor:
        """Numbers that stand for values [N, *shape], [N, n_numbers], such as indicators of classes of mean square 1.

        They are 0 for the null value.
        """
        raise NotImplementedError

    def zero_null(self, dim: int) -> nn.Module:
        """A module like that of `embedding`, which maps the null value to 0."""
        return _ZeroNull(self, dim)

    def in_turn(self, n: int) -> Tensor | None:
        """All possible values in turn, [n, *shape]; None if they are not countable."""
        return None

    @property
    def what(self) -> str:
        """What the values are, in words: "a number"."""
        return f"a {self.each}"

    def words(self, value: Tensor) -> str:
        """One sample's value [*shape] in words: a number, a list of numbers, or "none" for the null value."""
        return "none" if bool(self.is_null(value.cpu().unsqueeze(0))) else _short(value.tolist())

    def to_file(self, values: Tensor) -> Array:
        """The values [n, *shape] as an array of a file of samples."""
        return np.asarray(values.cpu())

    def is_none(self, typed: Any) -> bool:
        """Whether what was typed on a command line means "without this condition": null, or none."""
        return typed is None or (isinstance(typed, str) and typed.lower() == "none")

    def describe(self) -> dict[str, Any]:
        """The class (by public path) and the constructor's arguments, in plain Python containers, for checkpoints."""
        return settings_of(self, Condition)

    def nulls(self, n: int, device: torch.device | str | None = None) -> Tensor:
        """The null value of n samples, [n, *shape]."""
        if isinstance(self.null, Tensor):
            return self.null.to(device, self.dtype).expand(n, *self.shape)
        return torch.full((n, *self.shape), self.null, dtype=self.dtype, device=device)

    def is_null(self, values: Tensor) -> Tensor:
        """Which of the values [N, *shape] are the null value, bool [N]."""
        null = self.nulls(1, values.device)
        same = (values == null) | (values.isnan() & null.isnan())
        return same.reshape(len(values), -1).all(1)

    def check(self, name: str, value: Any, batch: int, device: torch.device | None = None, wait: bool = True) -> Tensor:
        """Check the values of a batch, and return them as embeddings take them.

        Args:
            name: Name of the condition.
            value: One value for each sample, or one for all: a tensor, an array, a list or a number.
            batch: Number of samples B.
            device: Device of the result.
            wait: Whether to check values on a GPU too, which must wait for it.

        Returns:
            [B, *shape], of type `dtype`.

        Raises:
            ValueError: If values have another type, are out of range, or there are not B of them.
        """
        try:
            values = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{self.allowed(name)}; got {value!r:.60}") from None
        if not self.takes(values.dtype):
            raise ValueError(f"{self.allowed(name)}; got {str(values.dtype).removeprefix('torch.')}")
        lead = tuple(values.shape[: max(0, values.ndim - len(self.shape))])
        if tuple(values.shape) != (*lead, *self.shape) or lead not in ((), (1,), (batch,)):
            samples = f"each of the {batch} samples" if batch > 1 else "all samples"
            raise ValueError(f"{name} must be one {self.each} for {samples}; got shape {list(values.shape)}")
        # Under torch.compile, a check of the values would break the graph.
        if wait or (values.device.type == "cpu" and not torch.compiler.is_compiling()):
            wrong = self.wrong(values.to(self.dtype))
            if wrong:
                raise ValueError(f"{self.allowed(name)}; got {wrong}")
        return values.to(device, self.dtype).expand(batch, *self.shape)

    def read(self, name: str, typed: Any, n: int) -> Tensor:
        """Read values of n samples from a command line.

        Args:
            name: Name of the condition.
            typed: What was typed after NAME=, or the array in a file: one value for all samples, or one for each.
            n: Number of samples.

        Returns:
            [n, *shape].

        Raises:
            UserError: If a value is not allowed, or there are not n of them.
        """
        try:
            return self.check(name, typed, n)
        except ValueError as error:
            raise UserError(str(error)) from error


def _short(value: Any) -> str:
    return f"[{','.join(map(_short, value))}]" if isinstance(value, list) else f"{value:g}"


class _ZeroNull(nn.Module):
    """An embedding, and 0 for the null value."""

    def __init__(self, kind: Condition, dim: int) -> None:
        super().__init__()
        self.embedding, self.is_null = kind.embedding(dim), kind.is_null

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.embedding(values)
        return torch.where(self.is_null(values)[:, None], torch.zeros_like(found), found)
