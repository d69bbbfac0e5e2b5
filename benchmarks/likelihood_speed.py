"""How fast is a likelihood? `python -m benchmarks.likelihood_speed [--ckpt PATH]`

It compares with the procedure of the first published implementation (SciPy's RK45 at 1e-5, two forward passes and one
backward pass for each evaluation, with conversions to NumPy), on the same network, in alternation: a small network that
is trained first, or that of a checkpoint. Each makes network passes of 32 images at most; the reference procedure takes
one batch after the other. The table has the processor time and the error, relative to tolerances of
1e-7, of each setting; its last line is the time at the reference procedure's error, interpolated between two tolerances
(logarithms of time and error).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import numpy as np
import torch
from scipy.integrate import solve_ivp
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from sde_diffusion import (
    VPSDE,
    Denoiser,
    Hutchinson,
    NetworkDenoiser,
    ScoreModel,
    UNet,
    UniformDequantisation,
    log_likelihood,
)
from sde_diffusion.config import build
from sde_diffusion.sampling import Noise
from sde_diffusion.training import EDMWeighting, LogNormalTimes, Objective

TOLERANCES = (1e-3, 1e-4, 1e-5, 3e-6)
_ROWS = 32
"""Most items of a network pass."""


def reference(denoiser: Denoiser, x: Tensor, probe: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """The procedure of the first published implementation: SciPy's RK45, a forward pass for the drift and a forward and
    a backward pass for its divergence, a float32 network and float64 arrays.
    """
    sde, passes = denoiser.sde, 0
    size = x[0].numel()

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal passes
        passes += 1
        y = torch.from_numpy(state[: x.numel()].reshape(x.shape)).float()
        with torch.no_grad():
            drift = denoiser(y, t).velocity
        with torch.enable_grad():
            y.requires_grad_()
            product = (denoiser(y, t).velocity * probe).sum()
            (gradient,) = torch.autograd.grad(product, y)
        divergence = (gradient * probe).flatten(1).sum(1)
        return np.concatenate([drift.numpy().ravel(), divergence.numpy()]).astype(np.float64)

    start = np.concatenate([x.double().numpy().ravel(), np.zeros(len(x))])
    solution = solve_ivp(slope, (sde.t_min, sde.t_max), start, rtol=tolerance, atol=tolerance, method="RK45")
    end = torch.from_numpy(solution.y[:, -1])
    latent, change = end[: x.numel()].reshape(x.shape), end[x.numel() :]
    return -(sde.prior_log_prob(latent) + change) / (size * math.log(2)), passes


def briefly_trained(items: int, steps: int = 300) -> tuple[Denoiser, Tensor]:
    """A small convolutional network after some steps on dequantised digits, enlarged to 28x28; and some of them that
    it has not seen.
    """
    torch.manual_seed(0)
    digits = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 8 - 1
    images = F.interpolate(digits, (28, 28), mode="bilinear") + (torch.rand(len(digits), 1, 28, 28) - 0.5) / 8
    network = UNet(shape=(1, 28, 28), channels=16, channel_mult=(1, 2), blocks=1, attention=())
    denoiser = NetworkDenoiser(VPSDE(), network)
    objective = Objective(EDMWeighting(), LogNormalTimes(-1.2, 1.2, stratified=True))
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    for _ in range(steps):
        batch = images[torch.randint(items, len(images), (32,))]
        loss = objective(denoiser, batch, objective.times(denoiser.sde, 32), torch.randn_like(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return denoiser.eval().requires_grad_(False), images[:items]


def from_checkpoint(ckpt: str, items: int) -> tuple[Denoiser, Tensor]:
    """The model of a checkpoint, and dequantised items of its test split."""
    model = ScoreModel.load_from_checkpoint(ckpt)
    x = build(model.data["config"]).prepare().tensor("test")[:items]
    filled = UniformDequantisation(model.data["levels"])(x, Noise(range(len(x)), x.shape[1:]), 0)
    return model.denoiser.eval().requires_grad_(False), filled.float()


def against_reference(rounds: int, denoiser: Denoiser, x: Tensor) -> None:
    """Run both procedures on the same network with the same probes."""
    noise = Noise(range(len(x)), x.shape[1:], dtype=torch.float64)
    probe = Hutchinson().vectors(noise)[0].float()
    size = x[0].numel()

    def ours(tolerance: float) -> tuple[Tensor, int]:
        result = log_likelihood(denoiser, x, rtol=tolerance, atol=tolerance, rows=_ROWS)
        return -result.log_prob / (size * math.log(2)), result.nfe

    def theirs() -> tuple[Tensor, int]:
        batches = zip(x.split(_ROWS), probe.split(_ROWS), strict=True)
        values, passes = zip(*(reference(denoiser, some, vectors, 1e-5) for some, vectors in batches), strict=True)
        return torch.cat(values), round(statistics.mean(passes))

    exact, _ = ours(1e-7)
    candidates = {
        "reference 1e-5": theirs,
        **{f"ours {tolerance:g}": (lambda tolerance=tolerance: ours(tolerance)) for tolerance in TOLERANCES},
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    found: dict[str, tuple[float, int]] = {}
    for _ in range(rounds):
        for name, run in candidates.items():
            begin = time.process_time()
            values, passes = run()
            seconds[name].append(time.process_time() - begin)
            found[name] = (float((values - exact).abs().max()), passes)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    base = medians["reference 1e-5"]
    for name, (worst, passes) in found.items():
        speed = f"{medians[name]:8.2f} s{base / medians[name]:7.2f} x"
        print(f"{name:16s}{passes:5d} evaluations{speed}{worst:10.1e} bits/dim (worst)")
    ours_alone = sorted((found[name][0], medians[name]) for name in candidates if name.startswith("ours"))
    errors, times = np.log(np.array(ours_alone)).T
    target = found["reference 1e-5"][0]
    equal = math.exp(np.interp(math.log(target), errors, times))
    print(f"at an error of {target:.1e}: {equal:.2f} s, {base / equal:.2f} x as fast as the reference procedure")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="checkpoint of a model of images, in place of the small network")
    parser.add_argument("--rounds", type=int, default=3, help="of each, taking turns")
    parser.add_argument("--n", type=int, default=128, help="images, in batches of 32; at most 1,000")
    args = parser.parse_args()
    if not 1 <= args.n <= 1000:
        parser.error(f"--n must be from 1 to 1,000; got {args.n}")
    model = from_checkpoint(args.ckpt, args.n) if args.ckpt else briefly_trained(args.n)
    against_reference(args.rounds, *model)


if __name__ == "__main__":
    main()
