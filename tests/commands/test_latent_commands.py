"""Latent diffusion from the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoders import MLP, autoencoder
from conftest import TINY

from sde_diffusion.data import Digits
from sde_diffusion.training import GenerativeModel, LatentModel

SHORT = (*TINY, "trainer.max_steps=6", "trainer.val_check_interval=3", "data.min_batches_per_epoch=3")


@pytest.fixture(scope="module")
def latent(command, tmp_path_factory) -> Path:
    """The folder of a tiny run, whose first stage's file is gone."""
    folder = tmp_path_factory.mktemp("latent")
    first = autoencoder(folder / "vae.ckpt", Digits(), MLP, 20)
    words = ("model=latent", f"first_stage.ckpt={first}", f"hydra.run.dir={folder / 'run'}")
    done = command("train", *SHORT, *words, cwd=folder)
    assert done.status == 0, done.err
    assert "latents  [3] for data [1, 8, 8], by a frozen sde_diffusion.variational.MLPVAE" in done.out
    assert "eval mode" not in done.err
    first.unlink()
    return folder / "run"


def test_samples_are_decoded_and_latents_kept(command, latent, tmp_path):
    words = (f"ckpt={latent / 'checkpoints' / 'last.ckpt'}", "n=5", "latents=true", "sampler=dpm", f"out={tmp_path}")
    done = command("sample", *words, cwd=tmp_path)
    assert done.status == 0, done.err
    model = GenerativeModel.load_from_checkpoint(latent / "checkpoints" / "last.ckpt")
    assert isinstance(model, LatentModel)
    with np.load(tmp_path / "samples.npz") as file, np.load(tmp_path / "latents.npz") as kept:
        (w,) = (torch.from_numpy(kept[name]) for name in kept if kept[name].dtype.kind == "f")
        assert w.shape == (5, 3)
        images = 127.5 * (model.to_data(w) + 1)
        assert np.abs(file["images"][..., 0] - images[:, 0].numpy()).max() <= 0.51


@pytest.mark.slow
def test_a_moved_run_is_resumed_without_the_first_stages_file(command, latent, tmp_path):
    shutil.copytree(latent, tmp_path / "moved")
    ckpt = tmp_path / "moved" / "checkpoints" / "last.ckpt"
    done = command("train", f"ckpt={ckpt}", "trainer.max_steps=8", cwd=tmp_path)
    assert done.status == 0, done.err
    one, other = (GenerativeModel.load_from_checkpoint(path) for path in (ckpt, latent / "checkpoints" / "last.ckpt"))
    torch.testing.assert_close(one.first_stage.state_dict(), other.first_stage.state_dict(), rtol=0, atol=0)


def test_mistakes_are_one_message_each(command, latent, tmp_path):
    """Nothing is left behind."""
    for words, message in (
        (("model=latent",), "latent diffusion needs a trained first stage: train one with experiment=first_stage"),
        (
            ("first_stage.ckpt=no.ckpt",),
            "first_stage.ckpt is for latent diffusion, and this is a ScoreModel: add model=latent",
        ),
        (("model=latent", "first_stage.ckpt=no.ckpt"), "first_stage.ckpt: no checkpoint no.ckpt"),
        (("model=classifier", f"ckpt={latent / 'checkpoints' / 'last.ckpt'}"), "is a model of latent variables"),
    ):
        done = command("train", *SHORT, *words, "hydra.run.dir=run", cwd=tmp_path)
        assert (done.status, done.err.count("\n")) == (1, 1), done.err
        assert message in done.err
        assert not list(tmp_path.iterdir())
