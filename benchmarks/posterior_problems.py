"""Inverse problems whose posteriors are known exactly, and distances of samples from them; see `posteriors`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion import SDE, VPSDE
from sde_diffusion.denoiser import GaussianMixtureDenoiser, MixturePosteriorDenoiser
from sde_diffusion.guidance import LinearOperator

Draw = Callable[[Tensor], tuple[Tensor, int, int]]
"""One sample for each measurement, [B, M]: the samples, [B, D], network passes, and vector-Jacobian products."""


@dataclass
class Problem:
    """A mixture of Gaussians with full covariances, and a linear measurement of it.

    Attributes:
        name: What it is.
        prior: The mixture, as an exact denoiser.
        operator: The measurement.
        noise: Standard deviation of its noise.
    """

    name: str
    prior: GaussianMixtureDenoiser
    operator: LinearOperator
    noise: float

    @classmethod
    def random(
        cls, dims: int, measured: int, components: int, noise: float, seed: int, sde: SDE | None = None
    ) -> Problem:
        """Means N(0, I), covariances of mean eigenvalue about 0.25, and a measurement with Gaussian rows."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        factors = 0.5 * normal(components, dims, dims) / dims**0.5
        covariances = factors @ factors.mT + 0.01 * torch.eye(dims, dtype=torch.float64)
        prior = GaussianMixtureDenoiser(sde or VPSDE(), normal(components, dims), covariances=covariances)
        return cls(
            f"{dims} dimensions, {measured} measured, noise {noise:g}",
            prior,
            LinearOperator(normal(measured, dims) / dims**0.5),
            noise,
        )

    @property
    def posterior(self) -> MixturePosteriorDenoiser:
        """The exact posterior, which takes y=."""
        return self.prior.posterior(self.operator, self.noise)

    def measure(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """n draws of (x_0, y), [n, D] and [n, M]."""
        generator = torch.Generator().manual_seed(seed)
        x0 = self.prior.sample(n, generator)
        y = self.operator(x0)
        return x0, y + self.noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)

    def draw(self, y: Tensor) -> tuple[Tensor, int, int]:
        """Exact draws, one for each measurement, [B, M]; see `Draw`."""
        generator, found = torch.Generator().manual_seed(0), []
        for one, n in zip(*y.unique_consecutive(dim=0, return_counts=True), strict=True):
            found.append(self.prior.condition(self.operator, one, self.noise).sample(int(n), generator))
        return torch.cat(found), 0, 0


@dataclass
class Distances:
    """How far samples of p(x_0 | y) are from the exact posterior; medians over several y.

    Attributes:
        mean: Error of the mean over the posterior's standard deviation.
        covariance: Trace of the samples' covariance over that of the posterior.
        sliced_wasserstein: Sliced 2-Wasserstein distance to as many exact draws, over the standard deviation.
        weights: Total variation of the weights of the modes.
    """

    mean: float
    covariance: float
    sliced_wasserstein: float
    weights: float

    @classmethod
    def of(cls, samples: Tensor, problem: Problem, y: Tensor) -> Distances:
        """The distances of samples, [Y, n, D], for measurements y, [Y, M]."""
        rows = [cls._one(draws, problem.prior.condition(problem.operator, one, problem.noise), seed)
                for seed, (draws, one) in enumerate(zip(samples, y, strict=True))]  # fmt: skip
        return cls(*torch.tensor(rows, dtype=torch.float64).median(0).values.tolist())

    @staticmethod
    def _one(draws: Tensor, exact: GaussianMixtureDenoiser, seed: int) -> tuple[float, float, float, float]:
        weights = exact.log_weights.exp()
        mean, trace = moments(exact)
        reference = exact.sample(len(draws), torch.Generator().manual_seed(seed))
        share = exact.log_responsibility(draws, exact.sde.t_min).exp().mean(0)
        return (
            float((draws.mean(0) - mean).norm() / trace.sqrt()),
            float(draws.var(0).sum() / trace),
            float(sliced_wasserstein(draws, reference) / (trace / draws.shape[1]).sqrt()),
            float(0.5 * (share - weights).abs().sum()),
        )


def moments(mixture: GaussianMixtureDenoiser) -> tuple[Tensor, Tensor]:
    """The mean of a mixture, [D], and the trace of its covariance, []."""
    weights = mixture.log_weights.exp()
    mean = weights @ mixture.means
    return mean, weights @ (mixture.stds.square().sum(1) + (mixture.means - mean).square().sum(1))


def spread_ratio(samples: Tensor, y: Tensor, problem: Problem) -> float:
    """E ||x - mu(y)||^2 / E tr C(y) over measurements and draws, mu and C being the posterior's mean and covariance.

    It is 1 for exact draws. Draws that are too far from mu but too narrow can have 1 too, so it is never enough alone.

    Args:
        samples: [Y, n, D].
        y: The measurements, [Y, M].
        problem: The problem.
    """
    exact = [moments(problem.prior.condition(problem.operator, one, problem.noise)) for one in y]
    squares = [(draws - mean).square().sum(1).mean() for draws, (mean, _) in zip(samples, exact, strict=True)]
    return float(sum(squares) / sum(trace for _, trace in exact))


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 128) -> Tensor:
    """Root mean square over random directions of the 2-Wasserstein distance between projections, [n, D] each."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(a.shape[1], directions, generator=generator, dtype=a.dtype)
    u = u / u.norm(dim=0)
    return ((a @ u).sort(0).values - (b @ u).sort(0).values).square().mean().sqrt()


def rank_statistics(samples: Tensor, x0: Tensor, y: Tensor, problem: Problem) -> dict[str, float]:
    """Simulation-based calibration: chi-squared of the ranks of x_0 among the samples, by several statistics.

    If the samples follow p(x_0 | y), each rank is uniform on 0 ... n, and the value has a chi-squared distribution with
    n degrees of freedom (for n = 19: above 43 once in 770). A coordinate alone does not notice samples whose mean and
    spread are wrong in ways that cancel, or that ignore the measurement.

    Args:
        samples: [Y, n, D].
        x0: The truth, [Y, D].
        y: The measurements, [Y, M].
        problem: The problem.

    References:
        Talts et al. 2018, "Validating Bayesian Inference Algorithms with Simulation-Based Calibration"; Modrak et al.
        2023, "Simulation-Based Calibration Checking for Bayesian Computation", on statistics that depend on y.
    """
    every = torch.cat([x0.unsqueeze(1), samples], 1)  # the truth first
    flat, repeated = every.flatten(0, 1), y.repeat_interleave(every.shape[1], 0)
    prior = problem.prior.log_prob(flat, problem.prior.sde.t_min)
    likelihood = -0.5 * ((repeated - problem.operator(flat)) / problem.noise).square().sum(1)
    statistics = {"coordinate": flat[:, 0], "prior": prior, "likelihood": likelihood, "posterior": prior + likelihood}
    found = {}
    for name, values in statistics.items():
        grid = values.reshape(every.shape[:2])
        ranks = (grid[:, 1:] < grid[:, :1]).sum(1)
        counts = torch.bincount(ranks, minlength=every.shape[1]).double()
        expected = len(y) / len(counts)
        found[name] = float(((counts - expected).square() / expected).sum())
    return found
