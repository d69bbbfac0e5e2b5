"""Captions: their attributes against images of known shear, their words, and tables of them."""

import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from sde_diffusion import UserError
from sde_diffusion.commands.configurations import config_folder
from sde_diffusion.data import CaptionTable, DataModule, Digits, Folder
from sde_diffusion.data.split import Split
from sde_diffusion.text import RenderedCaptions, StrokeAttributes, as_texts, ink, shear
from sde_diffusion.text.wording import DIGITS, TRAINING, UNSEEN


def stroke(slope, width=1.5):
    """A straight stroke that moves `slope` pixels to the right for each pixel up, on [-1, 1]."""
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    inside = (rows.abs() < 12) * torch.exp(-((columns + slope * rows) ** 2) / (2 * width**2))
    return 2 * inside[None, None] - 1


@pytest.mark.parametrize("slope", [-0.4, 0.0, 0.25])
def test_shear_is_the_slope_of_a_stroke(slope):
    assert float(shear(stroke(slope))) == pytest.approx(slope, abs=1e-3)
    assert float(shear(stroke(slope).flip(-1))) == pytest.approx(-slope, abs=1e-3)
    assert float(ink(stroke(slope))) == pytest.approx(23 * 1.5 * (2 * torch.pi) ** 0.5, rel=1e-3)
    assert float(shear(torch.full((1, 1, 5, 5), -1.0))) == 0


def test_attributes_divide_the_training_split_evenly():
    data = Digits()
    x, labels = data.tensor("train"), data.split("train").label
    found = StrokeAttributes.of(torch.split(x, 500), labels)
    bold, slant = found.thickness(x, labels), found.slant(x)
    for k in range(10):
        inks = ink(x[labels == k])
        least = inks[bold[labels == k] == 1].min()  # the median: several images may have it
        assert float((inks >= least).double().mean()) >= 0.5 >= float((inks > least).double().mean())
    assert (torch.bincount(slant) - 479).abs().max() <= 1
    assert ink(x[(labels == 3) & (bold == 1)]).min() > ink(x[(labels == 3) & (bold == 0)]).max()


def test_captions_say_what_is_there_in_words_of_their_own():
    """Each caption has a word for each attribute; the two wordings share none of these, and no sentence."""
    meanings = [(k, bold, slant) for k in range(10) for bold in range(2) for slant in range(3)] * 20
    for wording, name in ((TRAINING, "training"), (UNSEEN, "unseen")):
        captions = RenderedCaptions(name, partial=0).sentences(*zip(*meanings, strict=True))
        for (k, bold, slant), text in zip(meanings, captions, strict=True):
            words = (DIGITS[k], str(k)), wording.thickness[bold], wording.slant[slant]
            for synonyms in words:
                assert any(one in text for one in synonyms), text
    for a, b in ((TRAINING.thickness, UNSEEN.thickness), (TRAINING.slant, UNSEEN.slant)):
        first, second = ({word for some in part for one in some for word in one.split()} for part in (a, b))
        assert not first & second
    assert not set(TRAINING.sentences) & set(UNSEEN.sentences)
    some = RenderedCaptions(partial=1.0).sentences([8] * 99, [0] * 99, [1] * 99)
    assert {"an eight", "an 8"} <= set(some)
    assert some != RenderedCaptions(partial=1.0, seed=1).sentences([8] * 99, [0] * 99, [1] * 99)


def test_captions_take_the_place_of_labels():
    data = Digits(captions=RenderedCaptions())
    assert list(data.conditions) == ["text"]
    again = Digits(captions=RenderedCaptions())
    assert data.fingerprint == again.fingerprint != Digits(captions=RenderedCaptions(seed=1)).fingerprint
    batch = data.split("test").batch(torch.tensor([3, 5]))
    assert (set(batch), batch["text"].dtype, batch["text"].shape) == ({"x", "text"}, torch.uint8, (2, 96))
    with pytest.raises(UserError, match="mirrors images, and the captions say which way they lean"):
        Digits(flip=True, captions=RenderedCaptions()).prepare()


@pytest.fixture
def pictures(tmp_path):
    for number in range(40):
        Image.fromarray(np.full((8, 8), 5 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    rows = [f'{number}.png,"number {number}, ä"' for number in range(40)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *rows, "other.png,more"]) + "\n")
    return tmp_path


def test_captions_of_a_table_belong_to_their_images(pictures):
    data = Folder(str(pictures), captions=CaptionTable())
    for split in data.splits.values():
        for x, text in zip(split.x[:], as_texts(split.others["text"]), strict=True):
            assert text == f"number {int(x[0, 0, 0]) // 5}, ä"
    before = data.fingerprint
    path = pictures / "metadata.csv"
    path.write_text(path.read_text().replace("number 1", "count 1"))
    assert Folder(str(pictures), captions=CaptionTable()).fingerprint != before


def test_line_breaks_in_quotes_end_no_row(pictures):
    """Of all kinds, and the line separator U+2028; texts have a space for each, see `as_bytes`."""
    path, text = pictures / "metadata.csv", "two\nlines,\r\nthree\u2028four"
    path.write_bytes(path.read_text().replace("number 3, ä", text).encode())
    data = Folder(str(pictures), captions=CaptionTable())
    found = [one for split in data.splits.values() for one in as_texts(split.others["text"])]
    assert len(found) == 40
    assert "two lines, three four" in found


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"path": "none.csv"}, None, "none.csv does not exist"),
        ({"column": "txt"}, None, r"no column txt \(did you mean text\?\); it has file_name, text"),
        ({}, lambda text: text.splitlines()[0], "holds no captions"),
        ({}, lambda text: text.replace("7.png", "8.png"), "listed more than once"),
        (
            {},
            lambda text: "\n".join(text.splitlines()[:30]),
            "captions of 29 files, but there are 40 images; without a caption: 29.png",
        ),
        ({}, lambda text: text.replace('"number 3, ä"', " "), "the captions of 3.png are empty"),
    ],
)
def test_tables_refused(pictures, settings, change, words):
    path = pictures / "metadata.csv"
    if change is not None:
        path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=words):
        Folder(str(pictures), captions=CaptionTable(**settings)).prepare()


def test_captions_of_files_that_are_not_there_are_named(pictures, caplog):
    with (pictures / "metadata.csv").open("a") as file:
        file.write("\n99.png,none\n")
    with caplog.at_level(logging.INFO):
        Folder(str(pictures), captions=CaptionTable()).prepare()
    assert "has captions of 2 files that are not among the images: 99.png, other.png" in caplog.text


class Symbols(DataModule):
    """Images of n classes, which are digits or not."""

    name = "symbols"

    def __init__(self, n, handwriting, unlabelled=(), **common):
        super().__init__(**common)
        self.n, self.handwriting, self.unlabelled = n, handwriting, unlabelled

    def load(self):
        label = torch.arange(2 * self.n) % self.n
        x = 20 * torch.arange(4 * 4, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(2 * self.n, 1, 1, 1) // 2
        return {
            name: Split(x, None if name in self.unlabelled else label, levels=256) for name in ("train", "val", "test")
        }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((12, True), "labels up to 11: name the classes"),
        ((10, False), "these data are not known to be"),
        ((10, True, ["train", "val", "test"]), "labels, which the train split does not have"),
        ((10, True, ["test"]), "labels, which the test split does not have"),
    ],
)
def test_rendered_captions_are_of_handwritten_digits_alone(settings, words):
    with pytest.raises(UserError, match=f"captions=rendered describes handwritten digits, and .*{words}"):
        Symbols(*settings, captions=RenderedCaptions()).prepare()
    assert "text" in Symbols(10, True, captions=RenderedCaptions()).conditions


def test_data_sets_say_whether_they_are_handwriting(tmp_path):
    assert Digits.handwriting
    assert not Folder.handwriting
    for name in ("mnist", "fashion_mnist"):
        settings = OmegaConf.to_container(OmegaConf.load(config_folder() / "data" / f"{name}.yaml"))
        assert settings["handwriting"] == (name == "mnist")


def test_a_table_is_a_file_of_the_captions_own(pictures, caplog):
    assert (CaptionTable("a.csv").own_files(), RenderedCaptions().own_files()) == (("a.csv",), ())
    Folder(str(pictures), captions=CaptionTable()).prepare()
    assert "not used" not in caplog.text
    Folder(str(pictures)).prepare()
    assert "not used: 1 file ending in .csv" in caplog.text


def test_captions_refused():
    with pytest.raises(UserError, match="captions=table is for images in files"):
        Digits(captions=CaptionTable()).prepare()
    with pytest.raises(ValueError, match="words must be one of training, unseen"):
        RenderedCaptions("other")
