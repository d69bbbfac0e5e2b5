"""Files that never end, expand when read, or claim to be larger than they are: one message, quickly."""

import gzip
import os
import socket
import struct
import time
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sde_diffusion.commands.sweep_file import read_sweep
from sde_diffusion.data import Arrays, Folder, IdxImages
from sde_diffusion.data.array_files import read_arrays
from sde_diffusion.data.idx import read_idx
from sde_diffusion.data.tree import find_images
from sde_diffusion.errors import UserError
from sde_diffusion.metrics.features import read_classifier
from sde_diffusion.modality import Points, read_samples
from sde_diffusion.storage import memory
from sde_diffusion.storage.files import opened, readable
from sde_diffusion.training.checkpoint import read_checkpoint


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    here = Path.cwd()  # a socket's path is short
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


READERS = {
    "opened": (opened, "a"),
    "readable": (readable, "a"),
    "idx": (lambda path: read_idx(path, 3), "a"),
    "npz": (read_arrays, "a.npz"),
    "csv": (read_arrays, "a.csv"),
    "samples": (lambda path: read_samples(path, Points([2])), "a.npz"),
    "classifier": (read_classifier, "a.safetensors"),
    "sweep": (read_sweep, "a.yaml"),
    "checkpoint": (read_checkpoint, "a.ckpt"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [fifo, bound, endless, loop])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits(reader, make, tmp_path):
    read, name = READERS[reader]
    make(tmp_path / name)
    with pytest.raises(UserError, match=name):
        read(tmp_path / name)


@pytest.mark.timeout(20)
def test_a_folder_of_images_with_what_is_none(tmp_path, caplog):
    """A pipe, a socket, a device, circular links, and a folder that contains itself: ignored, with a warning."""
    for number in range(4):
        Image.new("L", (4, 4), 60 * number).save(tmp_path / f"{number}.png")
    for number, make in enumerate((fifo, bound, endless, loop)):
        make(tmp_path / f"x{number}.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert [path.name for path in find_images(tmp_path).images] == [f"{number}.png" for number in range(4)]
    assert sum(len(split) for split in Folder(str(tmp_path)).prepare().splits.values()) == 4
    assert all(f"x{number}.png" in caplog.text for number in range(4))


def idx(*sizes: int, data: bytes = b"") -> bytes:
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + data


def test_a_gzip_bomb_is_not_inflated(tmp_path):
    """50 MB of zeros in 50 kB behind a header that asks for 16 bytes; and one that asks for 64 GB."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(1, 4, 4, data=bytes(50_000_000)), 9))
    begin = time.perf_counter()
    with pytest.raises(UserError, match=r"asks for 1x4x4 values, and more bytes follow"):
        read_idx(path, 3)
    path.write_bytes(gzip.compress(idx(4096, 4096, 4096, data=bytes(50_000_000)), 9))
    with pytest.raises(UserError, match=r"at most .* bytes follow it"):
        read_idx(path, 3)
    assert time.perf_counter() - begin < 5  # seconds; nothing is inflated


def test_a_gzip_file_whose_checksum_is_wrong(tmp_path):
    raw = bytearray(gzip.compress(idx(1, 4, 4, data=bytes(range(16)))))
    raw[-6] ^= 1
    (tmp_path / "a.gz").write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.gz cannot be read: CRC"):
        read_idx(tmp_path / "a.gz", 3)


def npy(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"") -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": dtype})
    return buffer.getvalue() + data


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return path


MEMBERS = {
    "an array that asks for more than there is": (npy((10**6, 10**6)), "is damaged or truncated: its header asks for"),
    "a negative size": (npy((-4, -4), data=bytes(16)), "its header asks for"),
    "no bytes an item": (npy((10**15, 4), "<U0"), "its header asks for"),
    "objects": (npy((2, 2), "|O", bytes(32)), "Python objects"),
    "less than it asks for": (npy((4, 4), data=bytes(15)), "its header asks for"),
    "more than it asks for": (npy((4, 4), data=bytes(17)), "its header asks for"),
    "words": (b"hello, world, this is no array", "is damaged or truncated"),
}


@pytest.mark.parametrize("read", [read_arrays, lambda path: read_samples(path, Points([4]))], ids=["arrays", "samples"])
@pytest.mark.parametrize("case", MEMBERS)
def test_members_are_looked_at_before_they_are_read(case, read, tmp_path):
    data, words = MEMBERS[case]
    path = archive(tmp_path / "a.npz", points__npy=data)
    with pytest.raises(UserError, match=words) as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_a_member_that_is_no_array(tmp_path):
    """NumPy gives its bytes."""
    path = archive(tmp_path / "a.npz", points=b"1, 2, 3, and so on")
    for read in (read_arrays, lambda path: read_samples(path, Points([4]))):
        with pytest.raises(UserError, match="points is no array, but a file within the archive"):
            read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path):
    """NumPy takes the last."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for value in (b"\1", b"\2"):
            file.writestr("points.npy", npy((4, 4), data=16 * value))
    with pytest.raises(UserError, match="more than one array named points"):
        read_arrays(tmp_path / "a.npz")


def test_what_does_not_fit_in_memory_is_not_begun(tmp_path, monkeypatch):
    """With a megabyte free: an archive of two, a folder, padded digits, a table."""
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    big = np.zeros((2**21, 2), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", points=big)
    with pytest.raises(UserError, match=r"would take 4 MiB of memory, and 1 MiB are free"):
        Arrays(str(tmp_path / "a.npz")).prepare()
    (tmp_path / "a.csv").write_text("1,2\n" * 2**17)
    with pytest.raises(UserError, match=r"a\.csv would take 2 MiB of memory"):
        read_arrays(tmp_path / "a.csv")
    for number in range(3):
        Image.new("L", (4, 4)).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match=r"3 images of shape \[1, 9000, 9000\] would take 232 MiB"):
        Folder(str(tmp_path), size=9000).prepare()
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(2, 4, 4, data=bytes(32)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(2, data=bytes(2)))
    with pytest.raises(UserError, match=r"data\.size=100000: 2 images of 100000x100000 would take 18\.6 GiB"):
        IdxImages(str(tmp_path), size=100_000, n_val=1).prepare()


def png(width: int, height: int) -> bytes:
    """A file that claims to be this large, and is nearly empty."""
    buffer = BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    raw = bytearray(buffer.getvalue())
    raw[16:24] = struct.pack(">II", width, height)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return bytes(raw)


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ((10**6, 1), "damaged or truncated"),
        ((10**5, 10**5), "is too large"),
        ((12_000, 12_000), "damaged or truncated"),
    ],
)
def test_an_image_that_says_it_is_huge(sides, words, tmp_path, recwarn):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(*sides))
    with pytest.raises(UserError, match=rf"\d\.png .*{words}"):
        Folder(str(tmp_path), size=4).prepare()
    assert not [one for one in recwarn if issubclass(one.category, Image.DecompressionBombWarning)]


def test_an_image_of_a_kind_that_is_handed_to_another_program(tmp_path):
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png", "EPS")
    with pytest.raises(UserError, match="cannot be read as an image"):
        Folder(str(tmp_path)).prepare()


def test_available_memory_is_told():
    free = memory.available()
    assert free is None or 2**20 < free < 2**50
