"""Checkpoint files that are missing, damaged, foreign or hostile: one clear message, and no code is run."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model, make_trainer, ring

from sde_diffusion.errors import UserError
from sde_diffusion.training import ScoreModel
from sde_diffusion.training.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    trainer = make_trainer(folder, max_steps=2)
    trainer.fit(make_model(), ring())
    trainer.save_checkpoint(folder / "good.ckpt")
    return folder / "good.ckpt"


def test_missing_lists_its_neighbours(good: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint .*wrong\.ckpt; the folder .* has good\.ckpt"):
        read_checkpoint(good.with_name("wrong.ckpt"))
    with pytest.raises(UserError, match="has no checkpoints"):
        read_checkpoint(tmp_path / "wrong.ckpt")
    with pytest.raises(UserError, match=r"there is no folder .*no folder"):
        read_checkpoint(tmp_path / "no folder" / "wrong.ckpt")
    with pytest.raises(UserError, match=r"is a folder; give a file, such as .*good\.ckpt"):
        read_checkpoint(good.parent)
    (tmp_path / "samples.npz").touch()
    with pytest.raises(UserError, match=r"contains arrays, not a checkpoint; evaluate takes .* samples=.*samples\.npz"):
        read_checkpoint(tmp_path / "samples.npz")


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        ScoreModel.load_from_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_truncated_anywhere(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    for length in (0, 1, 3, 4, 30, 100, 1000, len(content) // 2, len(content) - 1000, len(content) - 1):
        path = tmp_path / f"{length}.ckpt"
        path.write_bytes(content[:length])
        assert any(word in refused(path) for word in ("damaged", "not loaded", "is empty"))


def test_damaged_bytes_never_give_another_error(good: Path, tmp_path: Path) -> None:
    """Overwritten and random bytes, in both of torch's formats: an error message, or the file is read correctly."""
    content = good.read_bytes()
    torch.save(torch.load(good, weights_only=True), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.ckpt").read_bytes()
    generator = random.Random(0)
    files = [generator.randbytes(n) for n in (1, 10, 1000)]
    files += [bytes([first]) + generator.randbytes(200) for first in range(256)]
    files += [b"\x80\x02" + generator.randbytes(100) for _ in range(100)]
    for _ in range(150):
        damaged = bytearray(content)
        at = generator.randrange(len(content))
        damaged[at : at + 40] = generator.randbytes(len(damaged[at : at + 40]))
        files.append(bytes(damaged))
    for _ in range(300):
        damaged = bytearray(old)
        damaged[generator.randrange(900)] = generator.randrange(256)
        files.append(bytes(damaged))
    path = tmp_path / "damaged.ckpt"
    refusals = 0
    for file in files:
        path.write_bytes(file)
        try:
            read_checkpoint(path)
        except UserError:
            refusals += 1
    assert refusals > 359


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(good: Path, tmp_path: Path, zipped: bool) -> None:
    checkpoint = torch.load(good, weights_only=True)
    checkpoint["hyper_parameters"]["lr"] = Bomb(tmp_path / "boom")
    path = tmp_path / "bomb.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    assert "can run code" in refused(path)
    assert not (tmp_path / "boom").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "boom").exists()  # it was a bomb


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"model": {"w": torch.ones(2)}}, torch.ones(3), [1, 2], None])
def test_another_programs_file(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    assert "was not written by sde_diffusion" in refused(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    "target",
    [
        "os.mkdir",
        "builtins.exec",
        "subprocess.Popen",
        "torch.nn.Linear",
        "sde_diffusion.storage.files.os.mkdir",
        "sde_diffusion.storage.files.Path",
        "sde_diffusion.storage.files.Iterator",
        "sde_diffusion.train.main",
        "sde_diffusion.storage.files.fresh",
        "sde_diffusion",
        "sde_diffusion_other.Thing",
        "Thing",
        "",
        "..",
        "sde_diffusion..sde",
        None,
        3,
    ],
)
@pytest.mark.parametrize("place", ["denoiser", "network", "objective"])
def test_targets_outside_the_package_are_refused(good: Path, tmp_path: Path, target: Any, place: str) -> None:
    checkpoint = torch.load(good, weights_only=True)
    boom = tmp_path / "boom"
    hyper = checkpoint["hyper_parameters"]
    node = hyper["denoiser"]["network"] if place == "network" else hyper[place]
    node.clear()
    node.update({"_target_": target, "path": str(boom)})
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    with pytest.raises(UserError, match=r"_target_: .* is not a class of sde_diffusion"):
        ScoreModel.load_from_checkpoint(tmp_path / "hostile.ckpt")
    assert not boom.exists()


@pytest.mark.parametrize("key", ["hyper_parameters", "denoiser", "weight", "shape"])
def test_a_checkpoint_that_lacks_something(good: Path, tmp_path: Path, key: str) -> None:
    checkpoint = torch.load(good, weights_only=True)
    if key == "hyper_parameters":
        del checkpoint[key]
    elif key == "denoiser":
        del checkpoint["hyper_parameters"][key]
    elif key == "weight":
        checkpoint["state_dict"].popitem()
    else:
        checkpoint["hyper_parameters"]["denoiser"]["network"]["shape"] = [3]
    torch.save(checkpoint, tmp_path / "poor.ckpt")
    assert "does not describe its model" in refused(tmp_path / "poor.ckpt")
