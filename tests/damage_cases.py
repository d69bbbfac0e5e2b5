"""Ways to damage a checkpoint, for hypothesis: in its contents, and in its bytes."""

import contextlib
import copy
import io
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from sde_diffusion.storage.seal import seal


def nested(depth: int) -> dict[str, Any]:
    node: dict[str, Any] = {}
    for _ in range(depth):
        node = {"a": node}
    return node


def doubled(depth: int) -> list[Any]:
    """A small file with 2^depth values: each list contains the previous one twice."""
    node: list[Any] = [1, 2]
    for _ in range(depth):
        node = [node, node]
    return node


NONSENSE: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in (None, True, False, -1, 0, 1, 3, 0.5, -2.5, 7.25)),
    *(lambda value=value: value for value in (2**31, 2**63, 2**64, -(10**30), 10**400, float("nan"), float("inf"))),
    *(lambda value=value: value for value in ("", "x", "7", "../../x", "/x/y", "a\0b", "${oc.env:HOME}", "???", b"x")),
    *(lambda value=value: copy.deepcopy(value) for value in ([], [1], [[]], {}, {"a": 1}, {1: {2: []}}, {"x": [None]})),
    lambda: {"_target_": "os.mkdir", "path": "/x/y"},
    lambda: {"_target_": "sde_diffusion.sde.VPSDE"},
    lambda: nested(50),
    lambda: nested(5000),
    lambda: doubled(60),
    lambda: torch.tensor(3),
    lambda: torch.tensor(float("nan")),
    lambda: torch.ones(2, 3),
    lambda: torch.ones(4, dtype=torch.complex64),
    lambda: torch.ones(3).to_sparse(),
    lambda: torch.ones(1).expand(2**40),
    lambda: torch.empty(0),
]


def places(node: Any) -> list[Any]:
    return list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []


def change_entry(checkpoint: dict[str, Any], draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """Go to an entry, and remove or replace it."""
    node: Any = checkpoint
    while True:
        key = draw(st.sampled_from(places(node)))
        if not places(node[key]) or not draw(st.integers(0, 14)):
            break
        node = node[key]
    kind = draw(st.sampled_from(["remove", "replace", "replace", "replace", "add", "poison"]))
    value = node[key]
    if kind == "poison" and isinstance(value, torch.Tensor) and value.is_floating_point():
        node[key] = torch.full_like(value, draw(st.sampled_from([float("nan"), float("inf")])))
    elif kind == "remove":
        del node[key]
    elif kind == "add" and isinstance(node, dict):
        node[draw(st.sampled_from(["x", "_target_", "folder", "path", 3, "step", "default_root_dir"]))] = draw_nonsense(
            draw
        )
    else:
        node[key] = draw_nonsense(draw)


def draw_nonsense(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    return draw(st.sampled_from(NONSENSE))()


@st.composite
def damaged_contents(draw: Any, content: bytes) -> bytes:
    """A file that is valid to torch and the checksum, with one or two entries changed."""
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    checkpoint["state_dict"] = dict(checkpoint["state_dict"])
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        change_entry(checkpoint, draw)
    return saved(checkpoint)


def saved(checkpoint: Any) -> bytes:
    """As `torch.save` writes it, however deep."""
    file, usual = io.BytesIO(), sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        torch.save(checkpoint, file)
    finally:
        sys.setrecursionlimit(usual)
    return file.getvalue()


def bomb(name: str = "archive/data/0", size: int = 2**27) -> bytes:
    """A small archive, a member of which inflates to a thousand times its size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        for _ in range(size // 2**24):
            member.write(bytes(2**24))
    return file.getvalue()


def repacked(content: bytes, drop: str = "", add: str = "", packed: bool = False) -> bytes:
    """The same archive without a member, with one more, or deflated."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", method) as new:
        for name in old.namelist():
            if not drop or not name.endswith(drop):
                new.writestr(name, old.read(name))
        if add:
            new.writestr(add, b"x")
    return file.getvalue()


@st.composite
def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """A file that is cut, changed in places, repacked, or something else altogether."""
    kind = draw(st.sampled_from(["cut", "flip", "overwrite", "drop", "add", "packed", "random", "doubled", "other"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind in ("flip", "overwrite"):
        changed, at = bytearray(content), draw(st.integers(0, len(content) - 1))
        some = bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) if kind == "flip" else draw(st.binary(min_size=1))
        changed[at : at + len(some)] = some
        return bytes(changed)
    if kind == "random":
        return draw(st.sampled_from([b"", b"PK", b"PK\3\4", b"\x80\2"])) + random.Random(0).randbytes(200)
    if kind == "doubled":
        return content + content
    if kind == "other":
        return saved(draw_nonsense(draw))
    members = [name.partition("/")[2] for name in zipfile.ZipFile(io.BytesIO(content)).namelist()]
    return repacked(
        content,
        drop="/" + draw(st.sampled_from(members)) if kind == "drop" else "",
        add=draw(st.sampled_from(["archive/x", "../x", "/x", "archive/data.pkl"])) if kind == "add" else "",
        packed=kind == "packed",
    )


def write(path: Path, content: bytes, sealed: bool) -> Path:
    """Write a file, with a checksum that holds if it is an archive that can have one."""
    path.write_bytes(content)
    if sealed:
        with contextlib.suppress(ValueError, OSError):
            seal(path)
    return path
