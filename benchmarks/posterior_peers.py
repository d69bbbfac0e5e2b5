"""The posterior samplers of azula and deepinv, with the denoisers of `posterior_problems`, for `posteriors`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_problems import Draw, Problem


def azulas(problem: Problem, walks: Sequence[tuple[str, int]]) -> Iterator[tuple[str, str, Draw]]:
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
    for sampler, steps in walks:
        for name, (denoiser, gradients) in denoisers.items():

            def build(y: Tensor, denoiser: Any = denoiser, kind: Any = kinds[sampler], **settings: Any) -> Any:
                return kind(denoiser(y), **settings)

            yield name, f"{sampler} {steps}", functools.partial(draw, build, steps, gradients)
    for sampler, eta in (("DDIM", 0.0), ("DDPM", 1.0)):

        def guided(y: Tensor, eta: float = eta, **settings: Any) -> Any:
            return PGDMSampler(Mixture(), y, operator, operator.pinv, eta=eta, **settings)

        yield "pseudo-inverse", f"{sampler} 100", functools.partial(draw, guided, 100, 1)


def deepinvs(problem: Problem, walks: Sequence[tuple[str, int]]) -> Iterator[tuple[str, str, Draw]]:
    """The same of deepinv, on the same path with uniform times; its denoisers get float32.

    Its DDRM has its default noise levels, from 1 to 0, for which the data are too wide: so they are ten times as high
    here, as many, and in proportion. DiffPIR, and the class DPS, clip x_0 to [-1, 1], and cannot take these data.
    """
    try:
        import deepinv
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision for another torch
        return
    prior, sde, dims = problem.prior, problem.prior.sde, problem.prior.means.shape[1]

    def denoiser(x: Tensor, sigma: Tensor | float, **kwargs: Any) -> Tensor:
        """E[x_0 | x_0 + sigma noise = x]; sigma is the same for all."""
        log_snr = -2 * torch.as_tensor(sigma, dtype=torch.float64).flatten()[0].log()
        t = sde.time(log_snr).clamp(min=sde.t_min)
        return prior(sde.alpha(t) * x.double(), t).x0

    matrix, sampling = problem.operator.matrix, deepinv.sampling
    noise = deepinv.physics.GaussianNoise(problem.noise)
    physics = deepinv.physics.LinearPhysics(
        A=lambda x, **_: x.double() @ matrix.T, A_adjoint=lambda y, **_: y.double() @ matrix, noise_model=noise
    )
    guided = {
        "moment matching, 3 CG": (sampling.MomentMatchingDataFidelity(), 4),
        "pseudo-inverse": (sampling.PiGDMDataFidelity(), 1),
        "point estimate": (sampling.DPSDataFidelity(), 1),
    }
    solvers = {"DDIM": sampling.DDIMSolver, "DDPM": sampling.DDPMSolver}

    def draw(solver: Any, fidelity: Any, steps: int, gradients: int, y: Tensor) -> tuple[Tensor, int, int]:
        torch.manual_seed(0)
        times = torch.linspace(sde.t_max, 0, steps + 1, dtype=torch.float64)
        path = sampling.VariancePreservingDiffusion(denoiser, sde.beta_min, sde.beta_max, minus_one_one=False)
        walk = sampling.PosteriorDiffusion(fidelity, denoiser, path, solver(times), minus_one_one=False)
        return walk(y, physics, x_init=(len(y), dims)), steps, gradients * steps

    for sampler, steps in walks:
        for name, (fidelity, gradients) in guided.items():
            if sampler in solvers:
                words = functools.partial(draw, solvers[sampler], fidelity, steps, gradients)
                yield name, f"{sampler} {steps}", words

    left, values, right = torch.linalg.svd(matrix)
    padding = (0, dims - len(matrix))

    def ddrm(y: Tensor) -> tuple[Tensor, int, int]:
        torch.manual_seed(0)
        decomposed = deepinv.physics.DecomposablePhysics(
            U=lambda z: z[:, : len(matrix)] @ left.T,
            U_adjoint=lambda y: torch.nn.functional.pad(y @ left, padding),
            V=lambda z: z @ right,
            V_adjoint=lambda x: x @ right.T,
            mask=torch.nn.functional.pad(values, padding).unsqueeze(0),
            noise_model=noise,
        )
        levels = torch.linspace(10, 0, 100, dtype=torch.float64).tolist()
        return sampling.DDRM(denoiser, levels)(y, decomposed), 100, 0

    yield "DDRM", "100 levels", ddrm
