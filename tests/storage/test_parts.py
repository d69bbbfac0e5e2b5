"""Results of finished batches in files; verdicts on other data; artificial images."""

import pytest
import torch

from sde_diffusion.commands.outliers import compare
from sde_diffusion.data.artificial import artificial
from sde_diffusion.data.split import Split
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
        with pytest.raises(UserError, match="Remove this folder to begin anew"):
            Parts(tmp_path / "kept", {})


def test_parts_of_parts(tmp_path):
    parts = Parts(tmp_path / "kept", {})
    for start in (0, 3):
        parts.add(3, {"x": torch.ones(3), "n": torch.tensor(start)})
    assert [list(part) for part in parts.load("n")] == [["n"], ["n"]]
    assert [int(part["n"]) for part in parts.load("n")] == [0, 3]


@pytest.mark.parametrize(
    ("shift", "auroc", "typicality", "words"),
    [
        (-8.0, 1.0, 1.0, "100% are less likely"),
        (8.0, 0.0, 1.0, "MORE likely than 99%"),
        (0.0, 0.5, 0.5, "not told apart"),
    ],
)
def test_verdicts(shift, auroc, typicality, words):
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 20_000, generator=generator, dtype=torch.float64)
    found = compare(own, other + shift)
    # The standard error of either is 0.003 where nothing is told apart.
    assert found["auroc"] == pytest.approx(auroc, abs=0.012)
    assert found["auroc_typicality"] == pytest.approx(typicality, abs=0.012)
    assert words in found["verdict"]


def test_verdict_on_a_spread_to_both_sides():
    own = torch.linspace(-1, 1, 1001)
    other = torch.cat([torch.full((40,), -9.0), torch.full((60,), 9.0)])
    found = compare(own, other)
    assert (found["below"], found["above"]) == (pytest.approx(0.4), pytest.approx(0.6))
    assert found["auroc"] == pytest.approx(0.4)
    assert found["auroc_typicality"] == 1


def test_ties_count_half_and_large_numbers_stay_apart():
    own = torch.tensor([-1000.0, -1001.0], dtype=torch.float64)
    assert compare(own, torch.tensor([-1001.0, -1002.0], dtype=torch.float64))["auroc"] == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("levels", [None, 17])
def test_artificial_images(levels):
    generator = torch.Generator().manual_seed(0)
    if levels is None:
        like = Split(torch.randn(500, 3, 4, 4, generator=generator) * 0.2 + 0.3)
    else:
        like = Split(torch.randint(3, 9, (500, 3, 4, 4), generator=generator, dtype=torch.uint8), levels=levels)
    mean, std = like.tensor().mean(), like.tensor().std()
    noise, blank = (artificial(kind, 400, like).tensor() for kind in ("noise", "blank"))
    # 19,200 normals: the mean's standard error is 0.007 standard deviations, the standard deviation's 0.5 per cent.
    assert float(noise.mean() - mean) == pytest.approx(0, abs=0.03 * float(std))
    assert float(noise.std() / std) == pytest.approx(1, abs=0.05)
    assert torch.equal(blank.flatten(1).amax(1), blank.flatten(1).amin(1))
    assert blank.amin() == -1
    assert blank.amax() == 1
    assert len(blank.unique()) == (levels or 400)
    for images in (noise, blank):
        assert images.shape == (400, 3, 4, 4)
        if levels:
            assert ((images + 1) * 8 - ((images + 1) * 8).round()).abs().max() < 1e-5
