"""Find image files in a folder and its subfolders, and report what is not used."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sde_diffusion.checks.reprs import few
from sde_diffusion.data.images import SUFFIXES
from sde_diffusion.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class Tree:
    """The images in a folder and its subfolders.

    Attributes:
        folder: The folder.
        images: Paths of the images, in alphabetical order.
        subfolders: Names of the direct subfolders, including links.
        other: Number of other files, by suffix.
        unread: Broken links, links to folders that have been read already, and files that are not regular.
    """

    folder: Path
    images: list[Path] = field(default_factory=list)
    subfolders: list[str] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)

    @property
    def stray(self) -> list[Path]:
        """Images that are not in a subfolder."""
        return [path for path in self.images if path.parent == self.folder]

    @property
    def classes(self) -> list[str]:
        """Subfolders with images, in alphabetical order."""
        return sorted({self.subfolder(path) for path in self.images} - {""})

    def subfolder(self, path: Path) -> str:
        """The direct subfolder that contains an image; "" if it is not in one."""
        parts = path.relative_to(self.folder).parts
        return parts[0] if len(parts) > 1 else ""

    def report(self) -> None:
        """Log what was not used."""
        found = [f"{count} file{'s' * (count > 1)} {kind}" for kind, count in sorted(self.other.items())]
        empty = sorted(set(self.subfolders) - set(self.classes))
        if empty:
            found.append(f"{few(empty)}, without images")
        if self.unread:
            found.append(few(self.unread))
        if found:
            log.warning("%s: not used: %s (images are files ending in %s)", self.folder, "; ".join(found), _ENDINGS)


_ENDINGS = " ".join(SUFFIXES)


def find_images(folder: Path, leave: tuple[str, ...] = ()) -> Tree:
    """Find the images in a folder and its subfolders.

    Links to folders are followed, each folder is read once, and hidden files and folders are ignored.

    Args:
        folder: The folder.
        leave: Names of direct subfolders to leave out.

    Raises:
        UserError: If a folder cannot be read.
    """
    tree, seen = Tree(folder), set()
    folders, links = [folder], list[Path]()
    while folders or links:
        # Links come last, so that a folder that can be reached without a link is found at its own path.
        here = folders.pop() if folders else links.pop(0)
        place = os.path.realpath(here)
        if place in seen:
            tree.unread.append(f"{here.relative_to(folder)}, a link to a folder that is read already")
            continue
        seen.add(place)
        for entry in _entries(here):
            path = Path(entry.path)
            if entry.name.startswith(".") or (here == folder and entry.name in leave):
                continue
            try:
                folder_there, file_there = entry.is_dir(), entry.is_file()
            except OSError as error:  # for instance links that form a loop
                tree.unread.append(f"{path.relative_to(folder)} ({error.strerror or error})")
                continue
            if folder_there:
                (links if entry.is_symlink() else folders).append(path)
                if here == folder:
                    tree.subfolders.append(entry.name)
            elif not file_there:
                tree.unread.append(
                    f"{path.relative_to(folder)}, {'a link to nothing' * entry.is_symlink() or 'no file'}"
                )
            elif entry.name.lower().endswith(SUFFIXES):
                tree.images.append(path)
            else:
                tree.other[f"ending in {path.suffix}" if path.suffix else "without an ending"] += 1
    tree.images.sort()
    return tree


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from error
