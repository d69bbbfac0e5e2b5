"""Reading of .npz and .npy files whose headers may be wrong: sizes are checked before memory is allocated.

`numpy.load` allocates what a header asks for, reads the last of two members of the same name, and returns a member that
is not an array as bytes. When it no longer does, this module can be removed.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from sde_diffusion.checks.reprs import few
from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import opened
from sde_diffusion.storage.memory import check_fits, ran_out

Array = npt.NDArray[Any]
Choice = Callable[[list[str]], Sequence[str]]

_ZIP, _NPY = b"PK", b"\x93NUMPY"


class ForeignFileError(UserError):
    """The file is neither an .npz nor an .npy; the message has its first bytes."""


def read_arrays_of(path: Path, choose: Choice, bare: str | None) -> dict[str, Array]:
    """Read some of the arrays of an .npz file, or the one of an .npy.

    Args:
        path: The file.
        choose: Function from the names of all arrays of an .npz to those to read; may raise a `UserError`.
        bare: Name for the one array of an .npy; None: such a file is an error.

    Returns:
        The arrays by name.

    Raises:
        UserError: If the file cannot be opened, is of another kind or damaged, contains Python objects, or does not fit
            in memory.
    """
    with opened(path) as file:
        start = file.peek(6)[:6]
        try:
            if start == _NPY and bare is not None:
                return {bare: _read(str(path), file, os.fstat(file.fileno()).st_size)}
            if start == _NPY:
                raise UserError(
                    f"{path} is one bare array: name it, numpy.savez(FILE, images=...), points= or signals="
                )
            if start[:2] == _ZIP:
                with ZipFile(file) as archive:
                    return _members(path, archive, choose)
        except UserError:
            raise
        except Exception as error:  # damaged bytes raise many kinds of errors in zipfile and NumPy, even tokenize's
            if ran_out(error):
                raise UserError(f"{path} does not fit in memory: {error}") from error
            raise UserError(f"{path} is damaged or truncated: {error}") from error
    raise ForeignFileError(f"{path} is neither an .npz nor an .npy file: it begins with {start[:4].hex(' ')}")


def _members(path: Path, archive: ZipFile, choose: Choice) -> dict[str, Array]:
    infos: dict[str, ZipInfo] = {}
    for info in archive.infolist():
        infos[info.filename.removesuffix(".npy")] = info
    twice = [name for name, n in Counter(i.filename.removesuffix(".npy") for i in archive.infolist()).items() if n > 1]
    if twice:
        raise UserError(f"{path} has more than one array named {few(twice)}: save it again, each name once")
    wanted = list(choose(list(infos)))
    asked = sum(infos[name].file_size for name in wanted)
    check_fits(f"{path}: {few(wanted)}", asked, "save fewer items, or several files")
    arrays: dict[str, Array] = {}
    for name in wanted:
        with archive.open(infos[name]) as member:
            if infos[name].filename == name:
                raise UserError(f"{path}: {name} is no array, but a file within the archive: save it with numpy.savez")
            arrays[name] = _read(f"{path}: {name}", member, infos[name].file_size)
    return arrays


def _read(what: str, file: IO[bytes], length: int) -> Array:
    """Read one array of the .npy format, which must fill the `length` bytes of the file."""
    version = npy.read_magic(file)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0  # 3.0 has names in UTF-8
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise UserError(
            f"{what} is an array of Python objects, which is never loaded (that could run code); "
            "save numbers, such as uint8 or float32; images of different sizes belong in a folder (data=folder)"
        )
    n, left = math.prod(shape), length - file.tell()
    if n * dtype.itemsize != left or min(shape, default=0) < 0 or not dtype.itemsize:
        asked = f"{dtype} {list(shape)}, which is {n * dtype.itemsize} bytes"
        raise UserError(f"{what} is damaged or truncated: its header asks for {asked}, and {left} follow it")
    check_fits(what, left, "save fewer items, or several files")
    data, done = np.empty(left, np.uint8), 0
    while done < left and (block := file.read(min(2**20, left - done))):  # to its checksum
        data[done : done + len(block)] = np.frombuffer(block, np.uint8)
        done += len(block)
    if done < left:
        raise UserError(f"{what} is truncated: {done} bytes of {left} are there")
    array: Array = data.view(dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
