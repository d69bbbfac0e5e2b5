"""The LightningModule: checkpoints that rebuild it, schedules, validation loss, label dropout."""

import csv
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from tiny import MLP, OBJECTIVE, make_model, make_trainer, ring, same

from sde_diffusion import nn
from sde_diffusion.data import Digits
from sde_diffusion.denoiser import NetworkDenoiser
from sde_diffusion.density import GaussianPrior, elbo
from sde_diffusion.errors import UserError
from sde_diffusion.sde import VPSDE, LearnedVPSDE
from sde_diffusion.training import EMA, DiffusionELBO, EpsWeighting, Objective, ScoreModel, UniformTimes


class Recorder(Callback):
    """The arguments of every call of the network, and each step's loss and learning rate."""

    def __init__(self) -> None:
        self.labels: list[torch.Tensor] = []
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_fit_start(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        pl_module.denoiser.register_forward_pre_hook(
            lambda module, args, kwargs: self.labels.append(kwargs.get("label")), with_kwargs=True
        )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.losses.append(float(outputs["loss"]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScoreModel, EMA]:
    folder = tmp_path_factory.mktemp("trained")
    model, average = make_model(), EMA(0.9)
    trainer = make_trainer(folder, average, max_steps=12)
    trainer.fit(model, ring())
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", model, average


def test_a_checkpoint_rebuilds_the_averaged_denoiser_by_its_path_alone(trained: tuple) -> None:
    path, model, _ = trained
    loaded = ScoreModel.load_from_checkpoint(path)
    x, t = torch.randn(9, 2), torch.linspace(0.01, 1, 9)
    with torch.no_grad():
        # after fit, the model that was trained holds the average
        assert torch.equal(loaded.denoiser(x, t).score, model.denoiser(x, t).score)
    checkpoint = torch.load(path, weights_only=True)
    assert same(loaded.state_dict(), checkpoint["state_dict"])
    assert not same(checkpoint["state_dict"], checkpoint["current_model_state"])
    assert not loaded.training
    assert loaded.denoiser.sde == VPSDE()


def test_a_checkpoint_is_plain_data(trained: tuple) -> None:
    checkpoint = torch.load(trained[0], weights_only=True)
    assert checkpoint["hyper_parameters"]["objective"] == OBJECTIVE
    assert checkpoint["hyper_parameters"]["denoiser"]["network"] == MLP
    assert checkpoint["global_step"] == 12


def test_a_model_of_objects_is_loaded_with_its_objects_given_again(tmp_path: Path) -> None:
    def objects() -> dict:
        return {
            "denoiser": NetworkDenoiser(VPSDE(), nn.MLP([2], width=16, depth=1)),
            "objective": Objective(EpsWeighting(), UniformTimes()),
        }

    model = ScoreModel(**objects(), schedule="constant")
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.fit(model, ring())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="pass them"):
        ScoreModel.load_from_checkpoint(tmp_path / "a.ckpt")
    loaded = ScoreModel.load_from_checkpoint(tmp_path / "a.ckpt", **objects())
    assert same(loaded.state_dict(), model.state_dict())


def test_learning_rates_of_both_schedules(tmp_path: Path) -> None:
    """lr 0.01: a rise in thirds to the peak, then constant, or half a cosine with half the peak in its middle."""
    rates = {}
    for schedule in ("constant", "cosine"):
        recorder = Recorder()
        model = make_model(lr=0.01, warmup_steps=3, schedule=schedule)
        make_trainer(tmp_path, recorder, max_steps=23).fit(model, ring())
        rates[schedule] = recorder.rates
    rise = [0.01 / 3, 0.02 / 3, 0.01]
    assert rates["constant"] == pytest.approx([*rise, *[0.01] * 20])
    assert rates["cosine"][:4] == pytest.approx([*rise, 0.01])
    assert rates["cosine"][13] == pytest.approx(0.005)  # half-way between steps 3 and 23
    # cos(60 degrees) = 1/2 a third of the way down would be step 9.67; at three quarters, (1 - 1/sqrt 2) / 2
    assert rates["cosine"][18] == pytest.approx(0.01 * (1 - math.sqrt(0.5)) / 2)
    assert 0 < rates["cosine"][22] < 1e-4


def test_cosine_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        make_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(make_model(schedule="cosine"), ring())


def test_cosine_with_epochs_ends_with_them(tmp_path: Path) -> None:
    recorder = Recorder()
    make_trainer(tmp_path, recorder, max_steps=-1, max_epochs=2).fit(
        make_model(schedule="cosine", warmup_steps=0, lr=0.01), ring()
    )
    assert len(recorder.rates) == 16
    assert recorder.rates[8] == pytest.approx(0.005)


def test_logged_training_loss_is_that_of_its_own_step(tmp_path: Path) -> None:
    recorder = Recorder()
    logger = CSVLogger(tmp_path, name="", version="")
    make_trainer(tmp_path, recorder, max_steps=20, logger=logger, log_every_n_steps=5).fit(make_model(), ring())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert logged == pytest.approx({step: recorder.losses[step] for step in (4, 9, 14, 19)})


def validation_loss(model: ScoreModel, folder: Path, **options: object) -> float:
    trainer = make_trainer(folder, limit_val_batches=None)
    (metrics,) = trainer.validate(model, ring(n_val=200, **options), verbose=False)
    return metrics["val/loss"]


def test_validation_loss_repeats_exactly_and_hardly_depends_on_the_batch_size(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.manual_seed(11)
    first = validation_loss(model, tmp_path)
    torch.manual_seed(12)
    assert validation_loss(model, tmp_path) == first
    # 200 points x 8 draws. Other batches pair other noise with other points. Measured: 2 %.
    for size in (7, 64, 200):
        assert validation_loss(model, tmp_path, batch_size=size) == pytest.approx(first, rel=0.08)
    # and it estimates the objective itself, over fresh noise and times
    x0 = ring(n_val=200).tensor("val").repeat(200, 1)
    torch.manual_seed(13)
    with torch.no_grad():
        t = model.objective.times(model.denoiser.sde, len(x0))
        truth = model.objective(model.denoiser, x0, t, torch.randn_like(x0)).mean().item()
    assert first == pytest.approx(truth, rel=0.08)


def test_label_dropout_gives_the_null_class_to_its_share(tmp_path: Path) -> None:
    """A share of 0.3 of 6,400 labels: within 4.5 standard errors (false alarm 7e-6)."""
    recorder = Recorder()
    data = Digits(batch_size=64)
    network = {**MLP, "shape": [1, 8, 8], "n_classes": 10}
    model = make_model(network, n_classes=10, label_dropout=0.3)
    make_trainer(tmp_path, recorder, max_steps=100).fit(model, data)
    labels = torch.cat(recorder.labels)
    share = (labels == 10).double().mean().item()
    assert abs(share - 0.3) < 4.5 * math.sqrt(0.21 / len(labels))
    assert set(labels.tolist()) == set(range(11))


def test_validation_keeps_its_labels(tmp_path: Path) -> None:
    network = {**MLP, "shape": [1, 8, 8], "n_classes": 10}
    model = make_model(network, n_classes=10, label_dropout=1.0, validation_draws=2)
    seen: list[torch.Tensor] = []
    model.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["label"]), with_kwargs=True
    )
    data = Digits(batch_size=64)
    make_trainer(tmp_path, limit_val_batches=None).validate(model, data, verbose=False)
    label = data.split("val").label
    assert label is not None
    assert torch.equal(torch.cat(seen), label.repeat_interleave(2))


def test_step_seeds_do_not_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's CPU generator keeps 32 bits of a seed: those of runs, steps and processes must differ there too."""
    model = make_model()
    seeds = []
    for rank in range(4):
        monkeypatch.setattr(ScoreModel, "global_rank", rank)
        for model.hparams["seed"] in range(4):
            seeds += [model._step_seed(step) % 2**32 for step in range(5000)]
    assert len(set(seeds)) == 4 * 4 * 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "constant, cosine"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"label_dropout": 1.5}, r"in \[0, 1\]"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0"),
        ({"validation_draws": 0}, "at least 1"),
        ({"weight_decay": -1.0}, "at least 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_the_bound_of_its_chain_takes_conditions_and_a_prior() -> None:
    """Each item has its own label in every copy of the batch, and the same value alone; K = 1 is `elbo`."""
    model = make_model({**MLP, "n_classes": 3}, n_classes=3)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, label = 0.3 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1, 0])
    settings = {"importance": 4, "draws": 3, "steps": 4, "prior": GaussianPrior(0.1, 1.2)}
    found = model.bound(x, label=label, **settings)
    for i in range(5):
        alone = model.bound(x[i : i + 1], seeds=[i], label=label[i : i + 1], **settings)
        torch.testing.assert_close(alone.log_prob, found.log_prob[i : i + 1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.log_prob, model.bound(x, label=0 * label, **settings).log_prob)
    assert not torch.allclose(found.log_prob, model.bound(x, label=label, **{**settings, "prior": None}).log_prob)
    once, usual = model.bound(x, draws=8, label=label), elbo(model.denoiser, x, None, 8, label=label)
    torch.testing.assert_close(once.log_prob, usual.log_prob)
    with pytest.raises(TypeError, match="step"):
        model.bound(x, importance=2, step=4, label=label)


def test_the_gradients_of_a_path_are_clipped_apart():
    model = ScoreModel(NetworkDenoiser(LearnedVPSDE(), nn.MLP([2], width=8, depth=1)), DiffusionELBO())
    path = list(model.denoiser.sde.parameters())
    rest = [p for p in model.parameters() if all(p is not other for other in path)]
    for parameter in rest:
        parameter.grad = torch.full_like(parameter, 0.01)
    for parameter in path:
        parameter.grad = torch.full_like(parameter, 1e6)
    before = torch.cat([p.grad.flatten() for p in rest])
    model.configure_gradient_clipping(None, 1.0, "norm")
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in rest]), before)
    assert float(torch.cat([p.grad.flatten() for p in path]).norm()) == pytest.approx(1.0, abs=1e-4)


def test_a_path_has_no_weight_decay(tmp_path):
    """Which would pull its ends back to where they began."""
    data, own = ring(), NetworkDenoiser(LearnedVPSDE(), nn.MLP([2], width=8, depth=1))
    model = ScoreModel(own, DiffusionELBO(), weight_decay=0.5, data=data.describe())
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(model, data)
    path = {id(parameter) for parameter in own.sde.parameters()}
    decays = {group["weight_decay"]: {id(p) for p in group["params"]} for group in trainer.optimizers[0].param_groups}
    assert decays[0.0] == path
    assert len(decays[0.5]) == len(list(model.parameters())) - len(path)
