"""What new runs are told about their training data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from autoencoders import MLP, autoencoder
from test_latent_model import DENOISER, digits
from tiny import OBJECTIVE, make_model

from sde_diffusion import nn
from sde_diffusion.data import DataModule
from sde_diffusion.data.split import Split
from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.errors import UserError
from sde_diffusion.sde import LearnedVPSDE
from sde_diffusion.training import (
    BetaELBO,
    DenoisingScoreMatching,
    DiffusionELBO,
    LatentModel,
    ScoreModel,
    VariationalModel,
)
from sde_diffusion.variational import MLPVAE, Categorical


class Sorted(DataModule):
    """20,000 points of two values, sorted."""

    name = "sorted"

    def load(self) -> dict[str, Split]:
        x = torch.arange(20_000)[:, None].repeat(1, 2) // 10_000
        return {name: Split(x.to(torch.uint8), None, levels=2) for name in ("train", "val", "test")}


class Told(DenoisingScoreMatching):
    """An objective that remembers what it was told."""

    told: ClassVar[list[torch.Tensor]] = []
    uses_data = True

    def fit_statistics(self, x):
        self.told.append(x)


class ToldELBO(BetaELBO):
    """The same for autoencoders."""

    told, uses_data, fit_statistics = Told.told, True, Told.fit_statistics


def begin(model, data, ckpt=None):
    model.trainer = SimpleNamespace(datamodule=data, ckpt_path=ckpt, lightning_module=model)
    model.on_fit_start()
    return model


def points(objective):
    path = LearnedVPSDE()
    return ScoreModel(NetworkDenoiser(path, nn.MLP([2], width=8, depth=1), sigma_data=1.0), objective)


def test_items_are_evenly_spaced_over_the_training_split():
    model = points(Told())
    begin(model, Sorted())
    (x,) = Told.told
    Told.told.clear()
    assert x.shape == (10_000, 2)
    torch.testing.assert_close(x.mean(), torch.tensor(0.0))
    assert len(torch.cat(list(model.training_items(7)))) == 7
    begin(model, Sorted(), "last.ckpt")
    assert not Told.told  # a resumed run


def test_a_variational_model_begins_at_the_frequencies_of_sorted_data():
    model = begin(VariationalModel(MLPVAE([2], Categorical(2), latent_dim=1, width=4)), Sorted())
    torch.testing.assert_close(model.autoencoder.output_bias.softmax(0), torch.full((2, 2), 0.5), atol=1e-3, rtol=0)


def test_the_objective_of_an_autoencoder_gets_the_data_too():
    begin(VariationalModel(MLPVAE([2], Categorical(2), latent_dim=1, width=4), objective=ToldELBO()), Sorted())
    assert [len(x) for x in Told.told] == [10_000]
    Told.told.clear()


def test_the_objective_of_a_latent_model_is_told_of_standardised_latents(tmp_path):
    """Means and variances of draws of w: 0 and 1 but for their error, 5 standard errors of 1,437."""
    vae = autoencoder(tmp_path / "vae.ckpt", digits(), MLP, steps=20)
    model = LatentModel(DENOISER, OBJECTIVE, vae, data=digits().describe())
    model.objective = Told()
    begin(model, digits())
    (w,) = Told.told
    Told.told.clear()
    assert w.shape == (1437, 3)
    assert w.mean(0).abs().max() < 5 / 1437**0.5
    assert (w.var(0) - 1).abs().max() < 5 * (2 / 1437) ** 0.5


def test_without_a_data_module(tmp_path):
    """One message for all models that need it; denoising score matching, and a decoder of fixed weights, do not."""
    begin(make_model(), None)
    begin(points(DiffusionELBO()), None)
    vae = autoencoder(tmp_path / "vae.ckpt", digits(), MLP, steps=1)
    needing = (
        points(DiffusionELBO(levels=2, shape=[2])),
        LatentModel(DENOISER, OBJECTIVE, vae, data=digits().describe()),
        VariationalModel(MLPVAE([2], Categorical(2), latent_dim=1, width=4)),
    )
    for model in needing:
        with pytest.raises(UserError, match=r"call trainer\.fit\(model, datamodule=\.\.\.\)"):
            begin(model, None)


@pytest.mark.parametrize(("objective", "warned"), [(DenoisingScoreMatching(), True), (DiffusionELBO(), False)])
def test_a_path_learned_by_what_is_no_bound_is_warned_of_once_as_a_run_begins(objective, warned, caplog):
    model = points(objective)
    assert not caplog.records
    model.check_trainer(SimpleNamespace(max_steps=1))
    assert ["or a path with nothing to learn" in record.getMessage() for record in caplog.records] == [True] * warned
    for weight in model.denoiser.sde.parameters():
        weight.requires_grad_(False)
    caplog.clear()
    model.check_trainer(SimpleNamespace(max_steps=1))
    assert not caplog.records
