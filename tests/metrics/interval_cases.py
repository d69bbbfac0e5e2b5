"""Metrics with the data they are tried on, for the tests of intervals."""

import torch

from sde_diffusion.metrics import (
    PRDC,
    EnergyDistance,
    FrechetDistance,
    FrechetInfinity,
    InceptionScore,
    KernelDistance,
    Pixels,
    SlicedWasserstein,
)


class Logits(torch.nn.Module):
    """Takes samples for half their logits."""

    num_classes = 5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * features


SMOOTH = {
    "frechet": (5, lambda: FrechetDistance(Pixels((5,)), keep_features=True)),
    "frechet_infinity": (5, lambda: FrechetInfinity(Pixels((5,)))),
    "kernel": (5, lambda: KernelDistance(Pixels((5,)))),
    "energy": (2, lambda: EnergyDistance(Pixels((2,)))),
    "sliced_wasserstein": (2, lambda: SlicedWasserstein(Pixels((2,)), projections=16)),
    "inception_score": (5, lambda: InceptionScore(Logits())),
}
NEIGHBOURS = {
    "prdc": (3, lambda: PRDC(Pixels((3,)))),
}
ALL = {**SMOOTH, **NEIGHBOURS}
# The model's first coordinate has this mean and standard deviation; data are standard normal.
MODELS = {"perfect": (0.0, 1.0), "good": (0.3, 1.1), "bad": (1.0, 1.5)}


def draw(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    x[:, 0] = mean + scale * x[:, 0]
    return x


def fed(make, real: torch.Tensor, fake: torch.Tensor):
    metric = make()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric
