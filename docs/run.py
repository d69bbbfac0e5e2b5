"""Run the tutorials' code as a reader would type it.

    python docs/run.py points images    # from the root of the repository: redraws docs/pictures

A page's Python blocks share one module, and its commands run in the same folder. Comments that no reader sees say what
the quick tests change in the block after them:

    <!-- quick: range(3000) -> range(30) -->           a replacement; several are parted by ;
    <!-- quick: trainer.max_steps=30 network.width=32 -->     settings that are added to the block's commands
    <!-- slow -->                                      a block that the quick tests leave out
    <!-- file: my_parts.py -->                         a block that the reader saves in that file, too
    <!-- not run -->                                   a block that only shows how something is written
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parent
TUTORIALS = ("points", "images", "classes", "repair", "bounds", "own", "pretrained")
WITH_DOWNLOADS = ("upsampling",)
"""Pages whose data must be downloaded: the tests run them with substitutes, and only shortened."""
_BLOCK = re.compile(r"(?:^<!-- (?P<note>[^\n]*?) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```", re.DOTALL | re.M)


class Block(NamedTuple):
    """A block of code of a page: its language, its code, the line it begins in, and the comment before it."""

    language: str
    code: str
    line: int
    note: str

    def shortened(self) -> str:
        """The code as the quick tests run it."""
        code = self.code.replace("\\\n", "")
        for change in self.note.removeprefix("quick: ").split("; ") if self.note.startswith("quick: ") else ():
            old, arrow, new = change.partition(" -> ")
            if arrow and old not in code:
                raise ValueError(f"line {self.line}: {old!r} is not in the block that it shortens")
            code = code.replace(old, new) if arrow else re.sub(r"(?m)^(python -m .*?)( *#.*)?$", rf"\1 {change}", code)
        return code


def blocks(page: Path) -> Iterator[Block]:
    """The Python and shell blocks of a page that are run."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        note = match["note"] or ""
        if note != "not run" and match["language"] in ("python", "sh"):
            yield Block(match["language"], match["code"], text.count("\n", 0, match.start("code")), note)


def run(page: Path, command: Callable[[list[str]], None], quick: bool = False) -> dict[str, Any]:
    """Run a page's blocks in the current folder, in order.

    Args:
        page: The Markdown file.
        command: Runs a command that is given in words, such as ["sde_diffusion.train", "data=moons"].
        quick: As the quick tests run it.

    Returns:
        What the Python blocks have defined.
    """
    module = sys.modules["tutorial"] = types.ModuleType("tutorial")  # where a dataclass looks for its module
    for block in blocks(page):
        if quick and block.note == "slow":
            continue
        code = block.shortened() if quick else block.code
        if block.note.startswith("file: "):
            with Path(block.note.removeprefix("file: ")).open("a") as file:
                file.write(code)
        if block.language == "python":
            exec(compile("\n" * block.line + code, str(page), "exec"), module.__dict__)
            continue
        for line in code.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                command(words[2:])
    return module.__dict__


def _in_process_of_its_own(words: list[str]) -> None:
    print("python -m", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", *words], check=True)


def main() -> None:
    """Run the tutorials that are named, or all, in folders of their own, and keep the pictures that they draw."""
    for name in sys.argv[1:] or TUTORIALS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            Path("pictures").mkdir()
            run(DOCS / f"{name}.md", _in_process_of_its_own)
            for picture in Path("pictures").iterdir():
                shutil.copy(picture, DOCS / "pictures")
                print(picture.name, picture.stat().st_size, "bytes", flush=True)
            os.chdir(DOCS)


if __name__ == "__main__":
    main()
