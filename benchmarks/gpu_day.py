"""All figures that need a GPU, by one command: `python -m benchmarks.gpu_day --cifar10 DIR --out DIR`

It runs, one after the other, and writes DIR/gpu_day.md and DIR/gpu_day.json with what each printed and how long it
took:

- `benchmarks.throughput` of three networks, compiled too, beside diffusers where it is installed; and of a small batch,
  for which there are CUDA graphs;
- how often a step of training and of sampling waits for the device, by torch's sync debug mode (0 is wanted);
- `benchmarks.lightning_overhead` of the network of the next;
- `experiment=cifar10_10min`: training, its grid of samples, its Fréchet distance beside the training split's, and exact
  likelihoods of the test split.

Each has its log in DIR; one that is finished is not run again. `--toy` runs all of it at a small size, on a CPU too, to
try the commands before the day; its results go to DIR/toy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sde_diffusion import VPSDE, AncestralSampler, NetworkDenoiser, Objective
from sde_diffusion.nn import UNet
from sde_diffusion.storage.files import writing


@dataclass(frozen=True)
class Job:
    """A command: its name, the module, and its arguments."""

    name: str
    module: str
    words: list[str]


def jobs(out: Path, root: Path, toy: bool) -> list[Job]:
    """The commands, in their order."""
    run = out / "cifar10_10min"
    last = run / "checkpoints" / "last.ckpt"
    ckpt = f"ckpt={last}"
    small = ["--set", "channels=32", "--batch", "4", "--repeats", "1"]
    tiny = ["trainer.accelerator=cpu", "trainer.max_time=null", "trainer.max_steps=20", "trainer.val_check_interval=10"]
    tiny += ["network.channels=32", "network.channel_mult=[1,2]", "data.batch_size=16", "model.compile=false"]
    tiny += ["model.warmup_steps=5", "callbacks.samples.n=4", "sampler.steps=3", "data.min_batches_per_epoch=10"]
    tiny += ["model.validation_draws=1", "+trainer.limit_val_batches=2"]
    found = [
        Job(
            f"throughput of {network}",
            "benchmarks.throughput",
            ["--network", network, "--out", str(out / f"throughput_{network}")]
            + (small if toy else ["--batch", "256", "--repeats", "20", "--compile"]),
        )
        for network in (["ddpm"] if toy else ["ddpm", "edm_ddpmpp", "dit_b"])
    ]
    found.append(
        Job(
            "throughput of a small batch",
            "benchmarks.throughput",
            ["--network", "ddpm", "--out", str(out / "throughput_small")]
            + (small if toy else ["--batch", "4", "--repeats", "20", "--compile"]),
        )
    )
    blocks = ["--steps", "4", "--block", "1", "--warmup", "1"] if toy else ["--steps", "200", "--block", "20"]
    preset = ["experiment=cifar10_10min", f"data.root={root}", *(tiny if toy else [])]
    walk = ["sampler=heun", f"sampler.steps={3 if toy else 18}"]
    scored = ["n=4", "method=euler", "steps=10", "elbo.draws=4", "elbo.t_end=0.01"] if toy else []
    return [
        *found,
        Job("waits", "benchmarks.gpu_day", ["--waits"]),
        Job("Lightning", "benchmarks.lightning_overhead", [*blocks, *preset, "model.compile=false"]),
        # One that was stopped is resumed.
        Job("training", "sde_diffusion.train", [ckpt] if last.exists() else [*preset, f"hydra.run.dir={run}"]),
        Job("samples", "sde_diffusion.sample", [ckpt, f"n={4 if toy else 1000}", *walk, f"out={out / 'samples'}"]),
        Job(
            "evaluation",
            "sde_diffusion.evaluate",
            [ckpt, f"n={64 if toy else 10_000}", *walk, f"out={out / 'evaluation'}"],
        ),
        Job("likelihood", "sde_diffusion.likelihood", [ckpt, "split=test", *scored, f"out={out / 'likelihood'}"]),
    ]


def waits(device: torch.device) -> dict[str, int]:
    """How often a training step and a step of sampling wait for the device; on a CPU nothing counts them."""
    if device.type != "cuda":
        return {}
    network = UNet([3, 16, 16], channels=32, channel_mult=(1, 2), blocks=1)
    denoiser = NetworkDenoiser(VPSDE(t_min=1e-3), network).to(device)
    optimizer, objective = torch.optim.AdamW(denoiser.parameters(), fused=True), Objective()
    x = torch.randn(8, 3, 16, 16, device=device)

    def train() -> None:
        loss = objective(denoiser, x, **objective.draw(denoiser, x)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def sample(steps: int) -> None:
        AncestralSampler(steps)(denoiser, tuple(x.shape), seeds=range(8))

    found = {}
    for name, more, less in (
        ("a training step", lambda: [train() for _ in range(20)], lambda: [train() for _ in range(10)]),
        ("a step of sampling", lambda: sample(20), lambda: sample(10)),
    ):
        less()  # first calls allocate and choose kernels
        counts = []
        for walk in (less, more):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                walk()
                torch.cuda.set_sync_debug_mode("default")
            counts.append(sum("synchroniz" in str(warning.message) for warning in caught))
        found[name] = round((counts[1] - counts[0]) / 10)
    return found


def page(done: dict[str, Any]) -> str:
    """What each command printed last, in Markdown: tables as tables."""
    parts = []
    for name, one in done.items():
        shown = "\n".join(one["said"])
        if not any(line.startswith("|---") for line in one["said"]):
            shown = f"```text\n{shown}\n```"
        parts.append(f"## {name}, {one['seconds']} s\n\n{shown}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder with the hub's parquet files of CIFAR-10")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--toy", action="store_true", help="small sizes, on a CPU too")
    parser.add_argument("--waits", action="store_true", help="only count how often steps wait for the device")
    args = parser.parse_args()
    if args.waits:
        print(json.dumps(waits(torch.device("cuda" if torch.cuda.is_available() else "cpu"))))
        return
    if args.cifar10 is None or args.out is None:
        parser.error("--cifar10 DIR and --out DIR are needed")
    if not args.toy and not torch.cuda.is_available():
        parser.error("torch finds no GPU on this machine; --toy tries all commands at a small size")
    if args.toy:
        args.out = args.out / "toy"
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "gpu_day.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    for job in jobs(args.out.absolute(), args.cifar10.absolute(), args.toy):
        if job.name in done:
            continue
        begin, log = time.perf_counter(), args.out / f"{job.name.replace(' ', '_')}.log"
        print(f"{job.name}: python -m {job.module} {' '.join(job.words)}", flush=True)
        with log.open("w") as stream:
            status = subprocess.run(
                [sys.executable, "-m", job.module, *job.words], stdout=stream, stderr=subprocess.STDOUT, check=False
            ).returncode
        said = log.read_text().strip().splitlines()[-30:]
        print("\n".join(f"    {line}" for line in said), flush=True)
        if status:
            sys.exit(f"{job.name} ended with status {status}: see {log}; the same command goes on from here")
        done[job.name] = {"seconds": round(time.perf_counter() - begin, 1), "said": said}
        with writing(file) as temporary:
            temporary.write_text(json.dumps(done, indent=2))
        with writing(args.out / "gpu_day.md") as temporary:
            temporary.write_text(page(done))
    print("| | seconds |", "|---|---|", *(f"| {name} | {one['seconds']} |" for name, one in done.items()), sep="\n")


if __name__ == "__main__":
    main()
