"""Measurements by a matrix, or by any differentiable function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_diffusion.checks import as_numbers, check_sizes
from sde_diffusion.checks.reprs import shown
from sde_diffusion.guidance.operators.base import Linearised, Operator


class LinearOperator(Operator):
    """A matrix that acts on flattened data: [B, *dims] -> [B, M].

    Args:
        matrix: A, [M, D].
        shape: Shape *dims of the data; [D] by default.

    Raises:
        ValueError: If the matrix has another shape.
    """

    matrix: Tensor
    eigenvalues: Tensor
    vectors: Tensor

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        matrix = as_numbers("matrix", matrix)
        if matrix.ndim != 2:
            raise ValueError(f"matrix must be [M, D]; got {list(matrix.shape)}")
        self.dims = (matrix.shape[1],) if shape is None else check_sizes("shape", shape)
        if torch.Size(self.dims).numel() != matrix.shape[1]:
            raise ValueError(f"data of shape {list(self.dims)} do not fit a matrix of {matrix.shape[1]} columns")
        self.register_buffer("matrix", matrix)
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        self.register_buffer("eigenvalues", values.clamp(min=0), persistent=False)
        self.register_buffer("vectors", vectors, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """A x; see `Operator.forward`."""
        if tuple(x.shape[1:]) != self.dims:
            raise ValueError(f"the matrix is for data of shape {list(self.dims)}; got {list(x.shape[1:])}")
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y; see `Operator.adjoint`."""
        return (y @ self.matrix.to(y)).reshape(-1, *self.dims)

    def filter(self, y: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        """By the eigenvectors of A A^T, found once; see `Operator.filter`."""
        vectors = self.vectors.to(y)
        return (response(self.eigenvalues.to(y).expand_as(y)) * (y @ vectors)) @ vectors.T

    def spectrum(self, out: Sequence[int]) -> Tensor:
        """See `Operator.spectrum`."""
        return self.eigenvalues

    def extra_repr(self) -> str:
        """The shapes."""
        return f"matrix={list(self.matrix.shape)}, shape={list(self.dims)}"


class Nonlinear(Operator):
    """A differentiable function of data, [B, *dims] -> [B, *out]; each sample's result depends on that sample alone.

    Near a state it is replaced by its tangent (Gauss-Newton).

    Args:
        function: The function.

    Raises:
        TypeError: If function is not a function.
    """

    linear = False

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if isinstance(function, type) or not callable(function):
            raise TypeError(f"function must be a function of data [B, *dims]; got {shown(function)}")
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """function(x); see `Operator.forward`."""
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A nonlinear function has no adjoint; that of its tangent is given by `linearise`."""
        raise ValueError("a nonlinear operator has no adjoint; use linearise(x).adjoint")

    def linearise(self, x: Tensor, create_graph: bool = False) -> Linearised:
        """The tangent at x; see `Operator.linearise`."""
        value = self(x)
        if not value.requires_grad:
            raise ValueError("the function of Nonlinear must be differentiable; its result has no gradient")

        def adjoint(v: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(value, x, v, retain_graph=True, create_graph=create_graph)
            return found

        def forward(u: Tensor) -> Tensor:
            # The derivative of v -> J^T v, which is linear, in the direction u.
            v = torch.zeros_like(value, requires_grad=True)
            (product,) = torch.autograd.grad(value, x, v, retain_graph=True, create_graph=True)
            (found,) = torch.autograd.grad(product, v, u, retain_graph=create_graph, create_graph=create_graph)
            return found

        return Linearised(value, forward, adjoint)
