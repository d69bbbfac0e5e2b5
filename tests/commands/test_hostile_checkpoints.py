"""Folders, classes and interpolations in a checkpoint are ignored: each text in it is replaced by a hostile one."""

import copy
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from damage_cases import saved, write

RELEASE = Path(__file__).parents[1] / "releases" / "0.1.0.ckpt"
STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect")
REMOVED = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "shutil.rmtree")
MOVED = ("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def touched(event: str, arguments: Any) -> list[Any]:
    """The files and folders that an event of Python's audit changes; programs and connections by their names."""
    if event == "open":
        path, mode, flags = arguments
        writes = set(str(mode or "")) & set("wax+") or (flags or 0) & WRITING
        return [path] if writes else []
    if event in STARTED:
        program = arguments[0] if isinstance(arguments[0], str | bytes) else ""
        known = Path(os.fsdecode(program)).name == "git"  # the record asks for the revision
        return [] if known else [f"{event} {arguments}"]
    return [arguments[0]] if event in REMOVED else list(arguments[:2]) if event in MOVED else []


def run(folder: Path, *words: str) -> tuple[int, str, list[str]]:
    """A command in a fork: its status, its messages, and what it changed outside the folder."""
    module = importlib.import_module(f"sde_diffusion.{words[0]}")
    importlib.import_module(f"sde_diffusion.commands.{words[0]}")
    messages, changes = folder.with_name("messages.txt"), folder.with_name("changes.txt")
    changes.write_text("")
    child = os.fork()
    if not child:
        files = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(changes, os.O_WRONLY)
        inside = (os.path.realpath(folder), "/dev/null", "/proc", "/dev/shm")

        def watch(event: str, arguments: Any) -> None:
            for path in touched(event, arguments):
                if isinstance(path, int):  # open already
                    continue
                real = os.path.realpath(os.fsdecode(path))
                if not any(real == place or real.startswith(place + os.sep) for place in inside):
                    os.write(files[1], f"{event} {real}\n".encode())

        status = 1
        try:
            os.dup2(files[0], 1), os.dup2(files[0], 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)  # in place of pytest's
            os.chdir(folder)
            sys.dont_write_bytecode = True
            sys.argv = [*words]
            sys.addaudithook(watch)
            module.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, messages.read_text(), changes.read_text().splitlines()


def folder_with(tmp_path: Path, content: bytes) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    write(folder / "checkpoints" / "last.ckpt", content, sealed=True)
    return folder


def hostile(canary: Path) -> dict[str, Any]:
    """A checkpoint that still describes a run, with everything that could lead to the canary's folder."""
    checkpoint = torch.load(RELEASE, weights_only=True)
    kept, away, precious = checkpoint["sde_diffusion"]["run"], str(canary / "away"), str(canary / "precious.ckpt")
    (best,) = [value for key, value in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint")]
    best.update(dirpath=str(canary), best_model_path=precious, kth_best_model_path=precious, last_model_path=precious)
    best["best_k_models"] = {precious: torch.tensor(1e9)}
    for settings in kept["callbacks"].values():
        settings.update(dict.fromkeys(("folder", "dirpath", "path", "save_dir", "root"), away), _target_="os.mkdir")
        settings["refresh_every"] = settings["decay"] = settings["n"] = {"_target_": "os.mkdir", "path": away}
    kept["callbacks"]["best"].update(filename="../../away", monitor="${oc.env:HOME}", _args_=[away], mode=away)
    kept["callbacks"]["extra"] = {"_target_": "os.mkdir", "path": away}
    kept["trainer"].update(default_root_dir=away, profiler="advanced", logger=True, plugins=[away], model_registry=away)
    kept.update(logger={"csv": {"_target_": "os.mkdir", "path": away}}, hydra={"run": {"dir": away}}, ckpt=away)
    kept.update(record={"command": away}, plugins=["antigravity"])
    checkpoint.update(hparams_name=away, datamodule_hyper_parameters={"root": away}, MyData={"root": away})
    return checkpoint


def test_everything_at_once(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "precious.ckpt").write_text("precious")
    folder = folder_with(tmp_path, saved(hostile(canary)))
    last = folder / "checkpoints" / "last.ckpt"
    words = (f"ckpt={last}", "trainer.max_steps=24", "trainer.val_check_interval=2", "callbacks.best.monitor=val/loss")
    status, messages, changes = run(folder, "train", *words)
    assert (status, changes) == (0, []), messages
    assert "Ignored in the checkpoint: trainer.default_root_dir" in messages
    assert "Ignored in the checkpoint: callbacks.ema.decay, callbacks.ema.folder" in messages
    assert [(file.name, file.read_text()) for file in canary.iterdir()] == [("precious.ckpt", "precious")]
    after = torch.load(last, weights_only=True)
    kept = {**after["sde_diffusion"]["run"], "record": None}
    assert after["global_step"] == 24
    assert str(canary) not in f"{after['callbacks']} {kept}"
    assert {"metrics.csv", "samples", "noise_levels.csv"} <= {file.name for file in folder.iterdir()}
    assert (folder / "checkpoints" / "best.ckpt").is_file()


def texts(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where text stands in nested containers, and where it is a key."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from texts(value, (*path, key))
        elif isinstance(value, str):
            yield (*path, key)


def with_text(path: tuple[Any, ...], text: str) -> bytes:
    checkpoint = copy.copy(torch.load(RELEASE, weights_only=True))
    node = checkpoint
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = text
    return saved(checkpoint)


EVERY = list(texts(torch.load(RELEASE, weights_only=True)))
SOME = [path for path in EVERY if path[-1] in ("filename", "strategy")]


@pytest.mark.parametrize(
    "paths", [pytest.param(SOME, id="some"), pytest.param(EVERY, id="every", marks=pytest.mark.slow)]
)
def test_each_text_by_itself(tmp_path: Path, paths: list[tuple[Any, ...]]) -> None:
    """No command follows it: it is rejected, ignored, or not a path."""
    away = tmp_path / "canary" / "away"
    away.parent.mkdir()
    for path in paths:
        folder = folder_with(tmp_path, with_text(path, str(away)))
        ckpt = f"ckpt={folder / 'checkpoints' / 'last.ckpt'}"
        for words in (
            ("train", ckpt, "trainer.max_steps=21"),
            ("sample", ckpt, "n=1", "out=drawn", "sampler=ddim", "sampler.steps=1", "overwrite=true"),
        ):
            status, messages, changes = run(folder, *words)
            assert changes == [], (path, messages)
            assert "Traceback" not in messages, (path, messages)
            assert status in (0, 1), (path, messages)
        assert not list(away.parent.iterdir()), path


def test_paths_of_lightnings_own_checkpoints_are_names(tmp_path: Path) -> None:
    from sde_diffusion.training.checkpoint import read_checkpoint

    checkpoint = torch.load(RELEASE, weights_only=True)
    for name in ("/etc/passwd", "..", "a/../../b.ckpt", "C:\\x\\y.ckpt", ""):
        (key,) = [key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint")]
        checkpoint["callbacks"][key].update(
            best_model_path=name, last_model_path=name, dirpath="/etc", best_k_models={}
        )
        state = read_checkpoint(write(tmp_path / "x.ckpt", saved(checkpoint), True))["callbacks"][key]
        for found in (state["best_model_path"], state["last_model_path"], state["dirpath"]):
            assert found == "" or Path(found).parent in (tmp_path, tmp_path.parent)
        assert state["dirpath"] == str(tmp_path)
