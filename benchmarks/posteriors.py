"""Which method samples a posterior, and which is biased? `python -m benchmarks.posteriors --out=DIR`

Data from mixtures of Gaussians with full covariances, and linear measurements y = A x_0 + noise: the posterior
p(x_0 | y) is known exactly. Each method of `PosteriorDenoiser` is compared with it, by several samplers and numbers of
steps, and so are azula's methods if azula is installed. Medians over the measurements; see `posterior_problems` for the
columns. The row "exact" has the exact posterior's denoiser: what is left there is the error of the walk and of a finite
number of draws.

azula requires torchvision, which breaks a CPU-only torch: install it with `pip install --no-deps azula einops`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_problems import Distances, Problem, rank_statistics
from sde_diffusion import AncestralSampler, DPMSolver, RePaint, Replacement, TwistedSMC
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.guidance import (
    JacobianFree,
    MeasurementLikelihood,
    MomentMatching,
    PointEstimate,
    PosteriorDenoiser,
    PseudoInverse,
    RowSum,
)
from sde_diffusion.sampling import Sampler

SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "DDIM": lambda steps: AncestralSampler(steps),
    "DDPM": lambda steps: AncestralSampler(steps, eta=1.0),
    "DPM-Solver++ 2M": lambda steps: DPMSolver(steps),
}
WALKS = (("DPM-Solver++ 2M", 20), ("DDIM", 100), ("DDPM", 100))

Draw = Callable[[Tensor], tuple[Tensor, int, int]]
"""One sample for each measurement, [B, M]: the samples, [B, D], network passes, and vector-Jacobian products."""


def ours(problem: Problem) -> Iterator[tuple[str, str, Draw]]:
    """(method, sampler, draw) of this library."""
    spread = float(problem.prior.stds.square().mean().sqrt())
    likelihoods: dict[str, MeasurementLikelihood] = {
        "moment matching": MomentMatching(min(3, problem.operator.matrix.shape[0])),
        "pseudo-inverse": PseudoInverse(spread),
        "Jacobian-free": JacobianFree(spread),
        "row sum": RowSum(),
        "point estimate": PointEstimate(),
    }
    denoisers: dict[str, Denoiser] = {"exact": problem.posterior}
    for name, likelihood in likelihoods.items():
        denoisers[name] = PosteriorDenoiser(problem.prior, problem.operator, problem.noise, likelihood)

    def draw(denoiser: Denoiser, sampler: Sampler, y: Tensor) -> tuple[Tensor, int, int]:
        found = sampler(denoiser, (len(y), problem.prior.means.shape[1]), y=y, dtype=torch.float64)
        return found.x, found.nfe, found.gradients

    for sampler, steps in WALKS:
        for name, denoiser in denoisers.items():
            yield name, f"{sampler} {steps}", functools.partial(draw, denoiser, SAMPLERS[sampler](steps))
    whole = {
        "twisted SMC": ("8 particles, 100 steps", TwistedSMC(100, 8)),
        "RePaint": ("100 steps, 10 resamples", RePaint(100, 1, 10)),
        "replacement": ("DDPM 250", Replacement(AncestralSampler(250, eta=1.0))),
    }
    for name, (words, walk) in whole.items():
        yield name, words, functools.partial(draw, denoisers["Jacobian-free"], walk)


def azulas(problem: Problem) -> Iterator[tuple[str, str, Draw]]:
    """The same of azula, on the same path, with its own times: uniform ones."""
    try:
        from azula.denoise import Denoiser as AzulaDenoiser
        from azula.denoise import DiracPosterior
        from azula.guidance.mmps import MMPSDenoiser
        from azula.guidance.pgdm import PGDMSampler
        from azula.guidance.tmpd import TMPDenoiser
        from azula.linalg.covariance import IsotropicCovariance
        from azula.sample import DDIMSampler, DDPMSampler, xEABSampler
    except ImportError:
        return
    prior, sde = problem.prior, problem.prior.sde

    class Schedule(torch.nn.Module):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            t = sde.t_min + t * (sde.t_max - sde.t_min)
            return sde.alpha(t), sde.sigma(t)

    class Mixture(AzulaDenoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Schedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return DiracPosterior(mean=prior(x_t, sde.t_min + t * (sde.t_max - sde.t_min)).x0)

    operator, covariance = problem.operator, IsotropicCovariance(problem.noise**2)
    denoisers: dict[str, tuple[Callable[[Tensor], Any], int]] = {
        "moment matching": (lambda y: MMPSDenoiser(Mixture(), y, operator, covariance), 2),
        "moment matching, 3 CG": (lambda y: MMPSDenoiser(Mixture(), y, operator, covariance, "cg", 3), 4),
        "row sum": (lambda y: TMPDenoiser(Mixture(), y, operator, problem.noise**2), 2),
    }

    def draw(build: Callable[..., Any], steps: int, gradients: int, y: Tensor) -> tuple[Tensor, int, int]:
        torch.manual_seed(0)
        walk = build(y, steps=steps, silent=True, dtype=torch.float64)
        found: Tensor = walk(walk.init((len(y), prior.means.shape[1]), dtype=torch.float64))
        return found, steps, gradients * steps

    kinds = {"DDIM": DDIMSampler, "DDPM": DDPMSampler, "DPM-Solver++ 2M": xEABSampler}
    for sampler, steps in WALKS:
        for name, (denoiser, gradients) in denoisers.items():

            def build(y: Tensor, denoiser: Any = denoiser, kind: Any = kinds[sampler], **settings: Any) -> Any:
                return kind(denoiser(y), **settings)

            yield name, f"{sampler} {steps}", functools.partial(draw, build, steps, gradients)
    for sampler, eta in (("DDIM", 0.0), ("DDPM", 1.0)):

        def guided(y: Tensor, eta: float = eta, **settings: Any) -> Any:
            return PGDMSampler(Mixture(), y, operator, operator.pinv, eta=eta, **settings)

        yield "pseudo-inverse", f"{sampler} 100", functools.partial(draw, guided, 100, 1)


def rows(problem: Problem, measurements: int, draws: int, calibrated: int) -> Iterator[dict[str, Any]]:
    """One row for each library, method and sampler."""
    _, y = problem.measure(measurements, seed=1)
    truth, many = problem.measure(max(1, calibrated), seed=2)
    for library, methods in (("sde_diffusion", ours), ("azula", azulas)):
        for method, sampler, draw in methods(problem):
            begin = time.perf_counter()
            samples, passes, gradients = draw(y.repeat_interleave(draws, 0))
            seconds = time.perf_counter() - begin
            row = {"problem": problem.name, "library": library, "method": method, "sampler": sampler}
            row |= {"passes": passes, "gradients": gradients, "seconds": round(seconds, 2)}
            finite = bool(samples.isfinite().all())
            found = samples.reshape(measurements, draws, -1)
            row |= vars(Distances.of(found, problem, y)) if finite else {"mean": "diverged"}
            if finite and calibrated:
                ranked = draw(many.repeat_interleave(19, 0))[0].reshape(calibrated, 19, -1)
                row |= {f"rank_{k}": v for k, v in rank_statistics(ranked, truth, many, problem).items()}
            yield row


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(key for row in found for key in row))
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in found:
        cells = [row.get(name, "") for name in names]
        words = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=int, default=8, help="number of y")
    parser.add_argument("--draws", type=int, default=500, help="samples for each y")
    parser.add_argument("--calibrated", type=int, default=500, help="number of y for the rank statistics; 0: none")
    parser.add_argument("--out", type=Path, help="folder for posteriors.csv and posteriors.md")
    args = parser.parse_args()
    problems = [Problem.random(2, 1, 4, 0.1, seed=3), Problem.random(16, 8, 4, 0.1, seed=1)]
    found = []
    for problem in problems:
        for row in rows(problem, args.measurements, args.draws, args.calibrated):
            print(
                " ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row.values()), flush=True
            )
            found.append(row)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        with (args.out / "posteriors.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in found for key in row)))
            writer.writeheader()
            writer.writerows(found)
        (args.out / "posteriors.md").write_text(table(found) + "\n")


if __name__ == "__main__":
    main()
