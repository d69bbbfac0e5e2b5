"""`python -m sde_diffusion`: list the commands."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from sde_diffusion._version import __version__
from sde_diffusion.errors import did_you_mean
from sde_diffusion.storage.signals import ending_with_reader

FOLDER = Path(__file__).parent
COMMANDS = ("train", "sample", "restore", "evaluate", "likelihood", "sweep")


def main() -> int:
    """List the commands; if one is given as an argument, say how to run it."""
    asked = sys.argv[1:]
    if asked and asked[0] in COMMANDS:
        print(f"error: commands are modules: python -m sde_diffusion.{' '.join(asked)}", file=sys.stderr)
        return 1
    if asked and asked[0] not in ("-h", "--help"):
        hint = did_you_mean(asked[0], COMMANDS)
        print(f"error: no command {asked[0]!r}{hint}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 1
    print(f"sde_diffusion {__version__}: score-based generative models through stochastic differential equations\n")
    for name in COMMANDS:
        docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
        typed, _, purpose = docstring.partition("\n")[0].partition("`: ")
        print(f"  {typed.lstrip('`')}\n      {purpose[:1].upper()}{purpose[1:].removesuffix('.')}")
    print("\nWith --help, each lists its groups and keys.")
    return 0


if __name__ == "__main__":
    with ending_with_reader():
        status = main()
    sys.exit(status)
