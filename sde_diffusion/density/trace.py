r"""The divergence of a vector field (the trace of its Jacobian J) from products J^T v.

A forward pass and one gradient with respect to the input give J^T v for one v. Hutchinson's estimate v . J^T v is
unbiased if E[v v^T] = I.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.sampling import Noise

PROBE_DRAWS = 1 << 40
"""Number of the first draw that probes use of a sample's noise stream: far beyond those of a walk with the same seed,
as a probe must be independent of the noise that made the sample."""

Products = Callable[[Tensor], Tensor]
"""Jacobian's transpose times vectors: [K, B, *dims] -> [K, B, *dims]."""


class Trace(ShowsArguments, ABC):
    """A method to compute the divergence. Its vectors are drawn once and used along the whole flow."""

    columns: int = 1
    """Number of estimates computed at the same time."""

    smooth: bool = True
    """Whether the divergence is smooth along a flow, so that a solver may include it in its error estimate."""

    exact: bool = False
    """Whether it is free of noise."""

    single_call: bool = False
    """Whether `divergence` asks for products once: activations are freed while they are computed."""

    @abstractmethod
    def vectors(self, noise: Noise) -> Tensor:
        """The vectors [K, B, *dims] for `divergence`, of the noise's type and on its device.

        Raises:
            ValueError: If the data have too few dimensions.
        """

    @abstractmethod
    def divergence(self, products: Products, vectors: Tensor) -> Tensor:
        """The divergence of each sample, or estimates of it; [B, columns]."""


class ExactTrace(Trace):
    """sum_i e_i . J^T e_i over all D dimensions: D gradients, for data of few dimensions.

    Args:
        chunk: Number of gradients computed at once, at least 1.

    Raises:
        ValueError: If chunk < 1.
    """

    exact = True

    def __init__(self, chunk: int = 64) -> None:
        self.chunk = check_count("chunk", chunk, also=" (gradients taken at once)")

    def vectors(self, noise: Noise) -> Tensor:
        """The unit vectors, [D, 1, *dims]."""
        size = math.prod(noise.dims)
        unit = torch.eye(size, dtype=noise.dtype, device=noise.device)
        return unit.reshape(size, 1, *noise.dims)

    def divergence(self, products: Products, vectors: Tensor) -> Tensor:
        """Sum of the Jacobian's diagonal."""
        total: Tensor | float = 0.0
        for part in torch.split(vectors, self.chunk):
            total = total + (products(part) * part).flatten(2).sum((0, 2))
        assert isinstance(total, Tensor)
        return total.unsqueeze(1)


class Hutchinson(Trace):
    """v . J^T v for several v with independent entries, one column for each.

    Args:
        probes: Number of vectors v, at least 1.
        gaussian: Whether to draw normal entries instead of random signs (Rademacher). Signs have the smaller variance,
            as the diagonal of the Jacobian does not contribute to it.

    Raises:
        ValueError: If probes < 1.

    References:
        Hutchinson 1990, "A Stochastic Estimator of the Trace of the Influence Matrix"; Grathwohl et al. 2019,
        "FFJORD", section 3.1.
    """

    single_call = True

    def __init__(self, probes: int = 1, gaussian: bool = False) -> None:
        self.probes = self.columns = check_count("probes", probes)
        self.gaussian = gaussian

    def vectors(self, noise: Noise) -> Tensor:
        """The probes."""
        draws = torch.stack([noise.normal(PROBE_DRAWS + k) for k in range(self.columns)])
        return draws if self.gaussian else _signs(draws)

    def divergence(self, products: Products, vectors: Tensor) -> Tensor:
        """One column for each probe."""
        return (products(vectors) * vectors).flatten(2).sum(2).T


class HutchPlusPlus(Trace):
    """tr(Q^T J Q) exactly on the range Q of J^T S for random S, plus Hutchinson's estimate on the complement.

    A third of the products each are for S, Q and the complement. It is exact if the rank of J is at most a third of
    `probes`, and has less variance than as many Hutchinson probes if J has few large eigenvalues, but more if J is
    mostly diagonal. Q rotates along the flow, quickly if J^T S is nearly rank-deficient, so the solver leaves the
    divergence out of its error estimate.

    Args:
        probes: Products J^T v for each evaluation, a multiple of 3.

    Raises:
        ValueError: If probes is not a positive multiple of 3.

    References:
        Meyer et al. 2021, "Hutch++: Optimal Stochastic Trace Estimation", algorithm 1.
    """

    smooth = False

    def __init__(self, probes: int = 3) -> None:
        self.probes = check_count("probes", probes)
        if self.probes % 3:
            raise ValueError(f"hutch++ shares its probes among three parts: give a multiple of 3; got {probes}")
        self.share = self.probes // 3

    def vectors(self, noise: Noise) -> Tensor:
        """S and the probes of the complement."""
        size = math.prod(noise.dims)
        if self.share > size:
            raise ValueError(f"hutch++ with {3 * self.share} probes needs at least {self.share} dimensions; got {size}")
        return _signs(torch.stack([noise.normal(PROBE_DRAWS + k) for k in range(2 * self.share)]))

    def divergence(self, products: Products, vectors: Tensor) -> Tensor:
        """The sum of the two parts."""
        sketch, probes = vectors[: self.share], vectors[self.share :]
        shape = probes.shape
        # [B, D, K] for the algebra, [K, B, *dims] for the products.
        basis = torch.linalg.qr(products(sketch).detach().flatten(2).permute(1, 2, 0)).Q
        flat = probes.flatten(2).permute(1, 2, 0)
        rest = flat - basis @ (basis.mT @ flat)
        both = torch.cat([basis, rest], 2).permute(2, 0, 1).reshape(-1, *shape[1:])
        parts = (products(both) * both).flatten(2).sum(2)
        return (parts[: self.share].sum(0) + parts[self.share :].mean(0)).unsqueeze(1)


def _signs(draws: Tensor) -> Tensor:
    return torch.ones_like(draws).copysign_(draws)


TRACES: dict[str, Callable[[int], Trace]] = {
    "hutchinson": Hutchinson,
    "gaussian": lambda probes: Hutchinson(probes, gaussian=True),
    "hutch++": HutchPlusPlus,
    "exact": lambda probes: ExactTrace(),
}
"""The estimators by name, each made from the number of probes."""


def trace_of(trace: str | Trace, probes: int) -> Trace:
    """The estimator of a name with a number of probes, or an estimator of the user's own as it is.

    Raises:
        ValueError: If it is neither, or the number of probes is not allowed.
    """
    table = {name: partial(kind, probes) for name, kind in TRACES.items()}
    found: Trace = as_instance("trace", trace, table, Trace)
    return found
