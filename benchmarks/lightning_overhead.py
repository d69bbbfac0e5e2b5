"""What does Lightning cost? `python -m benchmarks.lightning_overhead [--steps N --block N --warmup N] [KEY=VALUE ...]`

It compares the time of a training step of the default run (`sde_diffusion.train`: loss, clipping, AdamW, warm-up,
moving average, progress, CSV log), or of any other, with that of a hand-written loop with the same network, data and
arithmetic. Blocks of steps alternate within one process, and their medians are compared, so that other load on the
machine affects both. On a CPU the times are those of the process, in CPU seconds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from sde_diffusion.commands.configurations import config_folder, register_resolvers
from sde_diffusion.commands.train import build_model
from sde_diffusion.training.callbacks import StopOnNonFinite, TrainingProgress
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.loggers import CSVLogger


class HandLoop:
    """The same training, written by hand: only the arithmetic."""

    def __init__(self, cfg: Any, device: str) -> None:
        self.data, self.model = build_model(cfg)
        self.model.to(device)
        self.parameters = list(self.model.denoiser.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=cfg.model.lr, weight_decay=0.0, fused=True)
        self.clip = cfg.trainer.gradient_clip_val
        self.lr, self.warmup_steps = cfg.model.lr, cfg.model.warmup_steps
        self.batches = self._batches()
        self.steps = 0

    def _batches(self) -> Any:
        split = self.data.split("train")
        while True:
            for index in torch.randperm(len(split)).split(self.data.batch_size)[:-1]:
                yield split.batch(index)["x"]

    def step(self) -> None:
        """One training step."""
        self.steps += 1
        x0 = next(self.batches).to(self.model.device)
        objective, denoiser = self.model.objective, self.model.denoiser
        t = objective.times(denoiser.sde, len(x0))
        loss = objective(denoiser, x0, t, torch.randn_like(x0)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.param_groups[0]["lr"] = self.lr * min(1.0, self.steps / self.warmup_steps)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 0.001)


class TakeTurns(Callback):
    """Times blocks of Lightning's steps, and after each a block of the hand-written loop."""

    def __init__(self, hand: HandLoop, block: int, warmup: int, clock: Callable[[], float]) -> None:
        self.hand, self.block, self.warmup, self.clock = hand, block, warmup, clock
        self.times: dict[str, list[float]] = {"lightning": [], "hand": []}
        self.begin = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the end of a block, run and time a block of the other loop."""
        step = trainer.global_step
        if step < self.warmup or (step - self.warmup) % self.block:
            return
        now = self.clock()
        if self.begin:
            self.times["lightning"].append((now - self.begin) / self.block)
            for _ in range(self.block):
                self.hand.step()
            self.times["hand"].append((self.clock() - now) / self.block)
        self.begin = self.clock()


def synchronised() -> float:
    """Seconds, when the GPU has done its work."""
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="steps of each kind")
    parser.add_argument("--block", type=int, default=50, help="steps before the other kind takes its turn")
    parser.add_argument("--warmup", type=int, default=100, help="steps before the first block")
    parser.add_argument("overrides", nargs="*", help="configuration of the run, as for sde_diffusion.train")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", args.overrides)
    on_cpu = cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    hand = HandLoop(cfg, "cpu" if on_cpu else "cuda")
    data, model = build_model(cfg)
    turns = TakeTurns(hand, args.block, args.warmup, time.process_time if on_cpu else synchronised)
    with tempfile.TemporaryDirectory() as folder:
        length = {"max_steps": args.warmup + args.steps + 1, "val_check_interval": 10**9}
        options = {**OmegaConf.to_container(cfg.trainer), **length}
        callbacks = [EMA(), StopOnNonFinite(), TrainingProgress(), turns]
        Trainer(
            callbacks=callbacks,
            logger=CSVLogger(folder),
            default_root_dir=Path(folder),
            enable_checkpointing=False,
            **options,
        ).fit(model, datamodule=data)
    ms = {name: 1e3 * statistics.median(times) for name, times in turns.times.items()}
    ratios = [a / b for a, b in zip(turns.times["lightning"], turns.times["hand"], strict=True)]
    print(f"{sum(p.numel() for p in model.denoiser.parameters()):,} parameters, batch {data.batch_size}")
    print(f"{torch.get_num_threads()} threads, {len(ratios)} blocks of {args.block} steps each")
    print(f"hand-written loop  {ms['hand']:7.2f} ms a step (median)")
    print(f"Lightning          {ms['lightning']:7.2f} ms a step (median)")
    print(f"ratio              {statistics.median(ratios):7.3f}    (median of the blocks' ratios)")


if __name__ == "__main__":
    main()
