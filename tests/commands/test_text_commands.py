"""Texts on the command line: training with captions, `text=`, negative texts, and what is stored."""

import numpy as np
import pytest
from conftest import TINY

GUIDED = ("guidance=cfg", "guidance.scale=300")  # so that the text counts after 30 steps of training


@pytest.fixture(scope="module")
def told(command, tmp_path_factory):
    """The checkpoint of a tiny run with captions."""
    folder = tmp_path_factory.mktemp("told") / "run"
    done = command(
        "train", *TINY, "captions=rendered", "conditional=true", f"hydra.run.dir={folder}", cwd=folder.parent
    )
    assert done.status == 0, done.err
    return folder / "checkpoints" / "last.ckpt"


def draw(command, told, *words, folder):
    short = ("n=2", "sampler=ddim", "sampler.steps=2", "out=out", "overwrite=true")
    done = command("sample", f"ckpt={told}", *short, *words, cwd=folder)
    return done, dict(np.load(folder / "out" / "samples.npz")) if done.status == 0 else {}


def test_texts_as_typed(command, told, tmp_path):
    """With commas and other marks, in lists and in files; they count, and are stored as they are."""
    text = "a bold seven, leaning left: it's {1}!"
    done, found = draw(command, told, f"text={text}", *GUIDED, folder=tmp_path)
    assert done.status == 0, done.err
    assert found["text"].tolist() == [text] * 2
    assert f"given text={text!r}" in done.err + done.out
    _, others = draw(command, told, "text=7", *GUIDED, folder=tmp_path)
    assert others["text"].tolist() == ["7", "7"]
    assert (found["images"] != others["images"]).any()
    done, found = draw(command, told, "text=7", *GUIDED, "guidance.negative.text=thin, upright", folder=tmp_path)
    assert done.status == 0, done.err
    assert (found["images"] != others["images"]).any()
    (tmp_path / "texts.txt").write_text("a bold seven, upright\n\na two\n")
    _, found = draw(command, told, "text=texts.txt", folder=tmp_path)
    assert found["text"].tolist() == ["a bold seven, upright", "a two"]
    _, found = draw(command, told, "text=[a bold seven,7]", folder=tmp_path)
    assert found["text"].tolist() == ["a bold seven", "7"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("label=3",), "trained without label (its conditions: text): leave label= out"),
        (("text=[]",), "text holds no text"),
        (("text=",), "text is empty: give words, or text=none for no text"),
        (("text=[a,b,c]",), "text has 3 texts, which are taken in turn, for n=2 samples"),
        (("text=none.txt",), "none.txt does not exist"),
        ((f"text=x {'y' * 100}",), "a text may have at most 96 bytes; got 102"),
        (("text=a", "guidance=cfg", "guidance.negative.text=a"), "negative must differ from the condition itself"),
    ],
)
def test_texts_refused(command, told, words, message, tmp_path):
    done, _ = draw(command, told, *words, folder=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False)
    assert message in done.err
    assert not (tmp_path / "out" / "samples.npz").exists()


def test_a_model_that_is_told_no_text(command, trained, tmp_path):
    done, _ = draw(command, trained / "checkpoints" / "last.ckpt", "text=a bold seven", folder=tmp_path)
    assert done.status == 1
    assert "this model was trained without text: leave text= out, or train one with conditional=true, and" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("guidance=cfg", "model.label_dropout=0"), "and it was never trained without (model.label_dropout=0)"),
        (("captions=table",), "captions=table is for images in files"),
        (("data=moons",), "captions describe images, and the items of moons are not images"),
        (("text=minilm", "text.layers=7"), "text.layers must be an integer from 0 to 6"),
        (
            ("text=hashed", "captions=none", "conditional=false", "trainer.accelerator=foo"),
            "text= has no effect, as digits has no texts: add conditional=true, and captions=table",
        ),
    ],
)
def test_captions_refused(command, words, message, tmp_path):
    settings = ("captions=rendered", "conditional=true", "hydra.run.dir=run")
    done = command("train", *TINY, *settings, *words, cwd=tmp_path)
    assert (done.status, "Traceback" in done.err + done.out) == (1, False)
    assert message in done.err + done.out
