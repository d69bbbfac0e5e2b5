"""Autoencoders trained by Lightning: checkpoints, samples, what is logged."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer

from sde_diffusion.data import Digits
from sde_diffusion.training import GenerativeModel, VariationalModel
from sde_diffusion.training.checkpoint_io import SealedCheckpointIO
from sde_diffusion.variational import Categorical, MLPHierarchy, bound


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = Digits(batch_size=64)
    torch.manual_seed(0)
    latent = {"_target_": "sde_diffusion.variational.MLPVAE", "latent": 8, "width": 64}
    model = VariationalModel(latent, data=data.describe(), lr=3e-3, warmup_steps=5)
    folder = tmp_path_factory.mktemp("vae")
    trainer = Trainer(
        max_steps=300,
        val_check_interval=100,
        check_val_every_n_epoch=None,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
        plugins=[SealedCheckpointIO()],
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "vae.ckpt")
    return model, data, folder / "vae.ckpt", dict(trainer.callback_metrics)


def test_it_learns_more_than_the_frequencies_of_each_pixel(trained):
    """It begins at their bound, 2.40 bits per dimension, and validates by the evidence lower bound."""
    model, data, _, metrics = trained
    x = data.split("val").tensor()
    start = model.latent.start.expand(len(x), *model.latent.start.shape)
    alone = -float(model.latent.observation.log_prob(x, start).mean()) / 64
    found = bound(model.latent.eval(), x, 20)
    bits = -float(found.log_prob.mean()) / 64 / math.log(2)
    assert alone / math.log(2) == pytest.approx(2.40, abs=0.05)
    assert bits < alone / math.log(2) - 0.03
    assert float(metrics["val/bits_per_dim"]) == pytest.approx(bits, abs=0.05)
    assert float(metrics["val/kl_1"]) == pytest.approx(float(found.kl.mean()), abs=0.3)


def test_a_checkpoint_rebuilds_it(trained):
    model, data, path, _ = trained
    again = GenerativeModel.load_from_checkpoint(path)
    assert isinstance(again, VariationalModel)
    assert isinstance(again.latent.observation, Categorical)
    x = data.split("test").tensor()[:3]
    torch.testing.assert_close(bound(again.latent, x).log_prob, bound(model.latent.eval(), x).log_prob)
    with torch.no_grad():
        ours, its = (one.draw_samples(None, None, (4, 1, 8, 8), seeds=[3, 4, 5, 6]).x for one in (model, again))
        alone = again.draw_samples(None, None, (1, 1, 8, 8), seeds=[5]).x
    assert torch.equal(ours, its)
    torch.testing.assert_close(alone[0], its[2])


def test_an_objective_for_denoisers_is_refused():
    with pytest.raises(TypeError, match="objective must be a VariationalObjective"):
        VariationalModel(
            MLPHierarchy([1, 8, 8], Categorical(17), width=8),
            objective={"_target_": "sde_diffusion.training.DenoisingScoreMatching"},
        )
