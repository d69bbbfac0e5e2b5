"""Weight averaging: the recursion in closed form, and one test for each error of the parent class."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import MLP, make_model, make_trainer, ring, same
from torch.utils._python_dispatch import TorchDispatchMode

from sde_diffusion.training import EMA, ScoreModel


class History(Callback):
    """The raw weights after every step, and the model's weights during each validation."""

    def __init__(self) -> None:
        self.raw: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.initial = flat(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.raw.append(flat(pl_module))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.validated.append(flat(pl_module))


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def flat_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name, _ in model.named_parameters()])


def averages(history: History, decay: float, warmup: bool) -> list[torch.Tensor]:
    """sum of weights (1 - d_j) d_{j+1} ... d_n, in float64: the recursion written out."""
    points = [history.initial.double(), *(raw.double() for raw in history.raw)]
    decays = [min(decay, (1 + n) / (10 + n)) if warmup else decay for n in range(1, len(points))]
    result = []
    for n in range(1, len(points)):
        shares = [1.0, *(1 - d for d in decays[:n])]
        for j in range(n + 1):
            for d in decays[j:n]:
                shares[j] *= d
        result.append(sum(share * point for share, point in zip(shares, points[: n + 1], strict=True)))
    return result


EVERY_FIVE = {"limit_val_batches": 2, "val_check_interval": 5, "check_val_every_n_epoch": None}


@pytest.mark.parametrize("warmup", [True, False])
def test_average_is_the_recursion_written_out(tmp_path: Path, warmup: bool) -> None:
    history, model = History(), make_model()
    make_trainer(tmp_path, EMA(0.6, warmup=warmup), history).fit(model, ring())
    expected = averages(history, 0.6, warmup)[-1]
    torch.testing.assert_close(flat(model).double(), expected, rtol=1e-5, atol=1e-7)
    assert (history.raw[-1] - flat(model)).abs().max() > 1e-3  # and is not the raw weights


@pytest.mark.parametrize("steps", [12, 11, 2])
def test_every_third_step_and_the_last_is_averaged_with_the_product_of_the_decays(tmp_path: Path, steps: int) -> None:
    """That is the recursion over all steps for weights that stay the same between the updates."""
    history, model = History(), make_model()
    make_trainer(tmp_path, EMA(0.6, every_n_steps=3), history, max_steps=steps).fit(model, ring())
    assert len(history.raw) == steps
    history.raw = [history.raw[min(3 * (step // 3) + 2, steps - 1)] for step in range(steps)]
    torch.testing.assert_close(flat(model).double(), averages(history, 0.6, warmup=True)[-1], rtol=1e-5, atol=1e-7)


class Operations(TorchDispatchMode):
    """Counts the operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += 1
        return func(*args, **(kwargs or {}))


def test_an_update_takes_as_many_operations_however_many_parameters(tmp_path: Path) -> None:
    class Counted(EMA):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            with Operations() as operations:
                super().on_train_batch_end(*args, **kwargs)
            made.append(operations.made)

    found = []
    for depth in (1, 6):
        made: list[int] = []
        make_trainer(tmp_path, Counted(0.6), max_steps=4).fit(make_model({**MLP, "depth": depth}), ring())
        found.append(made)
    assert found[0] == found[1]
    assert all(found[0])


def test_accumulated_batches_update_once_a_step(tmp_path: Path) -> None:
    history, model = History(), make_model()
    make_trainer(tmp_path, EMA(0.6), history, max_steps=6, accumulate_grad_batches=2).fit(model, ring())
    history.raw = history.raw[1::2]
    assert len(history.raw) == 6
    expected = averages(history, 0.6, warmup=True)[-1]
    torch.testing.assert_close(flat(model).double(), expected, rtol=1e-5, atol=1e-7)


def test_trap_device_the_average_follows_the_model(tmp_path: Path) -> None:
    """The model is moved to its device after `setup`, where the average is made. Simulated with the meta device."""
    model, average = make_model(), EMA()
    trainer = make_trainer(tmp_path)
    average.setup(trainer, model, "fit")
    model.to("meta")
    average.on_fit_start(trainer, model)
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 1
    average.on_train_batch_end(trainer, model, None, None, 0)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    average.on_save_checkpoint(trainer, model, checkpoint)
    for part in ("state_dict", "current_model_state"):
        assert {value.device.type for value in checkpoint[part].values()} == {"meta"}


def test_trap_delayed_start_validates_the_current_weights(tmp_path: Path) -> None:
    history = History()
    make_trainer(tmp_path, EMA(0.9, warmup=False, start_step=12), history, **EVERY_FIVE).fit(make_model(), ring())
    at_5, at_10, at_15 = (history.validated[i] for i in (0, 2, 4))
    assert torch.equal(at_5, history.raw[4])
    assert torch.equal(at_10, history.raw[9])
    w12, w13, w14, w15 = (history.raw[i].double() for i in (11, 12, 13, 14))
    expected = 0.9**3 * w12 + 0.1 * (0.81 * w13 + 0.9 * w14 + w15)
    torch.testing.assert_close(at_15.double(), expected, rtol=1e-5, atol=1e-7)


def test_validation_sees_the_average_and_training_the_raw_weights(tmp_path: Path) -> None:
    history, alone = History(), History()
    make_trainer(tmp_path, EMA(0.6), history, **EVERY_FIVE).fit(make_model(), ring())
    make_trainer(tmp_path, alone).fit(make_model(), ring())
    assert all(torch.equal(a, b) for a, b in zip(history.raw, alone.raw, strict=True))
    expected = averages(history, 0.6, warmup=True)
    for i, step in enumerate((5, 10, 15, 20)):
        torch.testing.assert_close(history.validated[2 * i].double(), expected[step - 1], rtol=1e-5, atol=1e-7)


class Crash(Callback):
    """Save in the middle of the second validation, then fail there; and save again afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 10:
            trainer.save_checkpoint(self.folder / "during.ckpt")
            raise RuntimeError("a bug in validation")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.folder / "after.ckpt")


@pytest.mark.parametrize("when", ["during", "after", "last"])
def test_trap_crash_in_validation_keeps_both_sets_of_weights_in_their_places(tmp_path: Path, when: str) -> None:
    history, model = History(), make_model()
    trainer = make_trainer(tmp_path, EMA(0.6), history, Crash(tmp_path), **EVERY_FIVE)
    if when == "last":  # no crash: a checkpoint written when training is over
        trainer = make_trainer(tmp_path, EMA(0.6), history, max_steps=10)
        trainer.fit(model, ring())
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    else:
        with pytest.raises(RuntimeError, match="a bug in validation"):
            trainer.fit(model, ring())
        assert torch.equal(flat(model), history.raw[9])
    checkpoint = torch.load(tmp_path / f"{when}.ckpt", weights_only=True)
    assert torch.equal(flat_state(model, checkpoint["current_model_state"]), history.raw[9])
    expected = averages(history, 0.6, warmup=True)[9]
    torch.testing.assert_close(flat_state(model, checkpoint["state_dict"]).double(), expected, rtol=1e-5, atol=1e-7)


class Counting(ScoreModel):
    """A model with an integer buffer that counts its steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.count += 1
        return super().training_step(batch, batch_idx)


def test_trap_integer_buffers_are_copied(tmp_path: Path) -> None:
    plain = make_model()
    model = Counting(**plain.hparams)
    saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
    options = {**EVERY_FIVE, "enable_checkpointing": True}
    make_trainer(tmp_path, EMA(0.9), saved, **options).fit(model, ring())
    assert int(model.count) == 20
    for step in (5, 15):
        checkpoint = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert checkpoint["state_dict"]["count"] == checkpoint["current_model_state"]["count"] == step


def test_a_resumed_run_averages_as_an_unbroken_one(tmp_path: Path) -> None:
    history, later, model = History(), History(), make_model()
    first = make_trainer(tmp_path, EMA(0.6), history, max_steps=6)
    first.fit(make_model(), ring())
    first.save_checkpoint(tmp_path / "a.ckpt")
    make_trainer(tmp_path, EMA(0.6), later, max_steps=9).fit(model, ring(), ckpt_path=tmp_path / "a.ckpt")
    history.raw += later.raw
    expected = averages(history, 0.6, warmup=True)[-1]
    torch.testing.assert_close(flat(model).double(), expected, rtol=1e-5, atol=1e-7)


def test_a_second_fit_averages_anew(tmp_path: Path) -> None:
    """The same callback in another run: it starts from the new model, not from its last count."""
    average, history, model = EMA(0.6), History(), make_model()
    make_trainer(tmp_path, average, max_steps=9).fit(model, ring())
    make_trainer(tmp_path, average, history, max_steps=4).fit(model, ring())
    expected = averages(history, 0.6, warmup=True)[-1]
    torch.testing.assert_close(flat(model).double(), expected, rtol=1e-5, atol=1e-7)


def test_a_checkpoint_without_averages_starts_them_from_its_weights(tmp_path: Path) -> None:
    first, model = make_trainer(tmp_path, max_steps=4), make_model()
    first.fit(model, ring())
    first.save_checkpoint(tmp_path / "raw.ckpt")
    start, history, resumed = flat(model), History(), make_model()
    make_trainer(tmp_path, EMA(0.6), history, max_steps=6).fit(resumed, ring(), ckpt_path=tmp_path / "raw.ckpt")
    assert torch.equal(history.initial, start)
    expected = averages(history, 0.6, warmup=True)[-1]
    torch.testing.assert_close(flat(resumed).double(), expected, rtol=1e-5, atol=1e-7)


def test_validation_outside_training_uses_the_loaded_average(tmp_path: Path) -> None:
    model = make_model()
    trainer = make_trainer(tmp_path, EMA(0.6), max_steps=5)
    trainer.fit(model, ring())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = History()
    validator = make_trainer(tmp_path, EMA(0.6), history, limit_val_batches=1)
    validator.validate(make_model(), ring(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert torch.equal(history.validated[0], flat(model))
    assert same(model.state_dict(), before)


def test_validation_and_test_after_training_use_the_average(tmp_path: Path) -> None:
    """The same trainer, whose callback still has the raw weights: they must not be used."""
    model, history = make_model(), History()
    saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
    trainer = make_trainer(tmp_path, EMA(0.6), history, saved, limit_val_batches=1, enable_checkpointing=True)
    trainer.fit(model, ring())
    average = flat(model)
    history.validated.clear()
    trainer.validate(model, ring(), verbose=False)
    assert torch.equal(history.validated[0], average)
    assert torch.equal(flat(model), average)
    trainer.validate(model, ring(), ckpt_path=tmp_path / "step=5.ckpt", verbose=False, weights_only=True)
    expected = averages(history, 0.6, warmup=True)[4]
    torch.testing.assert_close(history.validated[1].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"decay": 1.5}, r"decay must lie in \[0, 1\]; got 1.5"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\]; got -0.1"),
        ({"start_step": -1}, "start_step must be an integer of at least 0; got -1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        EMA(**options)
