"""`python -m sde_diffusion.train sde=vp`: train a score model."""

import sys

from sde_diffusion.commands.app import command
from sde_diffusion.commands.resuming import accepting


def main() -> None:
    """Entry point of the command."""
    sys.argv = accepting(sys.argv)
    command("train", processes=True)


if __name__ == "__main__":
    main()
