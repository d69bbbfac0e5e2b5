"""The callback that records the validation loss by noise level."""

import csv
import math

import pytest
import torch
from lightning.pytorch import Callback
from tiny import make_model, make_trainer, make_vdm, ring

from sde_diffusion.training.noise_levels import COLUMNS, LearnedSchedule, LossByNoiseLevel

EVERY_FIVE = {"limit_val_batches": 1.0, "val_check_interval": 5, "check_val_every_n_epoch": None}


def rows(folder):
    with (folder / "noise_levels.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


class Kept(Callback):
    """Records the losses of each validation."""

    def __init__(self):
        self.draws = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.draws.append((trainer.global_step, outputs["t"], outputs["losses"]))


def test_bins_hold_all_draws_in_order_and_average_to_the_validation_loss(tmp_path):
    model, kept = make_model(), Kept()
    trainer = make_trainer(tmp_path, LossByNoiseLevel(tmp_path, bins=7), kept, max_steps=10, **EVERY_FIVE)
    trainer.fit(model, ring())
    found = rows(tmp_path)
    assert tuple(found[0]) == COLUMNS
    assert [row["step"] for row in found] == [5.0] * 7 + [10.0] * 7
    for step in (5, 10):
        mine = [row for row in found if row["step"] == step]
        t = torch.cat([draw[1] for draw in kept.draws if draw[0] == step]).double()
        loss = torch.cat([draw[2] for draw in kept.draws if draw[0] == step]).double()
        levels = model.denoiser.sde.log_snr(t)
        assert sum(row["n"] for row in mine) == len(t) == 40 * 8
        assert sum(row["n"] * row["loss"] for row in mine) / len(t) == pytest.approx(float(loss.mean()), rel=1e-6)
        centres = [row["log_snr"] for row in mine]
        assert centres == sorted(centres)
        noisiest = loss[levels.argsort()[: int(mine[0]["n"])]]
        assert mine[0]["log_snr"] == pytest.approx(float(levels.sort().values[: int(mine[0]["n"])].median()))
        assert mine[0]["loss"] == pytest.approx(float(noisiest.mean()), rel=1e-6)
        assert mine[0]["std_error"] == pytest.approx(float(noisiest.std()) / math.sqrt(len(noisiest)), rel=1e-6)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(loss.mean()), rel=1e-5)
    assert (tmp_path / "noise_levels.png").stat().st_size > 5000


def test_a_resumed_run_goes_on_with_the_file(tmp_path):
    """Rows up to the checkpoint's step remain; later ones are dropped, and computed again."""
    trainer = make_trainer(tmp_path, LossByNoiseLevel(tmp_path, bins=2), max_steps=10, **EVERY_FIVE)
    trainer.fit(make_model(), ring())
    trainer.save_checkpoint(tmp_path / "ten.ckpt")
    path = tmp_path / "noise_levels.csv"
    lines = path.read_text().splitlines()
    lines[1] = "5,-1.5,77.0,0.1,3"
    path.write_text("\n".join([*lines, "12,0.0,1.0,1.0,1"]) + "\n")
    trainer = make_trainer(tmp_path, LossByNoiseLevel(tmp_path, bins=2), max_steps=20, **EVERY_FIVE)
    trainer.fit(make_model(), ring(), ckpt_path=tmp_path / "ten.ckpt")
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [5, 5, 10, 10, 15, 15, 20, 20]
    assert found[0]["loss"] == 77


def test_the_learned_path_and_the_noise_levels_drawn(tmp_path):
    """Shares of the draws against a large sample of them; a path that is not learned has no such file."""
    model = make_vdm()
    trainer = make_trainer(tmp_path, LearnedSchedule(tmp_path), max_steps=10, **EVERY_FIVE)
    trainer.fit(model, ring())
    with (tmp_path / "schedule.csv").open(newline="") as file:
        found = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in found] == [5.0] * 100 + [10.0] * 100
    share, log_snr, drawn = (torch.tensor([row[key] for row in found[100:]]) for key in ("share", "log_snr", "drawn"))
    sde = model.denoiser.sde
    with torch.no_grad():
        torch.testing.assert_close(log_snr, sde.log_snr(share).float(), rtol=1e-5, atol=1e-5)
        sample = sde.log_snr(model.objective.times(sde, 40_000)).float()
    assert float((torch.quantile(sample, 1 - share) - drawn).abs().max()) < 1e-2
    assert (tmp_path / "schedule.png").stat().st_size > 5000
    trainer = make_trainer(tmp_path, LearnedSchedule(tmp_path / "fixed"), max_steps=5, **EVERY_FIVE)
    trainer.fit(make_model(), ring())
    assert not (tmp_path / "fixed").exists()


def test_bins_must_be_several():
    with pytest.raises(ValueError, match="at least 2; got 1"):
        LossByNoiseLevel(".", bins=1)
