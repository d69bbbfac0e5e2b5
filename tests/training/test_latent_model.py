"""Score models of latent variables: what is trained, what a checkpoint holds, what is refused."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from autoencoders import MLP, autoencoder
from omegaconf import OmegaConf
from tiny import OBJECTIVE, make_model, make_trainer, same
from torch import nn

from sde_diffusion.commands.run_report import conclude
from sde_diffusion.data import Digits
from sde_diffusion.density import log_likelihood
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import DPMSolver
from sde_diffusion.training import EMA, GenerativeModel, LatentModel
from sde_diffusion.training.checkpoint_io import SealedCheckpointIO
from sde_diffusion.variational import VAE, Categorical, ConvVQVAE, FirstStage, latent_noise

NETWORK = {"_target_": "sde_diffusion.nn.MLP", "shape": [3], "width": 16, "depth": 1, "embedding_dim": 8}
DENOISER = {
    "_target_": "sde_diffusion.denoiser.NetworkDenoiser",
    "sde": {"_target_": "sde_diffusion.sde.VPSDE"},
    "network": NETWORK,
    "sigma_data": 1.0,
}


def digits() -> Digits:
    return Digits(batch_size=32, min_batches_per_epoch=4)


def run(model: GenerativeModel, folder: Path, steps: int, ckpt: Path | None = None, **options: Any) -> Path:
    """Train to a number of steps, and write a checkpoint."""
    options = {"max_steps": steps, "plugins": [SealedCheckpointIO()], **options}
    trainer = make_trainer(folder, EMA(0.9), **options)
    trainer.fit(model, datamodule=digits(), ckpt_path=ckpt, weights_only=True)
    path = folder / f"{type(model).__name__}-{steps}.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    return autoencoder(tmp_path_factory.mktemp("vae") / "vae.ckpt", digits(), MLP, steps=20)


def make(first_stage: Any, **options: Any) -> LatentModel:
    torch.manual_seed(0)
    settings = {"data": digits().describe(), "lr": 1e-2, "warmup_steps": 1, "schedule": "constant", **options}
    return LatentModel(DENOISER, OBJECTIVE, first_stage, **settings)


@pytest.fixture(scope="module")
def latent(vae, tmp_path_factory) -> tuple[LatentModel, Path]:
    model = make(vae)
    return model, run(model, tmp_path_factory.mktemp("latent"), 8, limit_val_batches=1)


def test_a_checkpoint_alone_suffices(latent, vae, tmp_path):
    """It has the first stage's weights bit for bit, which no step has changed, and shift and scale."""
    model, path = latent
    again, first = GenerativeModel.load_from_checkpoint(path), GenerativeModel.load_from_checkpoint(vae).autoencoder
    assert isinstance(again, LatentModel)
    assert same(again.first_stage.autoencoder.state_dict(), first.state_dict())
    assert vae.name not in str(again.hparams)
    measured = FirstStage(copy.deepcopy(first))
    measured.fit_statistics([digits().split("train").tensor()])
    torch.testing.assert_close(again.first_stage.state_dict(), measured.state_dict())
    assert not torch.allclose(again.first_stage.scale, torch.ones(3), atol=0.01)
    assert (again.state_shape, tuple(again.data["shape"])) == ((3,), (1, 8, 8))
    ours, its = (
        one.draw_samples(DPMSolver(3), one.denoiser, (4, 1, 8, 8), seeds=[3, 4, 5, 6]) for one in (model, again)
    )
    assert ours.x.shape == (4, 1, 8, 8)
    assert torch.equal(ours.x, its.x)
    walk = DPMSolver(3)(again.denoiser, (4, 3), seeds=[3, 4, 5, 6]).x
    z = again.first_stage.shift + again.first_stage.scale * walk
    torch.testing.assert_close(its.x, first.decode([z]))


def test_the_first_stage_is_neither_trained_nor_averaged_and_stays_in_evaluation_mode(latent):
    model, path = latent
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, _ in model.named_parameters() if name.startswith("first_stage.")]
    stored = torch.load(path, weights_only=True)
    (optimizer,) = stored["optimizer_states"]
    assert len(optimizer["param_groups"][0]["params"]) == len(list(model.denoiser.parameters()))
    for part in ("state_dict", "current_model_state"):
        assert same(
            {k: v for k, v in stored[part].items() if k.startswith("first_stage.")},
            {f"first_stage.{k}": v for k, v in model.first_stage.state_dict().items()},
        )
    assert not same(stored["state_dict"], stored["current_model_state"])
    assert model.train().denoiser.training
    assert not any(module.training for module in model.first_stage.modules())


def test_a_resumed_run_ends_like_an_uninterrupted_one_without_the_first_stages_file(latent, vae, tmp_path, monkeypatch):
    """And without measuring shift and scale again."""
    whole = torch.load(latent[1], weights_only=True)
    half = run(make(vae), tmp_path, 3, limit_val_batches=1)
    resumed = GenerativeModel.load_from_checkpoint(half).hparams["first_stage"]
    monkeypatch.delattr(FirstStage, "fit_statistics")
    end = torch.load(run(make(resumed), tmp_path, 8, half, limit_val_batches=1), weights_only=True)
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert same(end[part], whole[part]), part


def test_z_is_drawn_anew_in_full_precision_whatever_the_training_computes_in(vae):
    model, seen = make(vae), []
    model.first_stage.autoencoder.encoder.register_forward_hook(lambda _, x, y: seen.append(y.dtype))
    x = digits().split("train").tensor(torch.arange(6))
    with torch.autocast("cpu", torch.bfloat16):
        one, other = model.filled(x), model.filled(x)
        assert not torch.equal(one, other)
        assert model.to_data(one).dtype == torch.float32
    assert (set(seen), one.shape) == ({torch.float32}, (6, 3))
    fixed = [model.filled(x, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*fixed)
    found = model.double().filled(x.double())
    assert found.dtype == torch.float64


@torch.no_grad()
def test_its_bound_is_that_of_both_stages(latent):
    model, _ = latent
    x = digits().split("test").tensor(torch.arange(4))
    options = {"trace": "exact", "steps": 8, "method": "rk4"}
    found, stage = model.bound(x, draws=4, **options), model.first_stage
    (stream,) = latent_noise(stage.autoencoder, range(4), x.device, x.dtype)
    q, reconstruction, log_p = stage.encode(x), 0.0, 0.0
    for draw in range(4):
        w = stage.standardise(q.draw(stream.normal(draw)))
        reconstruction = reconstruction + stage.log_prob(x, w).double() / 4
        log_p = log_p + (log_likelihood(model.denoiser, w, **options).log_prob - stage.log_scale) / 4
    torch.testing.assert_close(found.reconstruction, reconstruction)
    torch.testing.assert_close(found.kl, (-q.entropy() - log_p).unsqueeze(0))
    assert (found.std_error > 0).all()


def test_what_is_no_first_stage_for_the_data_is_refused(vae, tmp_path):
    message = "latent diffusion needs a trained first stage: train one with experiment=first_stage, then give first_"
    with pytest.raises(UserError, match=message):
        make(None)
    with pytest.raises(UserError, match=r"first_stage.ckpt: no checkpoint .*away.ckpt"):
        make(tmp_path / "away.ckpt")
    with pytest.raises(UserError, match="first_stage lacks observation, shape, levels"):
        make({"autoencoder": MLP})
    data = digits().describe()
    for change, words in (
        ({"shape": [3, 32, 32]}, r"trained on digits \[1, 8, 8\], data are \[3, 32, 32\]"),
        ({"levels": None}, "trained on digits with levels 17, those of the data are None"),
    ):
        with pytest.raises(UserError, match=words):
            make(vae, data={**data, **change})
        with pytest.raises(UserError, match=words.replace("digits", "data")):
            make(make(vae).hparams["first_stage"], data={**data, **change})
    network = {**NETWORK, "shape": [1, 8, 8]}
    score = run(make_model(network, data=data), tmp_path, 1)
    with pytest.raises(UserError, match="contains a ScoreModel, which is no autoencoder: train one with"):
        make(score)


def identity(levels: int) -> FirstStage:
    """A first stage whose z is x itself, but for a standard deviation of 0.01."""

    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, torch.full_like(x, -4.6)], 1)

    return FirstStage(VAE(Same(), nn.Identity(), Categorical(levels), [3], [3]))


def test_shift_and_scale_are_those_of_dequantised_data(monkeypatch):
    """Noise over bins of width 2 adds a variance of 1/3 to that of -1 and 1; 10,000 items, five standard errors."""
    described = {"shape": [3], "levels": 2}
    model = LatentModel(DENOISER, OBJECTIVE, identity(2), data=described, dequantise=True)
    x = torch.tensor([-1.0, 1.0]).repeat(5000)[:, None].expand(-1, 3)
    monkeypatch.setattr(model, "training_items", lambda: iter(x.split(500)))
    model._trainer = SimpleNamespace(ckpt_path=None)
    model.on_fit_start()
    scale, w = model.first_stage.scale, 2 / (2 - 1)
    assert (scale.square() - 1 - w**2 / 12).abs().max() < 5 * 2 * (1 / 3 / 10_000) ** 0.5
    found = model.filled(x, torch.Generator().manual_seed(1))
    assert (found.var(0) - 1).abs().max() < 5 * 2**0.5 / 100


def test_the_next_commands_are_those_that_the_model_can_run(vae, caplog):
    """Latent variables that are codes have no bound."""
    codes = ConvVQVAE([1, 8, 8], Categorical(17), codebook_size=4, latent_channels=3, channels=[4, 4, 4, 4])
    network = {**NETWORK, "shape": [3, 1, 1]}
    of_codes = LatentModel({**DENOISER, "network": network}, OBJECTIVE, FirstStage(codes), data=digits().describe())
    for model, commands in (
        (make(vae), ["sample", "evaluate", "evaluate", "likelihood"]),
        (of_codes, ["sample", "evaluate", "evaluate"]),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            conclude(OmegaConf.create({"guidance": None}), model, Path("run"), Path("run/last.ckpt"))
        lines = caplog.messages[caplog.messages.index("Next:") + 1 :]
        assert [line.split("sde_diffusion.")[1].split()[0] for line in lines] == commands
