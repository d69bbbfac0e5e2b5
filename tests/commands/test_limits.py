"""Memory or disk space runs out: one message says what, which settings need less and what is kept; no traceback."""

import errno
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from safetensors import SafetensorError

from sde_diffusion.commands.exhausted import no_room, within_limits
from sde_diffusion.commands.logs import LogFile, LogLines
from sde_diffusion.errors import UserError
from sde_diffusion.storage.memory import in_words, ran_out


def _raised(ask) -> Exception:
    try:
        ask()
    except Exception as error:
        return error
    raise AssertionError("that much memory is there")


HUGE = {
    "torch": lambda: torch.empty(2**50, dtype=torch.uint8),
    "numpy": lambda: np.empty(2**50, np.uint8),
    "python": lambda: bytearray(2**62),
    "torch, of more than can be counted": lambda: torch.empty(2**40, 2**40),
}


@pytest.mark.parametrize("case", HUGE)
def test_what_says_that_memory_ran_out(case):
    """The libraries' real messages."""
    assert ran_out(_raised(HUGE[case])) == "memory"


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory of the device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "memory of the device"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 2.0 GB)"), "memory of the device"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (RuntimeError("can't start new thread"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ""),
        (ValueError("out of memory"), ""),  # a word in a user's setting, say
        (OSError(errno.ENOENT, "No such file"), ""),
    ],
)
def test_what_errors_mean(error, memory):
    assert ran_out(error) == memory


def test_sizes_in_words():
    assert [in_words(n) for n in (7, 1024, 1536, 2**30 * 12, 10**15)] == [
        "7 bytes",
        "1 KiB",
        "1.5 KiB",
        "12 GiB",
        "909 TiB",
    ]


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("train", MemoryError(), "memory ran out: make data.batch_size, network.width"),
        ("train", MemoryError(), "smaller, or add model.activation_checkpointing=true$"),
        (
            "sample",
            _raised(HUGE["torch"]),
            r"memory ran out \(1,024 TiB were requested at once\): make batch_size or n",
        ),
        ("likelihood", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), r"\(2.00 GiB were"),
        ("sample", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), r"\(20 MiB were"),
        ("sample", OSError(errno.ENOSPC, "No space left on device", "/a/b"), "cannot write /a/b: No space left"),
        (
            "sample",
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "No space left on device; make",
        ),
        ("train", OSError(errno.EROFS, "Read-only file system", "/a"), "/a: Read-only.*hydra.run.dir=DIR"),
        ("evaluate", OSError(errno.EDQUOT, "Disk quota exceeded", "/a"), "Disk quota exceeded.*out=DIR"),
    ],
)
def test_one_message(command, error, words):
    with pytest.raises(UserError, match=words), within_limits(command):
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), UserError("x"), RuntimeError("x"), FileNotFoundError(2, "x")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as passed, within_limits("train"):
        raise error
    assert passed.value is error


def test_a_full_disk_behind_another_error():
    """torch's writer raises an error at the end of a file that could not be written."""
    error = RuntimeError("unexpected pos 64 vs 0")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "/a")
    assert no_room(error) == "cannot write /a: No space left on device"


def said(done, *words: str) -> None:
    assert done.status == 1
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, (word, done.err)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["network.width=1000000"], ["TiB were requested at once", "network.width"]),
        (["data.batch_size=1000000000"], ["an epoch of 250000000000 items, batch_size x min_batches_per_epoch"]),
    ],
)
def test_training_more_than_there_is(settings, words, command, tmp_path):
    done = command("train", *TINY, *settings, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    said(done, *words)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_drawing_more_than_there_is(name, command, trained, tmp_path):
    usual = (f"ckpt={trained}/checkpoints/last.ckpt", "sampler=ddpm", "sampler.steps=2", f"out={tmp_path / 'out'}")
    said(command(name, *usual, "n=10000000000", cwd=tmp_path), "of memory, and")
    assert not (tmp_path / "out").exists()  # not even an empty log


@pytest.mark.slow
def test_a_scoring_resumes_with_smaller_batches(command, trained, tmp_path):
    """Finished items count, whatever batch_size is later; each item once."""
    usual = ("likelihood", f"ckpt={trained}/checkpoints/last.ckpt", "n=14", "method=euler", "steps=2")
    done = command(*usual, "batch_size=14", f"out={tmp_path / 'a'}", cwd=tmp_path)
    assert done.status == 0, done.err
    script = (
        "import sys; from sde_diffusion.storage.parts import Parts; from sde_diffusion.likelihood import main\n"
        "add = Parts.add\n"
        "def once(self, *args):\n"
        "    add(self, *args)\n"
        "    raise MemoryError\n"
        "Parts.add = once; main()\n"
    )
    words = [*usual[1:], "batch_size=6", f"out={tmp_path / 'b'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert f"Finished work is kept: the same command with out={tmp_path / 'b'} resumes there" in ended.stderr
    done = command(*usual, "batch_size=3", f"out={tmp_path / 'b'}", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "resuming after 6 of 14" in done.out
    rows = [(tmp_path / name / "likelihood.csv").read_text().splitlines() for name in "ab"]
    assert [row.split(",")[:2] for row in rows[0]] == [row.split(",")[:2] for row in rows[1]]
    values = [[float(row.split(",")[2]) for row in one[1:]] for one in rows]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)


def test_a_log_on_a_full_disk_is_given_up_once(capfd):
    logger = logging.Logger("own")
    logger.addHandler(LogFile("/dev/full"))
    for number in range(3):
        logger.warning("line %d", number)
    said_once = capfd.readouterr().err
    assert said_once == "cannot write /dev/full: No space left on device; continuing without it\n"


def test_lines_that_nobody_reads_end_nothing(tmp_path):
    """As `command | head -1` does: the pipe's other end is closed."""
    script = (
        "import logging, sys; from sde_diffusion.commands.logs import LogLines; log = logging.Logger('own')\n"
        "log.addHandler(LogLines(sys.stdout)); sys.stdin.read()\n"
        "for n in range(3): log.warning('line')\n"
        "print('the end', file=sys.stderr)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", script], text=True, cwd=ROOT, **pipes)
    process.stdout.close()
    process.stdin.close()
    err = process.stderr.read()
    assert err == "cannot write to the screen: Broken pipe; continuing without it\nthe end\n"
    assert process.wait() == 0


def test_a_mistake_in_a_line_is_shown(capsys):
    handler = LogLines(sys.stdout)
    handler.handle(logging.LogRecord("own", logging.INFO, "", 1, "%d", ("word",), None))
    assert "Logging error" in capsys.readouterr().err


NAMESPACES = shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not NAMESPACES, reason="no user namespaces here, in which a small disk can be mounted")
@pytest.mark.parametrize("options", ["size=16k", "size=28k", "size=64k", "size=300k", "ro"])
@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "likelihood", "sweep"])
def test_full_and_read_only_disks(name, options, trained, tmp_path):
    """On a disk of so many bytes: one message, or success; no temporary file remains and no result is truncated."""
    place = tmp_path / "disk"
    place.mkdir()
    out, ckpt = place / "out", f"ckpt={trained}/checkpoints/last.ckpt"
    short = ("sampler=ddpm", "sampler.steps=2", "n=300")
    words = {
        "train": (*TINY, f"hydra.run.dir={out}"),
        "sample": (ckpt, *short, f"out={out}"),
        "evaluate": (ckpt, *short, "metrics=[frechet]", "resamples=0", f"cache={place / 'cache'}", f"out={out}"),
        "likelihood": (ckpt, "method=euler", "steps=2", "n=300", f"out={out}"),
        "sweep": ("file=grid", "n=1", f"out={out}", "--", *(word for word in TINY if "width" not in word)),
    }[name]
    command = [sys.executable, "-m", f"sde_diffusion.{name}", *words]
    script = f'mount -t tmpfs -o {options} tmpfs {place} || exit 99; "$@"; s=$?; cp -a {place} {tmp_path}/kept; exit $s'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr
    if done.returncode:
        assert done.stderr.count("error: ") == 1
    left = [path for path in Path(tmp_path, "kept").rglob("*") if path.name.endswith(".part")]
    assert not left
    for path in Path(tmp_path, "kept").rglob("*.npz"):
        assert len(np.load(path)["seeds"]) == 300
