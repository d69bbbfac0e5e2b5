"""Levels, splits, training order, sharding and resuming."""

import logging
from itertools import islice

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from sde_diffusion.data import DataModule, Digits, InOrder, Loader, Shuffled, Split, from_levels, to_levels
from sde_diffusion.data.split import divide
from sde_diffusion.errors import UserError


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256])
def test_levels_are_correctly_rounded_and_survive_the_round_trip(levels):
    k = torch.arange(levels, dtype=torch.uint8)
    x = from_levels(k, levels)
    # numpy's linspace in float64, rounded once to float32, is the nearest float to the true level
    assert x.tolist() == np.linspace(-1, 1, levels).astype(np.float32).tolist()
    assert torch.equal(to_levels(x, levels), k)
    # anything nearer to a level than half a step comes back to it, and what lies outside is clamped
    assert torch.equal(to_levels(x + 0.98 / (levels - 1), levels), k)
    assert to_levels(torch.tensor([-3.0, 3.0]), levels).tolist() == [0, levels - 1]


def test_from_levels_leaves_its_argument_alone():
    k = torch.tensor([0.0, 16.0])
    from_levels(k, 17)
    assert k.tolist() == [0.0, 16.0]


def test_std_is_numpys(monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 5), dtype=np.uint8)
    assert Split(torch.from_numpy(x), levels=256).statistics.std == pytest.approx((x / 127.5 - 1).std(), rel=1e-7)
    # with room for ten rows, evenly spaced ones are looked at
    monkeypatch.setattr("sde_diffusion.data.split._STD_VALUES", 600)
    rows = np.round(np.linspace(0, 49, 10)).astype(int)
    assert Split(torch.from_numpy(x), levels=256).statistics.std == pytest.approx((x[rows] / 127.5 - 1).std(), rel=1e-7)


def test_divide_is_a_partition_with_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    parts = divide(1000, (100, 50), 3, labels)
    assert sorted(torch.cat(parts).tolist()) == list(range(1000))
    assert [len(part) for part in parts] == [850, 100, 50]
    for part, share in zip(parts[1:], (0.1, 0.05), strict=True):
        counts = np.bincount(labels[part], minlength=3)
        assert np.abs(counts - share * np.array([700, 200, 100])).max() <= 1.0
    assert all(torch.equal(a, b) for a, b in zip(parts, divide(1000, (100, 50), 3, labels), strict=True))
    assert not torch.equal(parts[1], divide(1000, (100, 50), 4, labels)[1])


def test_epoch_is_whole_permutations_back_to_back():
    order = Shuffled(10, 4, seed=1, min_batches=6)
    stream = order.indices(0).flatten()
    assert len(order) == 7  # three permutations of 10 are 7 batches of 4 and two left over
    assert sorted(stream[:10].tolist()) == sorted(stream[10:20].tolist()) == list(range(10))
    assert len(set(stream[20:].tolist())) == 8


def test_fewer_items_than_a_batch_still_give_full_batches():
    batches = list(Shuffled(3, 8, min_batches=2).indices(0))
    assert [len(batch) for batch in batches] == [8, 8]
    assert np.bincount(torch.cat(batches)).tolist() in ([6, 5, 5], [5, 6, 5], [5, 5, 6])


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return tuple(Shuffled(100, 10, seed=seed).indices(epoch).flatten().tolist())

    assert order(0, 3) == order(0, 3)
    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


@pytest.mark.parametrize("first", [0, 3, 10, 25])
def test_stream_is_the_epochs_in_turn(first):
    order = Shuffled(100, 10, seed=2)
    complete = torch.cat([order.indices(epoch) for epoch in range(4)])
    assert torch.equal(torch.stack(list(islice(order.stream(first), 12))), complete[first : first + 12])
    order.set_epoch(2)
    assert torch.equal(torch.stack(list(islice(order.stream(), 12))), complete[20:32])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_order_of_one_process_with_the_larger_batch(world):
    ranks = [list(Shuffled(50, 4, seed=5, min_batches=9, rank=rank, world=world).indices(1)) for rank in range(world)]
    one = list(Shuffled(50, 4 * world, seed=5, min_batches=9).indices(1))
    assert {len(batches) for batches in ranks} == {len(one)}
    for parts, complete in zip(zip(*ranks, strict=True), one, strict=True):
        assert sorted(torch.cat(parts).tolist()) == sorted(complete.tolist())


@pytest.mark.parametrize(("n", "world"), [(10, 1), (11, 3), (2, 4)])
def test_evaluation_sees_every_item_once(n, world):
    seen = [batch.tolist() for rank in range(world) for batch in InOrder(n, 4, rank, world).stream()]
    assert sorted(index for batch in seen for index in batch) == list(range(n))
    if world == 1:
        assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_reading_ahead_changes_no_batch():
    order = Shuffled(20, 3, min_batches=10)
    plain, ahead = (list(Loader(order, lambda index: {"x": 2 * index}, ahead=ahead)) for ahead in (False, True))
    assert len(plain) == len(ahead) == len(order)
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(plain, ahead, strict=True))


class Counting(DataModule):
    """Item i is the number i, so that a batch shows its own indices."""

    name = "counting"
    bounded = False

    def load(self):
        x = torch.arange(23, dtype=torch.float32)[:, None]
        return {"train": Split(x), "val": Split(x[:5]), "test": Split(x[:7])}


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch):
        self.seen.append(batch["x"].flatten().tolist())
        return (self.weight * batch["x"].mean()).square().mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Crash(Callback):
    """Die in the middle of a step, after its batch was fetched, leaving a checkpoint."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("killed")


def _fit(steps, ckpt=None, callbacks=(), data=None):
    model = Recorder()
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=list(callbacks),
        val_check_interval=3,
    )
    trainer.fit(model, data or Counting(batch_size=4, seed=7, min_batches_per_epoch=8), ckpt_path=ckpt)
    return model.seen, trainer


@pytest.fixture(scope="module")
def uninterrupted():
    return _fit(30)[0]


def test_epochs_of_a_run_differ_and_are_the_samplers(uninterrupted):
    order = Shuffled(23, 4, seed=7, min_batches=8)
    expected = torch.cat([order.indices(epoch) for epoch in range(3)]).tolist()
    assert len(order) == 11
    assert uninterrupted == expected[:30]


@pytest.mark.parametrize("stop", [1, 5, 9, 11, 12, 22, 25])  # mid-epoch, at a validation, at an epoch's end, later
def test_stopped_and_resumed_run_sees_the_batches_of_the_uninterrupted_one(stop, uninterrupted, tmp_path, recwarn):
    before, trainer = _fit(stop)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    after, _ = _fit(30, tmp_path / "a.ckpt")
    assert before + after == uninterrupted
    assert not [w for w in recwarn if "not resumable" in str(w.message)]


def test_checkpoint_written_in_mid_epoch_resumes_there(uninterrupted, tmp_path):
    _fit(17, callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1, filename="{step}")])
    for step in (7, 14):
        assert _fit(30, tmp_path / f"step={step}.ckpt")[0] == uninterrupted[step:]


@pytest.mark.parametrize("step", [4, 11, 14])
def test_run_killed_within_a_step_repeats_that_step(step, uninterrupted, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        _fit(30, callbacks=[Crash(tmp_path / "a.ckpt", step)])
    assert _fit(30, tmp_path / "a.ckpt")[0] == uninterrupted[step:]


def test_resuming_with_another_batch_size_is_said(tmp_path, caplog):
    _, trainer = _fit(5)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with caplog.at_level(logging.WARNING):
        _fit(8, tmp_path / "a.ckpt", data=Counting(batch_size=3, seed=7, min_batches_per_epoch=8))
    assert "batch_size 4 -> 3" in caplog.text


def test_loader_of_a_finished_run_starts_at_the_beginning():
    data = Counting(batch_size=4, seed=7, min_batches_per_epoch=8)
    _fit(5, data=data)
    first = next(iter(data.train_dataloader()))
    assert first["x"].flatten().tolist() == Shuffled(23, 4, seed=7, min_batches=8).indices(0)[0].tolist()


def test_flip_shows_each_image_once_each_way():
    class Images(DataModule):
        def load(self):
            x = torch.randint(0, 256, (6, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
            return dict.fromkeys(("train", "val", "test"), Split(x, torch.arange(6), 256))

    data = Images(batch_size=12, min_batches_per_epoch=1, flip=True)
    (batch,) = data.train_dataloader()
    images = data.tensor("train").numpy()
    found = []
    for x, label in zip(batch["x"].numpy(), batch["label"].tolist(), strict=True):
        mirrored = not np.array_equal(x, images[label])
        assert np.array_equal(x, images[label][..., ::-1] if mirrored else images[label])
        found.append((label, mirrored))
    assert sorted(found) == [(label, mirrored) for label in range(6) for mirrored in (False, True)]
    # evaluation sees the images as they are
    assert np.array_equal(next(iter(data.val_dataloader()))["x"], images)
    with pytest.raises(UserError, match=r"data\.flip is for images, .* points of shape \[1\]"):
        Counting(flip=True).prepare()


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"seed": -1}, {"min_batches_per_epoch": 0}])
def test_arguments_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"of at least [01]; got"):
        Digits(**wrong)


def test_unknown_split():
    with pytest.raises(
        UserError, match=r"no split 'valid' in 'digits' \(did you mean val\?\); there are train, val, test"
    ):
        Digits().split("valid")
