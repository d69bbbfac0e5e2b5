"""Settings as they are typed: KEY=VALUE in Hydra's grammar, quoted for a shell."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BARE = re.compile(r"[A-Za-z/_.][A-Za-z0-9/_.+-]*", re.ASCII)  # text that needs no quotes for Hydra or a shell
_NOT_TEXT = re.compile(r"null|true|false|yes|no|on|off|y|n|nan|inf|~", re.IGNORECASE)


def hydra_value(value: Any) -> str:
    """A value in Hydra's grammar, in which commas, brackets, spaces and letters such as ü need quotes.

    Args:
        value: A number, None, a boolean, a list, a mapping, or anything else, which is written as text.

    Returns:
        What to write after `KEY=`; for a shell it must be quoted again.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(hydra_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{hydra_value(one)}' for key, one in value.items())}}}"
    text = str(value)
    if _BARE.fullmatch(text) and not _NOT_TEXT.fullmatch(text):
        return text
    text = escaped(text)
    # Backslashes are literal, except before a quote, where Hydra reads two as one.
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def escaped(text: str) -> str:
    """A text in which each `${` is escaped, so that OmegaConf does not read it as an interpolation."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def setting(key: str, value: Any) -> str:
    """KEY=VALUE, ready to be pasted into a shell; see `hydra_value`."""
    text = f"{key}={hydra_value(value)}"
    if shlex.quote(text) == text:
        return text
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def command_line(module: str, **settings: Any) -> str:
    """A command of this library, ready to be pasted into a shell.

    Args:
        module: Such as `sde_diffusion.sample`.
        **settings: Its keys and their values.
    """
    return " ".join([interpreter(), "-m", module, *(setting(key, value) for key, value in settings.items())])


def interpreter() -> str:
    """What to type for this Python: `python` if that is the one running, else its path."""
    found = shutil.which("python")
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    return "python" if same else shlex.quote(sys.executable)
