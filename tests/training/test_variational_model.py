"""Autoencoders trained by Lightning: checkpoints, samples, what is logged."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from sde_diffusion.data import Digits
from sde_diffusion.errors import UserError
from sde_diffusion.modality import Images
from sde_diffusion.training import BetaELBO, GenerativeModel, ImportanceWeighted, VariationalModel
from sde_diffusion.training.checkpoint_io import SealedCheckpointIO
from sde_diffusion.variational import Categorical, Gaussian, MLPHierarchy, bound

LATENT = {"_target_": "sde_diffusion.variational.MLPVAE", "width": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = Digits(batch_size=64)
    torch.manual_seed(0)
    latent = {"_target_": "sde_diffusion.variational.MLPVAE", "latent_dim": 8, "width": 64}
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
    start = model.autoencoder.output_bias.expand(len(x), *model.autoencoder.output_bias.shape)
    alone = -float(model.autoencoder.observation.log_prob(x, start).mean()) / 64
    found = bound(model.autoencoder.eval(), x, 20)
    bits = -float(found.log_prob.mean()) / 64 / math.log(2)
    assert alone / math.log(2) == pytest.approx(2.40, abs=0.05)
    assert bits < alone / math.log(2) - 0.03
    assert float(metrics["val/bits_per_dim"]) == pytest.approx(bits, abs=0.05)
    assert float(metrics["val/kl_1"]) == pytest.approx(float(found.kl.mean()), abs=0.3)


def test_a_checkpoint_rebuilds_it(trained):
    model, data, path, _ = trained
    again = GenerativeModel.load_from_checkpoint(path)
    assert isinstance(again, VariationalModel)
    assert isinstance(again.autoencoder.observation, Categorical)
    x = data.split("test").tensor()[:3]
    torch.testing.assert_close(bound(again.autoencoder, x).log_prob, bound(model.autoencoder.eval(), x).log_prob)
    with torch.no_grad():
        ours, its = (one.draw_samples(None, None, (4, 1, 8, 8), seeds=[3, 4, 5, 6]).x for one in (model, again))
        alone = again.draw_samples(None, None, (1, 1, 8, 8), seeds=[5]).x
    assert torch.equal(ours, its)
    torch.testing.assert_close(alone[0], its[2])


@torch.no_grad()
def test_its_pictures(trained, monkeypatch):
    """What is drawn of eight items, against the networks' outputs by hand."""
    model, data, _, _ = trained
    x, vae, shown = data.split("val").tensor()[:8], model.eval().autoencoder, {}
    for name in ("beside", "draw_rows"):
        draw = getattr(Images, name)

        def recorded(self, *given, draw=draw, **names):
            shown[(picture := draw(self, *given, **names)).tobytes()] = given
            return picture

        monkeypatch.setattr(Images, name, recorded)
    drawn = {name: shown[picture.tobytes()] for name, picture in model.pictures(x).items()}
    assert list(drawn) == ["reconstructions", "traversals", "interpolations"]
    mean, log_std = vae.encoder(x).chunk(2, 1)
    levels = torch.linspace(-1, 1, 17).view(17, 1, 1, 1)

    def decoded(z):
        return ((vae.decoder(z) + vae.output_bias).softmax(1) * levels).sum(1)

    reconstructions, items = drawn["reconstructions"]
    torch.testing.assert_close(reconstructions, decoded(mean))
    assert torch.equal(items, x)
    moved, rows, columns = drawn["traversals"]
    std = (8 * (log_std / 8).tanh()).exp()
    nats = (0.5 * (mean.square() + std.square() - 1) - std.log()).mean(0)
    order = nats.argsort(descending=True).tolist()
    assert rows == [f"z_1[{place}]: {nats[place]:.2f} nats" for place in order]
    for row, place in enumerate(order):
        z = mean[:1].repeat(len(columns), 1)
        z[:, place] = torch.tensor([-2.5 + 0.625 * step for step in range(9)])
        torch.testing.assert_close(moved[row], decoded(z))
    ways, rows, _ = drawn["interpolations"]
    assert (len(rows), ways.shape[:2]) == (4, (4, 11))
    torch.testing.assert_close(ways[:, [0, -1]], torch.stack([x[:4], x[4:]], 1))
    torch.testing.assert_close(ways[:, [1, -2]], torch.stack([decoded(mean[:4]), decoded(mean[4:])], 1))


@pytest.mark.parametrize(
    ("kl", "message"),
    [((0.03, 0.01), "the latents are not used: .*0.04 nats"), ((5.0, 0.01), "z_2 is not used"), ((5.0, 1.0), None)],
)
@pytest.mark.parametrize("objective", [BetaELBO(), ImportanceWeighted(2, "standard")], ids=["beta_elbo", "iwae"])
def test_latents_that_are_not_used_are_warned_of(kl, message, objective, caplog):
    model = VariationalModel(MLPHierarchy([1, 8, 8], Categorical(17), width=8), objective=objective, warmup_steps=0)
    metrics = {f"val/kl_{t}": torch.tensor(nats) for t, nats in enumerate(kl, 1)}
    model.trainer = SimpleNamespace(
        sanity_checking=False, is_global_zero=True, callback_metrics=metrics, global_step=9, lightning_module=model
    )
    for _ in range(2):  # only once
        model.on_validation_end()
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])
    for key in re.findall(r"objective\.(\w+)", " ".join(found)):  # what it advises exists
        assert hasattr(objective, key)


@pytest.mark.parametrize(
    ("observation", "levels", "message"),
    [
        (
            "Categorical",
            None,
            "Categorical is for data with 2 to 256 levels, and these data are continuous: take Gaussian, their default",
        ),
        ("DiscretizedLogistic", None, "these data are continuous"),
        (
            "Bernoulli",
            17,
            "Bernoulli is for data with 2 levels, and these data have 17 levels: take Categorical, their default",
        ),
    ],
)
def test_an_observation_model_for_other_data_is_refused(observation, levels, message):
    with pytest.raises((UserError, ValueError), match=message):
        VariationalModel(
            LATENT,
            {"_target_": f"sde_diffusion.variational.{observation}"},
            data={"shape": [4], "levels": levels},
        )


@pytest.mark.parametrize(
    ("observation", "dequantise", "message"),
    [
        (None, True, r"Categorical is for levels, and model\.dequantise=true makes values between .*: leave it out"),
        ("DiscretizedLogistic", True, "DiscretizedLogistic is for levels, .* or take observation=gaussian"),
        (
            "Gaussian",
            False,
            "Gaussian is a density, which is unbounded for data on 17 levels: take Categorical, .* or model.dequantise",
        ),
        ("Gaussian", True, None),
        (None, False, None),
    ],
)
def test_densities_are_for_dequantised_data_and_probabilities_for_levels(observation, dequantise, message):
    kind = observation and {"_target_": f"sde_diffusion.variational.{observation}"}
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        VariationalModel(LATENT, kind, dequantise=dequantise, data={"shape": [4], "levels": 17})


def test_a_model_has_its_own_observation_model():
    with pytest.raises(ValueError, match="observation must be None if autoencoder is a model"):
        VariationalModel(MLPHierarchy([4], Gaussian(), width=8), observation=Gaussian())


def test_a_warm_up_longer_than_the_run_is_refused():
    latent = MLPHierarchy([1, 8, 8], Categorical(17), width=8)
    model = VariationalModel(latent, objective=BetaELBO(warmup_steps=10))
    model.check_trainer(SimpleNamespace(max_steps=10))
    model.check_trainer(SimpleNamespace(max_steps=-1))
    with pytest.raises(UserError, match="beta would never reach"):
        model.check_trainer(SimpleNamespace(max_steps=9))


def test_an_objective_for_denoisers_is_refused():
    with pytest.raises(
        UserError, match="DenoisingScoreMatching is for models with a denoiser: take objective=beta_elbo"
    ):
        VariationalModel(
            MLPHierarchy([1, 8, 8], Categorical(17), width=8),
            objective={"_target_": "sde_diffusion.training.DenoisingScoreMatching"},
        )


@pytest.mark.parametrize("learned", [True, False])
def test_sigma_has_no_weight_decay(learned):
    """Which would pull it to 1, whatever the data's."""
    model = VariationalModel(MLPHierarchy([2], Gaussian(0.1, learned), [2, 2], width=8), weight_decay=0.1)
    first, *others = model.parameter_groups()
    sigma = model.autoencoder.observation.log_std
    assert not any(parameter is sigma for parameter in first["params"])
    assert [(group["params"] == [sigma], group["weight_decay"]) for group in others] == [(True, 0.0)] * learned
    torch.optim.AdamW(model.parameter_groups())
