"""Valid data files, damaged at random: they are read, or one message names the file, and quickly."""

import gzip
import struct
import tempfile
import time
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sweep_cases import PLAIN

from sde_diffusion.commands.sample_folder import read_pictures
from sde_diffusion.commands.sweep_file import read_sweep
from sde_diffusion.data import Arrays, Folder
from sde_diffusion.data.idx import read_idx
from sde_diffusion.errors import UserError
from sde_diffusion.metrics.features import WEIGHTS, read_classifier
from sde_diffusion.metrics.reference import ReferenceKey, reference_statistics
from sde_diffusion.modality import Images, Points, read_samples

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (12, 6, 5), dtype=np.uint8)


def _npz(**arrays) -> bytes:
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _npy(array) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _image(kind: str, **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, kind, **options)
    return buffer.getvalue()


def _words(path: Path) -> None:
    described = read_sweep(path)
    for point in described.points(2, seed=0):
        described.agent_command(point)


def _folder(path: Path) -> None:
    for number in range(3):
        (path.parent / f"b{number}.png").write_bytes(_image("PNG"))
    Folder(str(path.parent)).prepare()


KEY = ReferenceKey(data="d", split="test", extractor="e", preprocessing="p", data_digest="x", extractor_digest="y")


def _reference(path: Path) -> None:
    """In the cache: damaged files are written again."""
    made = RANDOM.standard_normal((9, 3)).astype(np.float32)
    reference_statistics(path.parent, KEY, lambda: torch.from_numpy(made))


def _reference_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _reference(KEY.file(Path(folder)))
        return KEY.file(Path(folder)).read_bytes()


IDX = struct.pack(">BBBB3I", 0, 0, 8, 3, *PIXELS.shape) + PIXELS.tobytes()
CSV = "a,b\n" + "".join(f"{x / 300},{-x / 300}\n" for x in range(40))
CLASSIFIER = WEIGHTS / "digits.safetensors"

KINDS = {
    "idx": ("a-idx3-ubyte", IDX, lambda path: read_idx(path, 3), False),
    "idx.gz": ("a-idx3-ubyte.gz", gzip.compress(IDX, mtime=0), lambda path: read_idx(path, 3), True),
    "npz": (
        "a.npz",
        _npz(train_images=PIXELS, train_labels=np.arange(12) % 3, class_names=np.array(["x", "y", "z"])),
        lambda path: Arrays(str(path)).prepare(),
        True,
    ),
    "npy": ("a.npy", _npy(PIXELS), lambda path: Arrays(str(path)).prepare(), False),
    "csv": ("a.csv", CSV.encode(), lambda path: Arrays(str(path), range="auto").prepare(), False),
    "samples": (
        "samples.npz",
        _npz(images=PIXELS[..., None], seeds=np.arange(12), labels=np.arange(12) % 3),
        lambda path: read_samples(path, Images([1, 6, 5])),
        True,
    ),
    "png": ("a.png", _image("PNG"), _folder, True),
    "jpg": ("a.jpg", _image("JPEG"), _folder, False),
    "tiff": ("a.tif", _image("TIFF", compression="tiff_lzw"), _folder, False),
    "webp": ("a.webp", _image("WEBP", lossless=True), _folder, False),
    "pictures": (
        "a.png",
        _image("PNG"),
        lambda path: read_pictures(path.parent, Images([1, 6, 5]), resize=False),
        True,
    ),
    "classifier": ("a.safetensors", CLASSIFIER.read_bytes(), read_classifier, False),
    "reference": (KEY.file(Path()).name, _reference_bytes(), _reference, False),
    "sweep": ("a.yaml", yaml.safe_dump(PLAIN).encode(), _words, False),
}


@st.composite
def damage(draw, data: bytes) -> bytes:
    """Bits flipped, ends cut off, bytes put in, parts repeated, moved or made zero."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        n = len(found)
        # Headers are at the beginning, and those of archives at the end.
        place = draw(st.one_of(st.integers(0, n), st.integers(0, min(n, 128)), st.integers(max(0, n - 128), n)))
        length = draw(st.integers(1, 64))
        how = draw(st.sampled_from(("flip", "cut", "insert", "repeat", "zero", "head", "number")))
        if how == "flip" and place < n:
            found[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del found[place:]
        elif how == "insert":
            found[place:place] = draw(st.binary(min_size=1, max_size=64))
        elif how == "repeat":
            found[place:place] = found[max(0, place - length) : place]
        elif how == "zero":
            found[place : place + length] = bytes(len(found[place : place + length]))
        elif how == "head":
            other = draw(st.sampled_from([entry[1] for entry in KINDS.values()]))
            found[:length] = other[:length]
        elif how == "number":  # a size or an offset that is as large as can be
            found[place : place + 4] = draw(
                st.sampled_from((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff"))
            )
    return bytes(found)


def look(kind: str, data: bytes) -> bool:
    """Read damaged bytes; True if that raised an error that names the file."""
    name, _, read, _ = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder, name)
        path.write_bytes(data)
        begin = time.perf_counter()
        try:
            read(path)
            said = ""
        except UserError as error:
            said = str(error)
    assert time.perf_counter() - begin < 10  # seconds, on a busy machine
    assert not said or (folder in said and len(said) < 2000), said
    return bool(said)


def check(kind: str, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage(KINDS[kind][1]))
    def run(data: bytes) -> None:
        look(kind, data)

    assert not look(kind, KINDS[kind][1])
    run()


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_a_little(kind):
    check(kind, 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind):
    """14 kinds of 300 each."""
    check(kind, 300)


@pytest.mark.parametrize("kind", [kind for kind, entry in KINDS.items() if entry[3]])
def test_a_flipped_bit_in_what_has_a_checksum(kind):
    """A bit at 60 places in the data that the format's checksum covers."""
    data = KINDS[kind][1]
    if data[:2] == b"PK":
        with zipfile.ZipFile(BytesIO(data)) as file:  # the first member's compressed bytes; names and dates have none
            info = file.infolist()[0]
            start = info.header_offset + 30 + len(info.filename) + 20
            stop = start + info.compress_size - 20
    else:
        start, stop = (10, len(data) - 8) if kind == "idx.gz" else (data.index(b"IDAT") + 4, len(data) - 16)
    for place in np.linspace(start, stop - 1, 60).astype(int).tolist():
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        assert look(kind, bytes(flipped)), f"bit {place % 8} of byte {place}"


ARRAYS = {
    "objects": np.array([[{}], [1]], dtype=object),
    "words": np.array([["a"], ["b"]]),
    "complex numbers": np.ones((9, 2), complex),
    "dates": np.zeros((9, 2), "datetime64[s]"),
    "records": np.zeros(9, [("a", "f4"), ("b", "i4")]),
    "one number": np.array(3.0),
    "nothing": np.zeros((0, 2)),
    "no columns": np.zeros((9, 0)),
    "huge numbers": np.full((9, 2), 1e300),
    "NaN": np.full((9, 2), np.nan),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_of_other_kinds(case, tmp_path):
    np.savez(tmp_path / "a.npz", points=ARRAYS[case], **{"line\nfeed\x1b[2J": np.zeros(2)})
    for read in (lambda path: Arrays(str(path)).prepare(), lambda path: read_samples(path, Points([2]))):
        with pytest.raises(UserError, match=r"a\.npz"):
            read(tmp_path / "a.npz")
