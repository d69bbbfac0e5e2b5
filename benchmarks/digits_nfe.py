"""How few network passes will do? `python -m benchmarks.digits_nfe --ckpt RUN/checkpoints/last.ckpt`

Fréchet distance (digit classifier's features) of 1,797 samples to the test split, for every sampler at each number of
network passes, the same seeds throughout. Beside it the distance that a long walk of 1,000 DDIM passes reaches, and the
training split's own, the floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from sde_diffusion import (
    AncestralSampler,
    DEISSampler,
    DPMSolver,
    HeunSampler,
    KarrasRho,
    PredictorCorrector,
    ScoreModel,
    SDESampler,
    UniPC,
)
from sde_diffusion.config import build
from sde_diffusion.levels import from_levels, to_levels
from sde_diffusion.metrics import FrechetDistance, load_extractor
from sde_diffusion.sampling import Sampler

PASSES = (5, 8, 10, 15, 20, 35, 50, 100)

SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "ddim": lambda nfe: AncestralSampler(nfe),
    "ddpm": lambda nfe: AncestralSampler(nfe, eta=1.0),
    "sde (Euler-Maruyama)": lambda nfe: SDESampler(steps=nfe),
    "pc": lambda nfe: PredictorCorrector(steps=max(1, (nfe - 1) // 2)),
    "heun": lambda nfe: HeunSampler((nfe + 1) // 2),
    "dpm 2M": lambda nfe: DPMSolver(nfe, order=2),
    "dpm 3M": lambda nfe: DPMSolver(nfe, order=3),
    "dpm 2M, rho = 7": lambda nfe: DPMSolver(nfe, order=2, grid=KarrasRho()),
    "dpm 3M, rho = 7": lambda nfe: DPMSolver(nfe, order=3, grid=KarrasRho()),
    "dpm SDE 2M, rho = 7": lambda nfe: DPMSolver(nfe, order=2, eta=1.0, grid=KarrasRho()),
    "unipc 2": lambda nfe: UniPC(nfe, order=2),
    "unipc 3": lambda nfe: UniPC(nfe, order=3),
    "unipc 3, rho = 7": lambda nfe: UniPC(nfe, order=3, grid=KarrasRho()),
    "deis 3": lambda nfe: DEISSampler(nfe, order=3),
    "deis 4, rho = 7": lambda nfe: DEISSampler(nfe, order=4, grid=KarrasRho()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="checkpoint of a digits model")
    parser.add_argument("--n", type=int, default=1797, help="samples")
    args = parser.parse_args()
    model = ScoreModel.load_from_checkpoint(args.ckpt)
    data = build(model.data["config"]).prepare()
    metric = FrechetDistance(load_extractor("digits", data.shape), reset_real_features=False)
    metric.update(data.tensor("test"), real=True)

    def distance(x: torch.Tensor) -> float:
        metric.reset()
        metric.update(x, real=False)
        return float(metric.compute())

    def score(sampler: Sampler) -> tuple[float, int]:
        drawn = sampler(model.denoiser, (args.n, *data.shape))
        return distance(from_levels(to_levels(drawn.x, data.levels), data.levels)), drawn.nfe

    long_walk, _ = score(AncestralSampler(1000))
    print(f"{model.denoiser.sde}, {args.n} samples")
    print(f"training split (floor) {distance(data.tensor('train')):.3f}; 1000 DDIM passes {long_walk:.3f}\n")
    print(f"{'passes':22s}" + "".join(f"{nfe:8d}" for nfe in PASSES))
    best: dict[int, tuple[float, str]] = {}
    for name, make in SAMPLERS.items():
        row = []
        for nfe in PASSES:
            value, spent = score(make(nfe))
            assert spent <= nfe, (name, nfe, spent)
            row.append(value)
            best[nfe] = min(best.get(nfe, (float("inf"), "")), (value, name))
        print(f"{name:22s}" + "".join(f"{value:8.2f}" for value in row), flush=True)
    print()
    for nfe, (value, name) in best.items():
        print(f"best at {nfe:3d} passes: {name}, {value:.3f}, {value / long_walk:.3f} of the long walk's")


if __name__ == "__main__":
    main()
