"""Two processes on the CPU (gloo): they divide the data, draw different noise, and agree on everything else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from test_ema import flat
from tiny import make_model, make_trainer, ring

from sde_diffusion.training import EMA
from sde_diffusion.training.callbacks import StopOnNonFinite
from sde_diffusion.training.loggers import CSVLogger

pytestmark = pytest.mark.slow  # four processes that import torch and lightning


class Witness(Callback):
    """Write what this process saw to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.validation: list[torch.Tensor] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        objective = pl_module.objective

        def recorded(denoiser: Any, x0: Any, t: Any, noise: Any, **conditions: Any) -> torch.Tensor:
            loss = objective.__call__(denoiser, x0, t, noise, **conditions)
            if trainer.validating or trainer.sanity_checking or not pl_module.training:
                self.validation.append(loss.detach().clone())
            else:
                self.train.append((x0, noise))
            return loss

        for name in ("times", "draw", "uses_data"):
            setattr(recorded, name, getattr(objective, name))
        del pl_module.objective  # a module: a function cannot replace it
        pl_module.objective = recorded

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(
            {
                "x": torch.stack([x for x, _ in self.train]),
                "noise": torch.stack([noise for _, noise in self.train]),
                "validation": torch.cat(self.validation),
                "val/loss": trainer.callback_metrics["val/loss"],
                "weights": flat(pl_module),
            },
            self.folder / f"rank{trainer.global_rank}.pt",
        )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("two")
    for steps, ckpt in ((4, None), (8, folder / "step=4.ckpt")):  # then resumed, with a metrics file to go on with
        trainer = make_trainer(
            folder,
            Witness(folder),
            EMA(0.9),
            StopOnNonFinite(),
            ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1),
            enable_checkpointing=True,
            devices=2,
            strategy="ddp_spawn",
            max_steps=steps,
            limit_val_batches=None,
            val_check_interval=4,
            check_val_every_n_epoch=None,
            logger=CSVLogger(folder),
        )
        # 33 points to validate on: 17 and 16, in 2 batches and 1
        trainer.fit(make_model(), ring(batch_size=16, n_val=33), ckpt_path=ckpt)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_each_process_sees_other_data_and_other_noise(ranks: list[dict[str, torch.Tensor]]) -> None:
    a, b = ranks
    assert a["x"].shape == b["x"].shape == (4, 16, 2)  # one epoch: 128 points over 2 processes and 4 steps
    seen = torch.cat([a["x"], b["x"]]).flatten(0, 1)
    assert len(seen.unique(dim=0)) == 128
    noise = torch.cat([a["noise"], b["noise"]]).flatten()
    assert len(noise.unique()) == len(noise)


def test_validation_loss_is_the_mean_over_all_items(ranks: list[dict[str, torch.Tensor]]) -> None:
    a, b = ranks
    assert [len(rank["validation"]) for rank in ranks] == [17 * 8, 16 * 8]
    every = torch.cat([a["validation"], b["validation"]])
    assert a["val/loss"] == b["val/loss"]
    assert a["val/loss"].item() == pytest.approx(every.double().mean().item(), rel=1e-6)


def test_processes_end_with_the_same_weights(ranks: list[dict[str, torch.Tensor]]) -> None:
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
