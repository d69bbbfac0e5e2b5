"""Scores of a batch: the exact likelihood of the flow, and the evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density.bound import Bound
from sde_diffusion.density.decoders import Decoder, GaussianDecoder
from sde_diffusion.density.dequantisation import UniformDequantisation, in_bins
from sde_diffusion.density.likelihood import log_likelihood
from sde_diffusion.density.lower_bound import elbo
from sde_diffusion.density.prior import LogDensity
from sde_diffusion.density.trace import Trace, trace_of

SCORES = (
    "log_prob",
    "trace_error",
    "solver_error",
    "nfe",
    "elbo",
    "elbo_error",
    "elbo_reconstruction",
    "elbo_diffusion",
    "elbo_prior",
)
"""The scores of an item; see `COLUMNS`."""

COLUMNS = (
    "log_prob and elbo are log-probabilities (of continuous data log-densities on [-1, 1]; log_density is that in the "
    "data's own units), in nats: more is more likely, in every column. elbo = elbo_reconstruction + elbo_diffusion + "
    "elbo_prior, the last two minus KL divergences. trace_error is a standard error, elbo_error one widened "
    "to be used with 1.96, solver_error the difference to a solution with four times the tolerance; nan where there is "
    "none. nfe counts the item's network passes."
)
"""The meaning of the columns of a table of scores."""


@dataclass(frozen=True)
class Scoring:
    """How items are scored, in nats.

    Data on levels have probabilities: the flow's density at the item plus uniform noise over its bin, times the size of
    the bin, is a lower bound on the probability (tighter with more `draws`), and so is the ELBO with a decoder on the
    levels, which needs no noise. Continuous data have densities, at t_min.

    Args:
        levels: Number of levels of the data; None for continuous data.
        draws: Dequantisation draws K for each item, at least 1; 1 for continuous data.
        trace: See `log_likelihood`. With several draws it must be exact: the noise of an estimate would increase the
            logarithm of their mean.
        probes: See `log_likelihood`.
        flow: Other arguments of `log_likelihood`.
        decoder: Decoder of the bound.
        bound: Arguments of `elbo`; None leaves the bound out.

    Raises:
        ValueError: If a value is out of its range, or draws and trace do not go together.
    """

    levels: int | None
    draws: int = 1
    trace: str | Trace = "hutchinson"
    probes: int = 1
    flow: dict[str, Any] = field(default_factory=dict)
    decoder: Decoder = field(default_factory=GaussianDecoder)
    bound: dict[str, Any] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        trace: Trace = trace_of(self.trace, self.probes)
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1; got {self.draws}")
        if self.draws > 1 and self.levels is None:
            raise ValueError("several draws fill the bins of data with levels, and these data are continuous: draws=1")
        if self.draws > 1 and not trace.exact:
            raise ValueError(
                f"the mean over draws={self.draws} would count the noise of trace={self.trace} as likelihood: take "
                "trace=exact, or draws=1"
            )

    @property
    def convention(self) -> str:
        """What the numbers mean, in words."""
        if self.levels is None:
            return "log-density of continuous data on [-1, 1], at t_min, in nats; no bins, hence no bits per dimension"
        fill = UniformDequantisation(self.levels)
        low, high = fill.data_range
        words = (
            f"data on {self.levels} levels from -1 to 1, each the middle of a bin of width {fill.width:.6g} (the bins: "
            f"{low:.6g} to {high:.6g}); by the flow: log of the mean density at t_min over {self.draws} uniform "
            f"draw{'s' if self.draws > 1 else ''} from the bin, plus the log of the bin's size"
        )
        on = "of the same data with noise" if self.decoder.continuous else "with a decoder on the levels themselves"
        bounded = f"; by the ELBO: {on}"
        return words if self.bound is None else words + bounded

    def impossible(
        self, denoiser: Denoiser, x: Tensor, seeds: Sequence[int], prior: LogDensity, rows: int, **conditions: Any
    ) -> dict[str, Tensor]:
        """Scores of a batch that no solver can take to the prior: log-probability -infinity, and the bound.

        The arguments and the result are those of `__call__`.
        """
        missing = torch.full((len(x),), math.nan, dtype=torch.float64)
        errors = {name: missing.clone() for name in ("trace_error", "solver_error", "nfe")}  # files share no memory
        flow = {"log_prob": torch.full_like(missing, -math.inf), **errors}
        return flow | self._bounded(denoiser, x, seeds, prior, rows, conditions)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, seeds: Sequence[int], prior: LogDensity, rows: int, **conditions: Any
    ) -> dict[str, Tensor]:
        """Score a batch.

        Args:
            denoiser: The denoiser.
            x: Data on [-1, 1], [B, *dims].
            seeds: One integer for each item, on which alone its noise depends.
            prior: Log-density at t_max.
            rows: Most items of a network pass.
            **conditions: Passed to the denoiser.

        Returns:
            `SCORES`, [B] each, float64. trace_error is NaN for a single estimate, solver_error if the tolerance was met
            (see `Likelihood`); the last five are present only with a bound.
        """
        logs: list[Tensor] = []
        solver: list[Tensor] = []
        nfe, error = torch.zeros(len(x), dtype=torch.int64), None
        for draw in range(self.draws):
            filled, bins = in_bins(x, self.levels, seeds, draw)
            result = log_likelihood(
                denoiser,
                filled,
                trace=self.trace,
                probes=self.probes,
                seeds=seeds,  # several draws take the exact trace, which has no probes to repeat
                prior=prior,
                rows=rows,
                **self.flow,
                **conditions,
            )
            logs.append(result.log_prob + bins)
            if result.solver_error is not None:
                solver.append(result.solver_error)
            nfe, error = nfe + result.passes, result.std_error
        log_prob = torch.stack(logs).logsumexp(0) - math.log(self.draws)
        scores = {
            "log_prob": log_prob,
            "trace_error": torch.full_like(log_prob, math.nan) if error is None else error,
            "solver_error": torch.stack(solver).amax(0) if solver else torch.full_like(log_prob, math.nan),
            "nfe": nfe,
        }
        scores = {name: value.double().cpu() for name, value in scores.items()}
        return scores | self._bounded(denoiser, x, seeds, prior, rows, conditions)

    def _bounded(
        self,
        denoiser: Denoiser,
        x: Tensor,
        seeds: Sequence[int],
        prior: LogDensity,
        rows: int,
        conditions: dict[str, Any],
    ) -> dict[str, Tensor]:
        if self.bound is None:
            return {}
        x, bins = self.for_bound(x, seeds)
        settings = {"prior": prior, "decoder": self.decoder, "rows": rows, **self.bound}
        bound = elbo(denoiser, x, seeds=seeds, **settings, **conditions)
        return elbo_scores(bound, bins)

    def for_bound(self, x: Tensor, seeds: Sequence[int]) -> tuple[Tensor, float]:
        """What the bound is computed of, and what is added to it: with a continuous decoder, see `in_bins`."""
        return in_bins(x, self.levels if self.decoder.continuous else None, seeds)


def elbo_scores(bound: Bound, bins: float = 0.0) -> dict[str, Tensor]:
    """The evidence lower bound of each item and what it is the sum of, [B] each, float64, on the CPU.

    Args:
        bound: The bound, perhaps a tighter one: then there is no standard error.
        bins: Added to the bound and to its reconstruction: the log of the bins' volume.
    """
    parts = bound.parts()
    parts["reconstruction"] = parts["reconstruction"] + bins
    missing = torch.full_like(bound.log_prob, math.nan)
    scores = {"elbo": bound.elbo + bins, "elbo_error": missing if bound.std_error is None else bound.std_error}
    scores |= {f"elbo_{name}": value for name, value in parts.items()}
    return {name: value.double().cpu() for name, value in scores.items()}
