"""Which method samples a posterior, and which is biased? `python -m benchmarks.posteriors --out=DIR`

Data from mixtures of Gaussians with full covariances, and linear measurements y = A x_0 + noise: the posterior
p(x_0 | y) is known exactly. Each method of `PosteriorDenoiser` is compared with it, by several samplers and numbers of
steps, and so are the methods of azula and deepinv if they are installed. Medians over the measurements; see
`posterior_problems` for the columns. The rows "exact" are draws from the posterior itself, and walks with its denoiser:
what is left there is the error of the walk and of a finite number of draws. `seconds` is for 64 draws for each
measurement: every method has its turn in each round, and the median over the rounds is taken.

Both libraries require torchvision, and the one on PyPI breaks a CPU-only torch: `pip install --no-deps azula einops
deepinv h5py natsort`, and a torchvision that is built for this torch, which only deepinv imports.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_peers import azulas, deepinvs
from benchmarks.posterior_problems import Distances, Draw, Problem, rank_statistics, spread_ratio
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
WALKS = (("DPM-Solver++ 2M", 20), ("DDIM", 20), ("DDPM", 20), ("DDIM", 100), ("DDPM", 100))
PROBLEMS = {2: lambda: Problem.random(2, 1, 4, 0.1, seed=3), 16: lambda: Problem.random(16, 8, 4, 0.1, seed=1)}


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

    yield "exact", "drawn directly", problem.draw
    for sampler, steps in WALKS:
        for name, denoiser in denoisers.items():
            yield name, f"{sampler} {steps}", functools.partial(draw, denoiser, SAMPLERS[sampler](steps))
    whole = {
        "twisted SMC": ("16 particles, 500 steps", TwistedSMC(500, 16)),
        "RePaint": ("100 steps, 10 resamples", RePaint(100, 1, 10)),
        "replacement": ("DDPM 250", Replacement(AncestralSampler(250, eta=1.0))),
    }
    for name, (words, walk) in whole.items():
        yield name, words, functools.partial(draw, denoisers["Jacobian-free"], walk)


def rows(problem: Problem, measurements: int, draws: int, calibrated: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One row for each library, method and sampler."""
    _, y = problem.measure(measurements, seed=1)
    truth, many = problem.measure(max(1, calibrated), seed=2)
    libraries = {"sde_diffusion": ours(problem), "azula": azulas(problem, WALKS), "deepinv": deepinvs(problem, WALKS)}
    methods = [(library, *method) for library, found in libraries.items() for method in found]
    seconds = timed([draw for *_, draw in methods], y.repeat_interleave(64, 0), rounds)
    for (library, method, sampler, draw), time_taken in zip(methods, seconds, strict=True):
        samples, passes, gradients = draw(y.repeat_interleave(draws, 0))
        row = {"problem": problem.name, "library": library, "method": method, "sampler": sampler}
        row |= {"passes": passes, "gradients": gradients, "seconds": time_taken}
        finite = bool(samples.isfinite().all())
        found = samples.reshape(measurements, draws, -1)
        row |= vars(Distances.of(found, problem, y)) if finite else {"mean": "diverged"}
        if finite and calibrated:
            ranked = draw(many.repeat_interleave(19, 0))[0].reshape(calibrated, 19, -1)
            row["spread"] = spread_ratio(ranked, many, problem)
            row |= {f"rank_{k}": v for k, v in rank_statistics(ranked, truth, many, problem).items()}
        yield row


def timed(draws: list[Draw], y: Tensor, rounds: int) -> list[float]:
    """Seconds of each, the median over the rounds; in each round every method has its turn."""
    seconds = torch.zeros(rounds, len(draws), dtype=torch.float64)
    for turn in range(rounds):
        for i, draw in enumerate(draws):
            begin = time.perf_counter()
            draw(y)
            seconds[turn, i] = time.perf_counter() - begin
    return seconds.median(0).values.tolist() if rounds else [math.nan] * len(draws)


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
    parser.add_argument("--dims", type=int, nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), help="problems")
    parser.add_argument("--measurements", type=int, default=8, help="number of y")
    parser.add_argument("--draws", type=int, default=500, help="samples for each y")
    parser.add_argument("--calibrated", type=int, default=500, help="number of y for the rank statistics; 0: none")
    parser.add_argument("--rounds", type=int, default=3, help="times that each method is timed, with 64 draws per y")
    parser.add_argument("--out", type=Path, help="folder for posteriors.csv and posteriors.md")
    args = parser.parse_args()
    found = []
    for dims in args.dims:
        for row in rows(PROBLEMS[dims](), args.measurements, args.draws, args.calibrated, args.rounds):
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
