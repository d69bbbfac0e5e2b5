"""What does a sampler cost beyond the network? `python -m benchmarks.sampler_overhead`

It measures milliseconds per step with a denoiser that costs nothing, for a state [64, 3, 32, 32] in float32 and 50
steps on the VP path: for this library's samplers and, if they are installed, for diffusers' schedulers and azula's
samplers of the same algorithms. All alternate in one process, and medians are compared, so that other load on the
machine affects all. For comparison, it also times the bare arithmetic of a step (two multiplications and an addition)
and a `torch.randn` of the state.

azula requires torchvision, which breaks a CPU-only torch: install it with `pip install --no-deps azula einops`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import (
    VPSDE,
    AncestralSampler,
    DEISSampler,
    DPMSolver,
    HeunSampler,
    Prediction,
    PredictorCorrector,
    SDESampler,
    UniformTime,
    UniPC,
)
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.sampling import Sampler
from sde_diffusion.sde import Time

SHAPE = (64, 3, 32, 32)
STEPS = 50


class Free(Denoiser):
    """A denoiser that costs nothing: x0 = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.sde = VPSDE(t_min=1e-3)
        self.answer = torch.zeros(SHAPE)

    def forward(self, x_t: Tensor, t: Time, **conditions: Any) -> Prediction:
        """See `Denoiser.forward`."""
        return Prediction(self.sde, x_t, t, self.answer)


def ours() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(algorithm, library, one walk) of this library's samplers."""
    denoiser, grid = Free(), UniformTime()
    samplers: dict[str, Sampler] = {
        "DDPM": AncestralSampler(STEPS, eta=1.0, grid=grid),
        "DDIM": AncestralSampler(STEPS, grid=grid),
        "DPM-Solver++ 2M": DPMSolver(STEPS, order=2, grid=grid),
        "DPM-Solver++ 3M": DPMSolver(STEPS, order=3, grid=grid),
        "UniPC 2": UniPC(STEPS, order=2, grid=grid),
        "Adams-Bashforth": DEISSampler(STEPS, order=3, grid=grid),
        "Heun": HeunSampler(STEPS // 2, grid=grid),
        "Euler-Maruyama": SDESampler(steps=STEPS, grid=grid),
        "predictor-corrector": PredictorCorrector(steps=STEPS // 2, grid=grid),
    }
    for name, sampler in samplers.items():
        yield name, "sde_diffusion", lambda sampler=sampler: sampler(denoiser, SHAPE)


def diffusers_walks() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """The same algorithms by diffusers' schedulers."""
    try:
        from diffusers import (
            DDIMScheduler,
            DDPMScheduler,
            DPMSolverMultistepScheduler,
            HeunDiscreteScheduler,
            UniPCMultistepScheduler,
        )
    except ImportError:
        return
    schedulers = {
        "DDPM": DDPMScheduler(clip_sample=False),
        "DDIM": DDIMScheduler(clip_sample=False),
        "DPM-Solver++ 2M": DPMSolverMultistepScheduler(),
        "DPM-Solver++ 3M": DPMSolverMultistepScheduler(solver_order=3),
        "UniPC 2": UniPCMultistepScheduler(),
        "Heun": HeunDiscreteScheduler(),
    }
    answer = torch.zeros(SHAPE)

    def walk(scheduler: Any, steps: int) -> Tensor:
        scheduler.set_timesteps(steps)
        x = torch.randn(SHAPE)
        for t in scheduler.timesteps:
            x = scheduler.step(answer, t, scheduler.scale_model_input(x, t)).prev_sample
        return x

    for name, scheduler in schedulers.items():
        steps = STEPS // 2 if name == "Heun" else STEPS
        yield name, "diffusers", lambda scheduler=scheduler, steps=steps: walk(scheduler, steps)


def azula_walks() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """The same algorithms by azula."""
    try:
        from azula.denoise import Denoiser as AzulaDenoiser
        from azula.denoise import DiracPosterior
        from azula.noise import VPSchedule
        from azula.sample import DDIMSampler, DDPMSampler, zABSampler
        from azula.sample import HeunSampler as AzulaHeun
    except ImportError:
        return

    class FreeAzula(AzulaDenoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()
            self.answer = torch.zeros(SHAPE)

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return DiracPosterior(mean=self.answer)

    denoiser = FreeAzula()
    samplers = {
        "DDPM": DDPMSampler(denoiser, steps=STEPS),
        "DDIM": DDIMSampler(denoiser, steps=STEPS),
        "Heun": AzulaHeun(denoiser, steps=STEPS // 2),
        "Adams-Bashforth": zABSampler(denoiser, steps=STEPS),
    }
    for name, sampler in samplers.items():
        sampler.silent = True
        yield name, "azula", lambda sampler=sampler: sampler(sampler.init(SHAPE))


def references() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """What no sampler can do without, and a hand-written Euler-Maruyama loop."""
    x, z = torch.zeros(SHAPE), torch.ones(SHAPE)

    def arithmetic() -> None:
        for _ in range(STEPS):
            x.mul(0.9).add_(z, alpha=0.1)

    def draws() -> None:
        for _ in range(STEPS):
            torch.randn(SHAPE)

    def hand_loop() -> Tensor:
        y = torch.randn(SHAPE)
        for _ in range(STEPS):
            y = y * 0.99 + z * 0.01 + 0.1 * torch.randn(SHAPE)
        return y

    yield "bare arithmetic", "-", arithmetic
    yield "torch.randn", "-", draws
    yield "Euler-Maruyama", "hand loop", hand_loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="walks of each, taking turns")
    args = parser.parse_args()
    walks = [*references(), *ours(), *diffusers_walks(), *azula_walks()]
    times: dict[tuple[str, str], list[float]] = {(name, library): [] for name, library, _ in walks}
    with torch.no_grad():
        for turn in range(args.rounds + 1):
            for name, library, walk in walks:
                begin = time.perf_counter()
                walk()
                if turn:  # the first round is for warm-up
                    times[name, library].append(time.perf_counter() - begin)
    ms = {key: 1e3 * statistics.median(values) / STEPS for key, values in times.items()}
    print(f"state {list(SHAPE)}, {STEPS} steps (Heun and predictor-corrector: {STEPS // 2}, two passes each)")
    print(f"{torch.get_num_threads()} threads, medians of {args.rounds} walks, ms a network pass\n")
    libraries = ["-", "hand loop", "sde_diffusion", "diffusers", "azula"]
    print(f"{'algorithm':22s}" + "".join(f"{library:>15s}" for library in libraries))
    for name in dict.fromkeys(name for name, _ in ms):
        row = "".join(f"{ms[name, library]:15.3f}" if (name, library) in ms else " " * 15 for library in libraries)
        print(f"{name:22s}{row}")


if __name__ == "__main__":
    main()
