"""Files are written atomically, wherever their writer is killed."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import forget, fresh, read_json, remove_leftovers, writing

KILLED = """
import os, signal, sys
from pathlib import Path
from sde_diffusion.storage.files import writing
with writing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def target(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").resolve())


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with writing(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
        assert temporary.parent == path.parent  # in the same file system
    with suppress(ZeroDivisionError), writing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names(path.parent) == ["b.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_a_killed_writer_leaves_goes_and_what_a_live_one_writes_stays(tmp_path):
    path = tmp_path / "b.txt"
    done = subprocess.run([sys.executable, "-c", KILLED, path])
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    with writing(path) as temporary:
        assert names(tmp_path) == [temporary.name]
        remove_leftovers(tmp_path)
        assert temporary.exists()
        temporary.write_text("whole")
    assert names(tmp_path) == ["b.txt"]
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "c" / "d.txt"])
    remove_leftovers(tmp_path)
    assert names(tmp_path / "c") == []


def test_everything_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """By the order of the system's calls: the file's flush, the renaming, the folder's flush."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", target(fd))), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", str(a))), replace(a, b)))
    with writing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert calls == [("fsync", str(temporary)), ("replace", str(temporary)), ("fsync", str(tmp_path))]


def test_a_finished_result_stays_and_what_its_command_left_goes(tmp_path):
    (tmp_path / ".parts").mkdir()
    assert fresh(tmp_path / "a", False, tmp_path / ".parts") == tmp_path / "a"
    assert (tmp_path / ".parts").exists()
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="exists already"):
        fresh(tmp_path / "a", False, tmp_path / ".parts")
    assert not (tmp_path / ".parts").exists()
    assert fresh(tmp_path / "a", True) == tmp_path / "a"
    forget(tmp_path / "never there")


def test_other_programs_files_are_left_alone(tmp_path):
    for name in (".x.part", ".download.iso.part", ".a.b.0123456.part"):
        (tmp_path / name).write_text("theirs")
    (tmp_path / ".theirs.part").mkdir()
    (tmp_path / "deep" / "down").mkdir(parents=True)
    ours = [tmp_path / ".x.0123abcd.part", tmp_path / "deep" / ".y.0123abcd.part"]
    for path in ours:
        path.write_text("ours")
    remove_leftovers(tmp_path)
    assert not any(path.exists() for path in ours)
    assert len(names(tmp_path)) == 5


def test_a_full_disk_is_reported_with_the_files_name(tmp_path):
    with pytest.raises(OSError, match="No space left") as raised, writing(tmp_path / "a") as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))
    assert raised.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a"):
        (tmp_path / "missing").read_text()  # the block's own mistake is not blamed on the target
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe{", b"{", b"", b"[1]", b"null", b"[" * 100_000, b'{"a": 1} 2'],
    ids=lambda content: str(content[:9]),
)
def test_damaged_json_is_reported_in_one_message(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.json is (damaged: .+|empty); remove it, or choose another folder$"):
        read_json(path)
    path.write_text('{"a": "\u00fc"}', encoding="utf-8")
    assert read_json(path) == {"a": "\u00fc"}
