"""One command at a time in a folder."""

import errno
import fcntl
import re
import signal
import subprocess
import sys

import pytest

from sde_diffusion.errors import UserError
from sde_diffusion.storage import lock as lock_module
from sde_diffusion.storage.files import writing
from sde_diffusion.storage.lock import locked

HOLD = """
import sys
from pathlib import Path
from sde_diffusion.storage import lock as lock_module
from sde_diffusion.storage.lock import locked
with locked(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / "out"."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "out"], **pipes)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.stdin.close()
    process.wait()


def test_the_second_learns_the_owner_and_since_when(tmp_path, other):
    about = rf"out is in use by train \(process {other.pid} on \S+, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\)"
    with pytest.raises(UserError, match=about), locked(tmp_path / "out", "sample"):
        pass
    other.stdin.close()
    other.wait()
    assert list((tmp_path / "out").iterdir()) == []
    with locked(tmp_path / "out", "sample"):
        pass


def test_who_dies_holds_no_longer(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with locked(tmp_path / "out", "sample"):
        assert re.search(r'"sample"', (tmp_path / "out" / ".lock").read_text())
    assert list((tmp_path / "out").iterdir()) == []


def test_processes_race(tmp_path):
    """Of many processes that begin at once in a folder none works beside another, and each gets its turn."""
    script = f"""
import random, time
from pathlib import Path
from sde_diffusion.errors import UserError
from sde_diffusion.storage import lock as lock_module
from sde_diffusion.storage.lock import locked
folder = Path({str(tmp_path / "out")!r})
done = 0
while done < 20:
    try:
        with locked(folder, "x"):
            (folder / "alone").touch(exist_ok=False)
            time.sleep(random.random() / 1000)
            (folder / "alone").unlink()
            done += 1
    except UserError:
        time.sleep(0.0005)
"""
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_deleted_in_the_middle_is_noticed(tmp_path):
    out = tmp_path / "out"
    with locked(out, "sample"):
        with writing(out / "a" / "b") as temporary:
            temporary.write_text("x")
        (out / "a" / "b").unlink()
        (out / "a").rmdir()
        (out / ".lock").unlink()
        out.rmdir()
        for anew in (False, True):
            if anew:
                (out / "a").mkdir(parents=True)
                (out / ".lock").touch()
            with pytest.raises(UserError, match="was deleted, moved or replaced while"), writing(out / "a" / "b"):
                pass
        with writing(tmp_path / "elsewhere") as temporary:
            temporary.write_text("x")
    assert sorted(path.name for path in out.iterdir()) == [".lock", "a"]  # another's
    assert list((out / "a").iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"), locked(tmp_path / "file" / "out", "sample"):
        pass


def test_a_file_system_without_locks_is_reported_of_once(tmp_path, monkeypatch, caplog):
    """Everything else works there."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    lock_module._warn_of_no_locks.cache_clear()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / "out", "sample"), writing(tmp_path / "out" / "a") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "out" / "a").read_text() == "x"
    assert [record.message for record in caplog.records] == [
        "this file system has no locks: start no second command in a folder where one is at work"
    ]
