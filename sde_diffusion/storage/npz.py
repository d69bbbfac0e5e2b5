"""NumPy's files, .npz and .npy, read without trusting their headers: sizes are checked before memory is reserved.

`numpy.load` reserves what a header asks for, takes the last of two members of one name, and gives a member that is no
array as bytes. This module can go when it does none of these.
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
    """The file is neither an .npz nor an .npy; the message says how it begins."""


def read_arrays_of(path: Path, choose: Choice, bare: str | None) -> dict[str, Array]:
    """Some of the arrays of an .npz file, or the one of an .npy.

    Args:
        path: The file.
        choose: Given the names of all arrays of an .npz, returns those to read; may raise a `UserError`.
        bare: What to call the one array of an .npy; None: refuse such a file.

    Returns:
        The arrays by name.

    Raises:
        UserError: If the file cannot be opened, is of another kind or damaged, holds Python objects, or what is wanted
            of it does not fit in memory.
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
        except Exception as error:  # zipfile and NumPy stumble over damaged bytes in many ways, tokenize's among them
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
    """One array of the .npy format, which must fill `length` bytes of a file that begins here."""
    version = npy.read_magic(file)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0  # 3.0: with names in UTF-8
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
    while done < left and (block := file.read(min(2**20, left - done))):  # to the end, where zipfile compares checksums
        data[done : done + len(block)] = np.frombuffer(block, np.uint8)
        done += len(block)
    if done < left:
        raise UserError(f"{what} is truncated: {done} bytes of {left} are there")
    array: Array = data.view(dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
