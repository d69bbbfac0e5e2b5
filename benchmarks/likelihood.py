"""How exact is a likelihood, for how many passes? `python -m benchmarks.likelihood --out DIR`

It measures (the speed is measured by `benchmarks.likelihood_speed`):

- The error of the exact-trace log-likelihood (worst sample, bits per dimension), network passes (mean over the samples)
  and seconds, for each method, coordinate and grid, on densities known in closed form: a mixture of ten diagonal
  Gaussians fitted to scikit-learn's digits (64 dimensions), a sharper one of twelve fitted to digits with uniform noise
  in their levels' bins, and a mixture in the plane. Each value is the worst of six paths. The prior is the exact
  marginal at t_max, so that the error is that of the solver. Results: tables and DIR/likelihood.png.
- The error due to the prior: that of N(0, sigma_T^2 I), and that of the Gaussian with the moments of the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    BandLogSNR,
    CosineVPSDE,
    GaussianMixtureDenoiser,
    GaussianPrior,
    Grid,
    KarrasRho,
    QuadraticTime,
    RectifiedFlow,
    SubVPSDE,
    UniformLogSNR,
    UniformTime,
    log_likelihood,
)
from sde_diffusion.sampling import Coordinate, NoiseToSignal, State, UnitVariance
from sde_diffusion.storage.files import writing

PATHS: dict[str, SDE] = {
    "vp": VPSDE(),
    "sub-vp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified": RectifiedFlow(),
}
COORDINATES: dict[str, Coordinate] = {
    "x": State(),
    "x / alpha": NoiseToSignal(),
    "unit": UnitVariance(0.25),
    "unit, 0.5": UnitVariance(),
}
GRIDS: dict[str, Grid] = {
    "t": UniformTime(),
    "t^2": QuadraticTime(),
    "log-SNR": UniformLogSNR(),
    "rho = 7": KarrasRho(),
    "band": BandLogSNR(),
}
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
STEPS = (12, 24, 48, 96)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method in a coordinate on a grid."""

    method: str
    coordinate: str
    grid: str

    @property
    def fixed(self) -> bool:
        """Whether its number of steps is given."""
        return self.method in ("heun3", "rk4", "explicit_adams")

    def options(self, effort: float) -> dict[str, object]:
        """log_likelihood's arguments for a tolerance, or a number of steps."""
        chosen: dict[str, object] = {"method": self.method, "grid": GRIDS[self.grid]}
        chosen["coordinate"] = COORDINATES[self.coordinate]
        return chosen | ({"steps": int(effort)} if self.fixed else {"rtol": effort, "atol": effort})

    @property
    def efforts(self) -> tuple[float, ...]:
        """The tolerances, or numbers of steps, to measure."""
        return STEPS if self.fixed else TOLERANCES

    def __str__(self) -> str:
        return f"{self.method}, {self.coordinate}, {self.grid}"


SETTINGS = [
    Setting("adams", "unit", "band"),  # the default
    Setting("adams", "unit, 0.5", "band"),
    Setting("adams", "unit", "t"),
    Setting("adams", "unit", "t^2"),
    Setting("adams", "unit", "log-SNR"),
    Setting("adams", "unit", "rho = 7"),
    Setting("adams", "x", "band"),
    Setting("adams", "x / alpha", "band"),
    Setting("dopri5", "unit", "band"),
    Setting("dopri5", "x", "band"),
    Setting("dopri5", "x", "t"),
    Setting("dopri5", "x / alpha", "log-SNR"),
    Setting("dopri8", "unit", "band"),
    Setting("bosh3", "unit", "band"),
    Setting("explicit_adams", "unit", "band"),
    Setting("rk4", "unit", "band"),
    Setting("heun3", "unit", "band"),
    Setting("heun3", "x", "t^2"),
]


def fitted(data: np.ndarray, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means, standard deviations and weights of diagonal Gaussians fitted to data."""
    mixture = GaussianMixture(components, covariance_type="diag", reg_covar=1e-3, random_state=0).fit(data)
    means, variances, weights = map(torch.from_numpy, (mixture.means_, mixture.covariances_, mixture.weights_))
    return means, variances.sqrt(), weights


def digits_mixture() -> tuple[Tensor, Tensor, Tensor]:
    """Ten diagonal Gaussians fitted to the digits on [-1, 1]."""
    return fitted(load_digits().data / 8 - 1, 10)


def sharp_mixture() -> tuple[Tensor, Tensor, Tensor]:
    """Twelve, fitted to digits with uniform noise in their levels' bins; the least standard deviation is 0.044."""
    levels = load_digits().data
    return fitted((levels + np.random.default_rng(0).random(levels.shape) - 0.5) / 8 - 1, 12)


def plane_mixture() -> tuple[Tensor, Tensor, Tensor]:
    """Eight narrow Gaussians on a circle."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.stack([angle.cos(), angle.sin()], 1)
    return means, torch.full_like(means, 0.05), torch.ones(8, dtype=torch.float64)


def data_of(denoiser: GaussianMixtureDenoiser, n: int) -> Tensor:
    """Exact samples at t_min."""
    generator = torch.Generator().manual_seed(1)
    x0 = denoiser.sample(n, generator)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    return denoiser.sde.perturb(x0, denoiser.sde.t_min, noise)


Efforts = list[tuple[int, float, float]]
"""(most passes of a path, mean over samples; seconds; worst error in bits per dimension), of each effort."""


def errors(mixture: Callable[[], tuple[Tensor, Tensor, Tensor]], n: int) -> dict[Setting, Efforts]:
    """Passes, seconds and errors of each setting, the worst of the paths."""
    parameters = mixture()
    denoisers = [GaussianMixtureDenoiser(sde, *parameters) for sde in PATHS.values()]
    table: dict[Setting, Efforts] = {}
    for setting in SETTINGS:
        table[setting] = []
        for effort in setting.efforts:
            passes, worst, begin = 0, 0.0, time.perf_counter()
            for denoiser in denoisers:
                sde, x = denoiser.sde, data_of(denoiser, n)
                try:
                    result = log_likelihood(
                        denoiser,
                        x,
                        trace="exact",
                        prior=lambda y, d=denoiser: d.log_prob(y, d.sde.t_max),
                        max_nfe=3000,
                        **setting.options(effort),
                    )
                except Exception as error:  # a setting that fails is in the table too
                    print(f"  {setting} on {sde}: {error}")
                    passes, worst = 3000, math.inf
                    break
                off = (result.log_prob - denoiser.log_prob(x, sde.t_min)).abs().max()
                worst = max(worst, float(off) / (x[0].numel() * math.log(2)))
                passes = max(passes, result.nfe)
            table[setting].append((passes, time.perf_counter() - begin, worst))
        row = "  ".join(f"{passes:4d} {seconds:6.1f}s {worst:8.1e}" for passes, seconds, worst in table[setting])
        print(f"{setting!s:34s}{row}", flush=True)
    return table


def passes_to(target: float, efforts: Efforts) -> str:
    """Fewest passes with the error below a target, of those tried."""
    reached = [passes for passes, _, worst in efforts if worst <= target]
    return f"{min(reached)}" if reached else "-"


def prior_shares(n: int) -> None:
    """What the prior adds to the solver's error, with N(0, sigma_T^2 I) and with the data's moments."""
    means, stds, weights = digits_mixture()
    mean = weights @ means
    variance = weights @ (means.square() + stds.square()) - mean.square()
    print(f"{'path':12s}{'standard':>12s}{'matched':>12s}   (worst sample, bits/dim)")
    for name, sde in PATHS.items():
        denoiser = GaussianMixtureDenoiser(sde, means, stds, weights)
        latent = log_likelihood(denoiser, data_of(denoiser, n), steps=40, method="rk4").latent
        exact = denoiser.log_prob(latent, sde.t_max)
        shares = [
            float((prior(latent) - exact).abs().max()) / (64 * math.log(2))
            for prior in (GaussianPrior.standard(sde), GaussianPrior.matched(sde, mean, variance))
        ]
        print(f"{name:12s}{shares[0]:12.1e}{shares[1]:12.1e}")


def draw(table: dict[Setting, Efforts], path: Path) -> None:
    """Error against passes, a line for each setting."""
    figure = Figure(figsize=(8.0, 6.0), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)
    for setting, efforts in table.items():
        points = [(passes, worst) for passes, _, worst in efforts if math.isfinite(worst)]
        default = setting == SETTINGS[0]
        if points:
            axes.loglog(*zip(*points, strict=True), "o-", lw=3 if default else 1, ms=4, label=str(setting))
    axes.axhline(1e-3, color="0.7", lw=1)
    axes.set_xlabel("network passes, mean over samples (most of the six paths)")
    axes.set_ylabel("error of the worst sample, bits/dim (worst of the six paths)")
    axes.legend(fontsize=7)
    with writing(path) as temporary:
        figure.savefig(temporary, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for likelihood.png")
    parser.add_argument("--n", type=int, default=40, help="samples")
    args = parser.parse_args()
    for name, mixture in (
        ("digits' mixture, 64 dimensions", digits_mixture),
        ("a sharper mixture, 64 dimensions", sharp_mixture),
        ("eight Gaussians in the plane", plane_mixture),
    ):
        print(
            f"\n{name}: passes, seconds on all paths, worst error in bits/dim, for tolerances "
            f"{', '.join(f'{value:g}' for value in TOLERANCES)} or {', '.join(map(str, STEPS))} steps"
        )
        table = errors(mixture, args.n)
        print(f"\n{'passes to an error of':34s}{'1e-2':>8s}{'1e-3':>8s}{'1e-4':>8s}{'1e-5':>8s}")
        for setting, efforts in table.items():
            print(f"{setting!s:34s}" + "".join(f"{passes_to(10.0**-k, efforts):>8s}" for k in (2, 3, 4, 5)))
        if mixture is digits_mixture:
            draw(table, args.out / "likelihood.png")
    print("\nthe prior's share")
    prior_shares(args.n)


if __name__ == "__main__":
    main()
