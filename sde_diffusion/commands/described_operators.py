"""Operators for the command line: masks by pictures, parts or coordinates, and matrices from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.checks import as_integer
from sde_diffusion.checks.reprs import few
from sde_diffusion.config import build_around
from sde_diffusion.data.images import Reading, headers
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.guidance import LinearOperator, Mask, Operator
from sde_diffusion.storage.npz import read_arrays_of

PARTS: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "upper_half": ((0, 0.5), (0, 1)),
    "lower_half": ((0.5, 1), (0, 1)),
    "left_half": ((0, 1), (0, 0.5)),
    "right_half": ((0, 1), (0.5, 1)),
    "center": ((0.25, 0.75), (0.25, 0.75)),
}
"""Parts of a picture by name: where they begin and end, as shares of the height and of the width."""

_MEANING = "white is to be filled, black is known (operator.invert=true: the other way round)"


class MaskToFill(Mask):
    """A `Mask` that is described by what is to be filled: by one of path, part and coordinates; all channels alike.

    Args:
        shape: Shape of the data.
        path: For pictures [C, H, W], a picture of H x W pixels with two values, of which the lighter one is to be
            filled; for any data, an .npy that broadcasts to their shape, 1 (or true) where they are to be filled and
            0 elsewhere.
        part: upper_half, lower_half, left_half, right_half or center (half of each side) of a picture; the last three
            also along the last axis of other data.
        coordinates: Indices along the last axis, from 0: coordinates of points, steps of signals, columns of pictures.
        invert: Whether what is described is known instead, and the rest is to be filled.

    Raises:
        UserError: If not exactly one of path, part and coordinates is given, there is no such part or coordinate, or
            the file cannot be read, or has another size, transparency, or other than two values.
    """

    def __init__(
        self,
        shape: Sequence[int],
        path: str | None = None,
        part: str | None = None,
        coordinates: Sequence[int] | None = None,
        invert: bool = False,
    ) -> None:
        several = {"path": path, "part": part, "coordinates": coordinates}
        if len(named := [f"operator.{name}" for name, value in several.items() if value is not None]) > 1:
            raise UserError(f"{' and '.join(named)} both say what is to be filled: leave out all but one")
        if not named:
            raise UserError(
                "say what is to be filled: operator.path=MASK.png, a picture that is white there and black elsewhere "
                "(of other data an .npy of 1 and 0), operator.coordinates=[0,...], along the last axis of the data, or "
                f"operator.part= one of {', '.join(PARTS)}"
            )
        if coordinates is not None:
            filled = _at(coordinates, shape)
        elif part is not None:
            filled = _part(part, shape)
        else:
            filled = _in_file(Path(str(path)), shape)
        super().__init__(filled if invert else ~filled, shape)


class MatrixFile(LinearOperator):
    """A `LinearOperator` whose matrix is in a file.

    Args:
        shape: Shape of the data, of D numbers in all.
        path: An .npy, or an .npz with one array: [M, D], which acts on flattened data on [-1, 1].

    Raises:
        UserError: If the file cannot be read, has another shape, or NaN or infinite numbers.
    """

    def __init__(self, shape: Sequence[int], path: str | None = None) -> None:
        if path is None:
            raise UserError("give the matrix, [M, D] for data of D numbers: operator.path=MATRIX.npy")
        matrix, size = _array(Path(path)), int(np.prod(shape))
        if matrix.ndim != 2 or matrix.shape[1] != size or not len(matrix):
            raise UserError(
                f"the matrix {path} must be [M, {size}], for data of shape {list(shape)}; got {list(matrix.shape)}"
            )
        if not bool(matrix.isfinite().all()):
            raise UserError(f"the matrix {path} has NaN or infinite numbers")
        super().__init__(matrix, shape)


def build_operator(node: Mapping[str, Any], dims: Sequence[int]) -> Operator:
    """The operator that a configuration describes, for data of shape dims.

    Raises:
        UserError: If a value is not allowed, data of this shape cannot be measured, or it is not what it claims to be:
            linear, with its adjoint, and finite for data on [-1, 1].
    """
    axes = max(1, min(2, len(dims) - 1))
    found = build_around(node, "operator", any_library=True, shape=list(dims), dims=axes)
    if not isinstance(found, Operator):
        raise UserError(f"operator must describe an object of class Operator; got {node['_target_']}")
    try:
        out = found.output_shape(dims)
    except (ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"operator: {error}; the model's data have shape {list(dims)}") from error
    u, v = 2 * torch.rand(2, 1, *dims, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        measured, other = found(u), found(v)
        if not bool(measured.isfinite().all()):
            raise UserError(f"operator: {found} gives NaN or infinite numbers for data on [-1, 1]")
        if found.linear:
            _check_linear(found, u, v, measured, other, out)
    return found


def _check_linear(
    operator: Operator, u: Tensor, v: Tensor, measured: Tensor, other: Tensor, out: Sequence[int]
) -> None:
    error = (operator(u + v) - measured - other).norm()
    if float(error) > 1e-3 * float(measured.norm() + other.norm()):
        raise UserError(
            f"operator: {operator} is not linear, A(u + v) differs from A u + A v: use a subclass of "
            "sde_diffusion.guidance.Nonlinear, or set its attribute linear to False"
        )
    w = torch.randn(1, *out, generator=torch.Generator().manual_seed(1))
    there, back = float((measured * w).sum()), float((u * operator.adjoint(w)).sum())
    if abs(there - back) > 1e-3 * float(measured.norm() * w.norm()):
        raise UserError(f"operator: the adjoint of {operator} is wrong, <A u, w> = {there:g} and <u, A^T w> = {back:g}")


def _array(path: Path) -> Tensor:
    """The one array of an .npy or .npz, float64."""

    def choose(names: list[str]) -> list[str]:
        if len(names) != 1:
            raise UserError(f"{path} must have one array; it holds {few(names) or 'none'}")
        return names

    (array,) = read_arrays_of(path, choose, "array").values()
    if array.dtype.kind not in "buif":
        raise UserError(f"{path} must have numbers; got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def _at(coordinates: Sequence[int], shape: Sequence[int]) -> Tensor:
    """True at these indices of the last axis, bool [*shape]."""
    filled = torch.zeros(*shape, dtype=torch.bool)
    for one in coordinates:
        if not 0 <= as_integer("operator.coordinates", one) < shape[-1]:
            raise UserError(
                f"operator.coordinates must lie from 0 to {shape[-1] - 1}, for data of shape {list(shape)}; got {one}"
            )
        filled[..., one] = True
    return filled


def _part(part: str, shape: Sequence[int]) -> Tensor:
    """True in a part by name, bool [*shape]."""
    axes = max(1, min(2, len(shape) - 1))  # height and width, or the only axis beside channels
    names = [name for name, (vertical, _) in PARTS.items() if axes == 2 or vertical == (0, 1) or name == "center"]
    if part not in names:
        raise UserError(
            f"operator.part must be one of {', '.join(names)}, for data of shape {list(shape)}; got "
            f"operator.part={part}{did_you_mean(part, names)}"
        )
    filled = torch.zeros(*shape, dtype=torch.bool)
    inside: Any = [
        slice(int(begin * size), int(end * size))
        for (begin, end), size in zip(PARTS[part][-axes:], shape[-axes:], strict=True)
    ]
    filled[(..., *inside)] = True
    return filled


def _in_file(path: Path, shape: Sequence[int]) -> Tensor:
    """Where a file says that data are to be filled, bool, which broadcasts to shape."""
    if path.suffix.lower() not in (".npy", ".npz"):
        if len(shape) != 3:
            raise UserError(
                f"the mask {path} is a picture, and the data have shape {list(shape)}: give an .npy of 1 (to be "
                "filled) and 0, operator.coordinates=[0,...], or operator.part="
            )
        return _white(path, *shape[1:])
    filled = _array(path)
    if not bool(((filled == 0) | (filled == 1)).all()):
        raise UserError(f"the mask {path} must have the values 0 (known) and 1 (to be filled), and has others")
    try:
        return filled.bool().broadcast_to(tuple(shape))
    except RuntimeError:
        raise UserError(
            f"the mask {path} must have the shape of the data, {list(shape)}; got {list(filled.shape)}"
        ) from None


def _white(path: Path, height: int, width: int) -> Tensor:
    """Where a picture is white, bool [1, H, W]."""
    (header,) = headers([path], 1)
    if header.size != (width, height):
        size = f"{header.size[0]}x{header.size[1]}"
        raise UserError(f"the mask {path} is {size}, and must be {width}x{height}, as the model's pictures; {_MEANING}")
    if header.transparent:
        raise UserError(f"the mask {path} has an alpha channel: save it without transparency; {_MEANING}")
    found = Reading(None, "none", "RGB")(path)
    values = torch.unique(found.flatten(1), dim=1).T.tolist()
    if len(values) > 2 or any(len(set(value)) > 1 for value in values):
        raise UserError(
            f"the mask {path} must have two values, black and white, and has {len(values)}: threshold it, and save it "
            f"as PNG, since JPEG changes values; {_MEANING}"
        )
    if len(values) < 2:
        raise UserError(f"the mask {path} has one value only, so all pixels are known, or none; {_MEANING}")
    return found[:1].eq(max(value[0] for value in values))
