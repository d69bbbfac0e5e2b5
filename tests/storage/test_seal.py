"""A checksum over every bit of a checkpoint."""

import random
import zipfile
from pathlib import Path

import pytest
import torch

from sde_diffusion.storage.seal import intact, seal


@pytest.fixture(params=["sealed", "as torch leaves it"])
def checkpoint(request, tmp_path) -> Path:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"w": torch.randn(40, 50), "b": torch.zeros(3)}, "words": ["a"] * 30}, path)
    if request.param == "sealed":
        seal(path)
    return path


def test_what_was_written_is_intact_and_reads_as_before(checkpoint):
    assert intact(checkpoint)
    for mmap in (False, True):
        assert torch.load(checkpoint, weights_only=True, mmap=mmap)["state_dict"]["w"].shape == (40, 50)
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None


def test_every_flipped_bit_of_a_sealed_file_is_noticed(tmp_path):
    """All bits of the last 100 bytes, where the seal is, and 200 bits elsewhere."""
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.randn(40, 50)}, path)
    seal(path)
    content, chosen = path.read_bytes(), random.Random(0)
    size = 8 * len(content)
    for bit in [*range(size - 800, size), *(chosen.randrange(size - 800) for _ in range(200))]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert not intact(path), bit
    for length in range(len(content) - 100, len(content)):
        path.write_bytes(content[:length])
        assert not intact(path), length
    path.write_bytes(content + b"\0")
    assert not intact(path)


def test_torch_still_loads_flipped_bits(checkpoint):
    """What the seal is there for: if this fails, torch has learned to look itself."""
    content = bytearray(checkpoint.read_bytes())
    place = content.index(torch.load(checkpoint, weights_only=True)["state_dict"]["w"].numpy().tobytes())
    content[place] ^= 1
    checkpoint.write_bytes(content)
    torch.load(checkpoint, weights_only=True)
    assert not intact(checkpoint)


def test_only_archives_are_sealed_and_only_once(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a zip archive"):
        seal(path)
    torch.save({}, path)
    seal(path)
    with pytest.raises(ValueError, match="without a comment"):
        seal(path)
    for content in (b"", b"x", b"x" * 300):
        path.write_bytes(content)
        assert not intact(path)
