"""Which order does each sampler show? `python -m benchmarks.solver_order --out DIR`

The data are a mixture of three Gaussians in the plane, whose denoiser is known in closed form; the end of each walk is
compared with the exact probability flow (SciPy's DOP853 at 1e-12). The results are three tables and
DIR/solver_order.png:

- the slope of the error over the last doubling of the steps, on a walk from log-SNR 1 to 4, where the first steps,
which
  have no earlier predictions to use, contribute as much to the error as the others;
- the same from the prior, where the belief hardly changes at first and the first steps contribute little;
- the error in few passes from the prior to the path's end, for each sampler with its defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from torch import Tensor

from sde_diffusion.denoiser import GaussianMixtureDenoiser
from sde_diffusion.sampling import AncestralSampler, DEISSampler, DPMSolver, HeunSampler, Sampler, UniPC
from sde_diffusion.sde import EDMSDE, SDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE, UniformLogSNR
from sde_diffusion.storage.files import writing

PATHS: dict[str, SDE] = {
    "vp": VPSDE(),
    "sub-vp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified": RectifiedFlow(),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler, its orders, and the passes of a step.

    Attributes:
        build: Makes the sampler with a number of steps.
        order: Global order, with the sampler's own first steps.
        from_prior: Order in walks from the prior, as with exact first steps.
        passes: Network passes of a step, if `steps` does not count them.
    """

    build: Callable[..., Sampler]
    order: int
    from_prior: int
    passes: int = 1


METHODS = {
    "DDIM": Method(lambda n, **o: AncestralSampler(n, 0.0, **o), 1, 1),
    "DPM-Solver++ 1": Method(lambda n, **o: DPMSolver(n, 1, **o), 1, 1),
    "DPM-Solver++ 2": Method(lambda n, **o: DPMSolver(n, 2, **o), 2, 2),
    "DPM-Solver++ 3": Method(lambda n, **o: DPMSolver(n, 3, **o), 2, 3),
    "  singlestep start": Method(lambda n, **o: DPMSolver(n, 3, singlestep_start=True, **o), 3, 3),
    "  2 singlestep": Method(lambda n, **o: DPMSolver(n, 2, singlestep=True, **o), 2, 2),
    "  3 singlestep": Method(lambda n, **o: DPMSolver(n, 3, singlestep=True, **o), 3, 3),
    "UniPC 1": Method(lambda n, **o: UniPC(n, 1, **o), 2, 2),
    "UniPC 2": Method(lambda n, **o: UniPC(n, 2, **o), 3, 3),
    "UniPC 3": Method(lambda n, **o: UniPC(n, 3, **o), 3, 4),
    "DEIS 1": Method(lambda n, **o: DEISSampler(n, 1, **o), 1, 1),
    "DEIS 2": Method(lambda n, **o: DEISSampler(n, 2, **o), 2, 2),
    "DEIS 3": Method(lambda n, **o: DEISSampler(n, 3, **o), 2, 3),
    "DEIS 4": Method(lambda n, **o: DEISSampler(n, 4, **o), 2, 4),
    "Heun": Method(lambda n, **o: HeunSampler(n, **o), 2, 2, passes=2),
}
Errors = dict[str, dict[str, list[float]]]
"""Sampler -> path -> error for each number of steps."""

STEPS = (12, 24, 48, 96, 192)
FEW = (5, 8, 10, 15, 20)
DRAWN = {
    "DDIM": "DDIM",
    "DPM-Solver++ 2": "DPM-Solver++ 2",
    "DPM-Solver++ 3": "DPM-Solver++ 3",
    "  singlestep start": "DPM-Solver++ 3, singlestep start",
    "  3 singlestep": "DPM-Solver++ 3, singlestep",
    "UniPC 3": "UniPC 3",
    "DEIS 4": "DEIS 4",
    "Heun": "Heun",
}


class Walk:
    """States on a path at t_max, and where the probability flow takes them at t_end."""

    def __init__(self, sde: SDE, t_end: float, n: int = 64) -> None:
        means = torch.tensor([[0.8, 0.2], [-0.6, 0.5], [0.1, -0.9]], dtype=torch.float64)
        stds = torch.tensor([[0.10, 0.20], [0.15, 0.10], [0.30, 0.25]], dtype=torch.float64)
        self.denoiser = GaussianMixtureDenoiser(sde, means, stds, torch.tensor([0.5, 0.2, 0.3]))
        self.t_end = t_end
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        self.start = sde.perturb(self.denoiser.sample(n, generator), sde.t_max, noise)
        r = [math.exp(-0.5 * float(sde.log_snr(t))) for t in (sde.t_max, t_end)]
        y = (self.start / sde.alpha(sde.t_max)).numpy()
        self.end = sde.alpha(t_end) * torch.from_numpy(flow(means.numpy(), stds.numpy(), y, *r))

    def error(self, sampler: Sampler, to: Tensor) -> float:
        """Root mean square of the sampler's end against `to`."""
        out = sampler(self.denoiser, self.start.shape, latent=self.start, dtype=torch.float64)
        return float((out.x - to).square().mean().sqrt())

    def errors(self, method: Method) -> list[float]:
        """Of the state at t_end over doubling steps, on a grid uniform in log-SNR."""
        options = {"grid": UniformLogSNR(), "denoise": False, "t_end": self.t_end}
        return [self.error(method.build(n, **options), self.end) for n in STEPS]


def flow(means: np.ndarray, stds: np.ndarray, y: np.ndarray, start: float, end: float) -> np.ndarray:
    """The probability flow of y = x / alpha in log(sigma / alpha), the same on every path: y' = y - E[x0 | y]."""

    def drift(log_r: float, flat: np.ndarray) -> np.ndarray:
        y = flat.reshape(-1, 2)
        variance = stds**2 + math.exp(2 * log_r)
        offset = y[:, None] - means
        logits = np.log([0.5, 0.2, 0.3]) - 0.5 * (offset**2 / variance + np.log(variance)).sum(2)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        belief = (p[:, :, None] * (means + stds**2 / variance * offset)).sum(1)
        return (y - belief).ravel()

    span = (math.log(start), math.log(end))
    solution = solve_ivp(drift, span, y.ravel(), method="DOP853", rtol=1e-13, atol=1e-13)
    return np.asarray(solution.y[:, -1].reshape(y.shape))


def slope_table(title: str, walks: dict[str, Walk], order: Callable[[Method], int]) -> Errors:
    """Print measured slopes by sampler and path beside the theory; the errors behind them."""
    print(f"\n{title}: log2 of the errors at {STEPS[-2]} and {STEPS[-1]} steps")
    print(f"{'':20}{'theory':>8}" + "".join(f"{name:>11}" for name in walks))
    errors = {name: {path: walk.errors(method) for path, walk in walks.items()} for name, method in METHODS.items()}
    for name, by_path in errors.items():
        slopes = (math.log2(e[-2] / e[-1]) for e in by_path.values())
        print(f"{name:20}{order(METHODS[name]):8}" + "".join(f"{slope:11.2f}" for slope in slopes))
    return errors


def few_passes_table() -> None:
    """Print the errors of the samplers' defaults in few passes, as geometric means over the paths."""
    walks = [Walk(sde, sde.t_min) for sde in PATHS.values()]
    print("\nError in few passes, from the prior to x0, defaults; geometric mean over the paths (data: 0.6 rms)")
    print(f"{'':20}" + "".join(f"{f'{n} passes':>11}" for n in FEW))
    for name, method in METHODS.items():
        row = []
        for n in FEW:
            steps = n if method.passes == 1 else (n + 1) // 2
            # At t_min noise is all but gone: the flow's end is x0 to far below these errors.
            logs = [math.log(w.error(method.build(steps), w.end)) for w in walks]
            row.append(math.exp(sum(logs) / len(logs)))
        print(f"{name:20}" + "".join(f"{error:11.4f}" for error in row))


def picture(panels: dict[str, dict[str, list[float]]]) -> Figure:
    """Errors against passes, one panel for each walk, with lines of slopes 1 to 4 to compare with."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    ticks = [*STEPS, 2 * STEPS[-1]]
    frames = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, errors) in zip(frames, panels.items(), strict=True):
        for slope in (1, 2, 3, 4):
            guide = [0.03 * (ticks[0] / n) ** slope for n in ticks]
            axes.loglog(ticks, guide, color="0.85", linewidth=1, zorder=0)
            axes.annotate(f" {slope}", (ticks[-1], guide[-1]), color="0.5", fontsize=9, va="center")
        for marker, (name, label) in zip("osv^D*Px", DRAWN.items(), strict=True):
            passes = [n * METHODS[name].passes for n in STEPS]
            axes.loglog(passes, errors[name], marker=marker, markersize=5, linewidth=1.2, label=label)
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.set_title(title)
        axes.set_xlabel("network passes")
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel("rms error at the end")
    figure.axes[0].legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    args = parser.parse_args()
    ends = {name: float(sde.time(4.0)) for name, sde in PATHS.items()}
    midst = {
        name: Walk(dataclasses.replace(sde, t_max=float(sde.time(1.0))), ends[name]) for name, sde in PATHS.items()
    }
    prior = {name: Walk(sde, ends[name]) for name, sde in PATHS.items()}
    from_midst = slope_table("From log-SNR 1 to 4", midst, lambda method: method.order)
    from_prior = slope_table("From the prior to log-SNR 4", prior, lambda method: method.from_prior)
    few_passes_table()
    args.out.mkdir(parents=True, exist_ok=True)
    panels = {
        "VP, from log-SNR 1 to 4: starts of low order show": {name: e["vp"] for name, e in from_midst.items()},
        "VP, from the prior to log-SNR 4: they hardly do": {name: e["vp"] for name, e in from_prior.items()},
    }
    path = args.out / "solver_order.png"
    with writing(path) as temporary:
        picture(panels).savefig(temporary, dpi=120, format="png")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
