"""Systems without POSIX's modules: the package works without them, and says what is missing."""

import builtins
import errno
import importlib
import logging
import multiprocessing
import os
import pkgutil
import sys
from pathlib import Path

import sde_diffusion

FOREIGN = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "posix")
PRIVATE = ("wandb.sdk", "wandb.util", "wandb.apis", "wandb.proto")


def _without(folder: Path, answer) -> None:
    """In a separate process: import all modules of the package, without the modules that may be missing."""
    real = builtins.__import__

    def checked(name, globals=None, *rest, **more):
        own = (globals or {}).get("__name__", "").startswith("sde_diffusion")
        if own and (name.partition(".")[0] in FOREIGN or name.startswith(PRIVATE)):
            raise ImportError(name)
        return real(name, globals, *rest, **more)

    builtins.__import__ = checked
    del errno.EDQUOT
    for name in [name for name in sys.modules if name.startswith("sde_diffusion")]:
        del sys.modules[name]
    try:
        package = importlib.import_module("sde_diffusion")
        names = [found.name for found in pkgutil.walk_packages(package.__path__, "sde_diffusion.")]
        for name in names:
            if not name.endswith("__main__"):
                importlib.import_module(name)
        for name in ("O_CLOEXEC", "O_NONBLOCK", "register_at_fork", "pread", "pwrite", "getppid"):
            delattr(os, name)
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logging.getLogger().addHandler(handler)
        modules = [importlib.import_module(f"sde_diffusion.{name}") for name in ("storage.lock", "storage.files")]
        with modules[0].locked(folder / "out", "sample"), modules[1].writing(folder / "out" / "a") as path:
            path.write_text("whole")
        with modules[1].opened(folder / "out" / "a") as file:
            assert file.read() == b"whole"
        modules = [importlib.import_module(f"sde_diffusion.{name}") for name in ("storage.memory", "storage.signals")]
        modules[0].check_fits("a little", 1, "")
        modules[1].restore(modules[1].listen())
        answer.put((len(names), lines))
    except BaseException as error:
        answer.put((0, [repr(error)]))


def test_no_module_needs_posix_or_what_is_private_in_wandb(tmp_path):
    """There are no locks, which is reported once; files are written and read as usual."""
    fork = multiprocessing.get_context("fork")
    answer = fork.Queue()
    process = fork.Process(target=_without, args=(tmp_path, answer))
    process.start()
    imported, lines = answer.get(timeout=120)
    process.join(timeout=60)
    assert lines == ["this system has no locks: start no second command in a folder where one is at work"]
    assert imported > 100
    assert sde_diffusion.__name__ in sys.modules
