"""Images a second, in training and in sampling? `python -m benchmarks.throughput --network ddpm --out DIR`

One network of `conf/network` with each switch for speed, and, if diffusers is installed, its `UNet2DModel` of the same
configuration (for ddpm), in a plain loop. All take turns in one process, so that other load on the machine affects all,
and medians are compared. For each:

- the network's forward pass alone, and with the backward pass;
- a training step: batch, loss, backward pass, clipping, AdamW;
- a step of sampling (DDIM), without gradients;
- on a GPU, the peak memory of a training step and of a step of sampling, beside the weights.

FLOPs are counted by torch for one image (2 for each multiplication and addition), and the device's peak is that of a
matrix product of 4,096 numbers a side, or of a convolution of 256 channels, in the same type and run, whichever is
faster. On a CPU the times are those of the process, in CPU seconds, in which other load matters less.

`--compile` adds compiled networks, and the seconds until their first training step and step of sampling are done; on a
GPU there is one with CUDA graphs too. `--profile` writes a trace of a training step for https://ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.variants import Variant, all_variants
from sde_diffusion import AncestralSampler
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import writing

PEAK_SIZE = 4096


class Benchmark:
    """Measures several variants of a network, which take turns.

    Args:
        variants: The variants.
        shape: Shape of one image.
        batch: Images in a batch.
        device: Where to measure.
    """

    def __init__(self, variants: list[Variant], shape: list[int], batch: int, device: torch.device) -> None:
        self.variants, self.device, self.batch = variants, device, batch
        self.x = torch.randn(batch, *shape, device=device)
        self.t = torch.linspace(0.01, 0.99, batch, dtype=torch.float64)
        self.optimizers = {
            variant.name: torch.optim.AdamW(variant.denoiser.parameters(), lr=1e-5, fused=True) for variant in variants
        }
        self.phases: dict[str, Callable[[Variant], object]] = {
            "forward": self.forward,
            "forward+backward": self.backward,
            "training step": self.training,
            "sampling step": self.sampling,
        }

    def clock(self) -> float:
        """Seconds of the device, or of the process on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @torch.no_grad()
    def forward(self, variant: Variant) -> None:
        """The forward pass alone."""
        variant.denoiser(self.x, self.t)

    def backward(self, variant: Variant) -> None:
        """The forward pass and the backward pass."""
        variant.denoiser(self.x, self.t).x0.square().mean().backward()

    def training(self, variant: Variant) -> None:
        """A training step."""
        sde, noise = variant.denoiser.sde, torch.randn_like(self.x)
        belief = variant.denoiser(sde.perturb(self.x, self.t, noise), self.t)
        self.optimizers[variant.name].zero_grad()
        (belief.eps - noise).square().mean().backward()
        nn.utils.clip_grad_norm_(variant.denoiser.parameters(), 1.0)
        self.optimizers[variant.name].step()

    @torch.no_grad()
    def sampling(self, variant: Variant) -> None:
        """Sampling in one step."""
        AncestralSampler(1, eta=0.0)(variant.denoiser, tuple(self.x.shape), seeds=range(self.batch))

    def time_phase(self, variant: Variant, phase: str) -> float:
        """Seconds of one phase of one variant."""
        variant.denoiser.train(phase != "sampling step" and phase != "forward")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=variant.autocast):
            begin = self.clock()
            self.phases[phase](variant)
            return self.clock() - begin

    def run(self, repeats: int) -> None:
        """Time each phase of each variant: two repeats to warm up, then `repeats` that count."""
        for repeat in range(repeats + 2):
            for phase in self.phases:
                for variant in self.variants:
                    seconds = self.time_phase(variant, phase)
                    variant.denoiser.zero_grad()
                    if repeat > 1:
                        variant.times.setdefault(phase, []).append(seconds)

    def time_first_steps(self) -> None:
        """Time the first training step and step of sampling of each, together."""
        for variant in self.variants:
            start = time.perf_counter()
            for phase in ("training step", "sampling step"):
                self.time_phase(variant, phase)
                variant.denoiser.zero_grad()
            variant.first_steps = time.perf_counter() - start

    def measure_memory(self) -> None:
        """Peak memory of a training step and a step of sampling, on a GPU."""
        for variant in self.variants if self.device.type == "cuda" else ():
            for phase in ("training step", "sampling step"):
                gc.collect()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                self.time_phase(variant, phase)
                variant.memory[phase] = torch.cuda.max_memory_allocated() - before
                variant.denoiser.zero_grad()


def peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float], repeats: int = 5) -> float:
    """FLOP/s of a large matrix product or a large convolution, the best of some: which is faster depends on the CPU."""
    a = torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, dtype=dtype)
    x = torch.randn(8, 256, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    work: list[tuple[float, Callable[[], Tensor]]] = [
        (2 * PEAK_SIZE**3, lambda: a @ a),
        (2 * x.numel() * weight[0].numel(), lambda: nn.functional.conv2d(x, weight, padding=1)),
    ]
    found = []
    for flops, run in work:
        run()
        for _ in range(repeats):
            begin = clock()
            run()
            found.append(flops / (clock() - begin))
    return max(found)


def positive(word: str) -> int:
    """A whole number of at least 1."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


def setting(word: str) -> tuple[str, Any]:
    """A key and its value."""
    key, equals, value = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE; got {word}")
    return key, yaml.safe_load(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = sorted(path.stem for path in (config_folder() / "network").glob("*.yaml"))
    parser.add_argument("--network", default="ddpm", choices=presets, metavar="NAME", help="a preset of conf/network")
    shape = "of an image, channels first, as in --shape 3 32 32, the default"
    parser.add_argument("--shape", type=int, nargs="+", default=[3, 32, 32], help=shape)
    parser.add_argument("--batch", type=positive, default=8, help="images in a batch; 8")
    parser.add_argument("--repeats", type=positive, default=5, help="measurements of each; 5")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", default=devices[-1], choices=devices)
    parser.add_argument(
        "--set", nargs="*", type=setting, default=[], help="settings of the network, such as channels=32"
    )
    parser.add_argument("--compile", action="store_true", help="also compiled networks")
    parser.add_argument("--profile", action="store_true", help="write a trace of a training step")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    if (args.out / "throughput.json").exists():
        parser.error(f"{args.out / 'throughput.json'} exists already: choose another --out, or remove it")
    device = torch.device(args.device)
    try:
        variants = all_variants(args, dict(args.set), device)
    except (UserError, ValueError) as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(variants, args.shape, args.batch, device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        benchmark.forward(variants[0])
    flops = counter.get_total_flops() / args.batch
    benchmark.time_first_steps()
    benchmark.run(args.repeats)
    benchmark.measure_memory()
    peaks = {kind: peak(device, kind, benchmark.clock) for kind in (torch.float32, torch.bfloat16)}
    baseline = next((variant for variant in variants if variant.name == "diffusers, float32"), variants[0])
    rows = [row(variant, baseline, args.batch, flops, peaks) for variant in variants]
    about = {
        "network": args.network,
        "parameters": sum(p.numel() for p in variants[0].denoiser.parameters()),
        "GFLOP an image": flops / 1e9,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "batch": args.batch,
        "repeats": args.repeats,
        "baseline": baseline.name,
        "peak TFLOP/s": {str(kind): value / 1e12 for kind, value in peaks.items()},
        "torch": torch.__version__,
        "rows": rows,
    }
    with writing(args.out / "throughput.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2))
    if args.profile:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities[: 1 + (device.type == "cuda")]) as trace:
            benchmark.time_phase(variants[0], "training step")
        trace.export_chrome_trace(str(args.out / "trace.json"))
    print(table(about))


def row(
    variant: Variant, baseline: Variant, batch: int, flops: float, peaks: dict[torch.dtype, float]
) -> dict[str, Any]:
    """Medians, images a second, and ratios to the baseline in the same repeat."""
    half = variant.autocast or variant.denoiser.compute_dtype is not None
    found: dict[str, Any] = {"name": variant.name}
    for phase, times in variant.times.items():
        ratios = [other / mine for mine, other in zip(times, baseline.times[phase], strict=True)]
        found[phase] = {
            "seconds": statistics.median(times),
            "images a second": batch / statistics.median(times),
            "times as fast": statistics.median(ratios),
        }
    rate = flops / found["forward"]["seconds"] * batch
    found |= {"TFLOP/s": rate / 1e12, "share of the peak": rate / peaks[torch.bfloat16 if half else torch.float32]}
    found["first steps, seconds"] = variant.first_steps
    return found | {f"memory of a {phase}, GiB": most / 2**30 for phase, most in variant.memory.items()}


def table(about: dict[str, Any]) -> str:
    """The results in Markdown."""
    phases = [phase for phase, cell in about["rows"][0].items() if isinstance(cell, dict)]
    memory = [name for name in about["rows"][0] if name.startswith("memory")]
    columns = [*phases, "of the peak", "first steps", *memory]
    lines = [
        f"{about['network']}: {about['parameters']:,} parameters, {about['GFLOP an image']:.1f} GFLOP an image; "
        f"{about['device']}, batch {about['batch']}, medians of {about['repeats']} repeats; x: times as "
        f"fast as {about['baseline']}",
        "",
        f"| | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for one in about["rows"]:
        cells = [f"{one[phase]['images a second']:.3g}/s, {one[phase]['times as fast']:.2f} x" for phase in phases]
        cells += [f"{one['share of the peak']:.0%}", f"{one['first steps, seconds']:.0f} s"]
        cells += [f"{one[name]:.2f}" for name in memory]
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
