"""The base class of all measurement operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Linearised:
    """A measurement near a state: A(x + u) = value + forward(u), to first order in u.

    Attributes:
        value: A(x), [B, *out].
        forward: u, [B, *dims] -> [B, *out].
        adjoint: Its adjoint, v, [B, *out] -> [B, *dims].
    """

    value: Tensor
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


class Operator(nn.Module, ABC):
    """A measurement y = A(x_0) + noise n of data, linear unless `Nonlinear`.

    A subclass defines `forward` and `adjoint`, and `filter` and `spectrum` if the eigenvectors of A A^T are cheap, for
    the methods that need them: `pinv`, the likelihoods `PseudoInverse` and `JacobianFree`, and samplers that replace
    what is known.
    """

    linear = True

    part_of_data: ClassVar[bool] = False
    """Whether y are numbers of the data themselves, so that data in which the others are arbitrary say what y is."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x, [B, *dims] -> [B, *out].

        Raises:
            ValueError: If data of this shape cannot be measured.
        """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, [B, *out] -> [B, *dims], with <A x, y> = <x, A^T y>."""

    def filter(self, y: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        """U f(E) U^T y, with the eigenvectors U and eigenvalues E of A A^T.

        Args:
            y: [B, *out].
            response: The function f, of eigenvalues that broadcast against a tensor of y's shape.

        Returns:
            [B, *out].

        Raises:
            ValueError: If the eigenvectors are not known.
        """
        raise self._unknown()

    def spectrum(self, out: Sequence[int]) -> Tensor:
        """All eigenvalues of A A^T, [M], float64, for measurements of shape *out; M is their number.

        Raises:
            ValueError: See `filter`.
        """
        raise self._unknown()

    def _unknown(self) -> ValueError:
        return ValueError(f"the eigenvectors of {self} are not cheap; MomentMatching, the default, does not need them")

    def pinv(self, y: Tensor) -> Tensor:
        """The pseudo-inverse A^T (A A^T)^+ y: the data of least norm that give y; [B, *out] -> [B, *dims].

        Eigenvalues below 1e-6 of the largest count as zero.

        Raises:
            ValueError: See `filter`.
        """
        return self.adjoint(self.filter(y, _inverse))

    def linearise(self, x: Tensor, create_graph: bool = False) -> Linearised:
        """The operator near x, [B, *dims].

        Args:
            x: The data; for a nonlinear operator they must require a gradient.
            create_graph: Whether the result will be differentiated.
        """
        return Linearised(self(x), self.__call__, self.adjoint)

    def output_shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The shape *out of the measurement of data of shape *dims.

        Raises:
            ValueError: If data of this shape cannot be measured.
        """
        place = next((buffer.device for buffer in self.buffers()), None)
        with torch.no_grad():
            return tuple(self(torch.zeros(1, *dims, device=place)).shape[1:])


def _inverse(eigenvalues: Tensor) -> Tensor:
    known = eigenvalues > 1e-6 * eigenvalues.amax()
    return torch.where(known, 1 / torch.where(known, eigenvalues, 1.0), 0.0)
