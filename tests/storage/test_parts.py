"""Results of finished batches in files."""

import pytest
import torch

from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import forget
from sde_diffusion.storage.parts import Parts


def test_parts_come_back_in_order_and_belong_to_their_plan(tmp_path):
    parts = Parts(tmp_path / "kept", {"n": 3})
    for n in (20, 80, 5):
        parts.add(n, {"x": torch.full((n,), float(n))})
    again = Parts(tmp_path / "kept", {"n": 3})
    assert [len(part["x"]) for part in again.load()] == [20, 80, 5]
    assert again.done == 105
    with pytest.raises(UserError, match="unfinished results of another command"):
        Parts(tmp_path / "kept", {"n": 4})
    assert list(Parts(tmp_path / "kept", {"n": 4}, overwrite=True).load()) == []
    assert list(Parts(tmp_path / "kept", {"n": 5}).load()) == []  # where nothing is kept yet, nothing stands in the way
    forget(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds something else: thesis.txt"):
            Parts(tmp_path, {}, overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "words"


def test_a_damaged_part_is_named(tmp_path):
    """Every bit of a part's file."""
    parts = Parts(tmp_path / "kept", {})
    parts.add(3, {"x": torch.ones(3)})
    (path,) = (tmp_path / "kept").glob("*.safetensors")
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=rf"{path.name} is damaged.*Remove its folder"):
            list(parts.load())
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match="is damaged"):
        list(parts.load("x"))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_part_is_noticed(tmp_path, lost):
    parts = Parts(tmp_path / "kept", {})
    for n in (2, 3, 4):
        parts.add(n, {"x": torch.ones(n)})
    sorted((tmp_path / "kept").glob("*.safetensors"))[lost].unlink()
    with pytest.raises(UserError, match="removed"):
        list(parts.load())
    if lost < 2:  # of the last it can't be known later that it was there
        with pytest.raises(UserError, match="Remove this folder to start again"):
            Parts(tmp_path / "kept", {})


def test_parts_of_parts(tmp_path):
    parts = Parts(tmp_path / "kept", {})
    for start in (0, 3):
        parts.add(3, {"x": torch.ones(3), "n": torch.tensor(start)})
    assert [list(part) for part in parts.load("n")] == [["n"], ["n"]]
    assert [int(part["n"]) for part in parts.load("n")] == [0, 3]


def test_a_damaged_plan_is_reported_and_may_be_overwritten(tmp_path):
    Parts(tmp_path / "kept", {}).add(3, {"x": torch.ones(3)})
    (tmp_path / "kept" / "plan.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match=r"plan\.json is damaged: .*; remove its folder"):
        Parts(tmp_path / "kept", {})
    assert Parts(tmp_path / "kept", {}, overwrite=True).done == 0
