"""`python -m sde_diffusion.train sde=vp`: train a score model."""

import sys

from sde_diffusion.commands.processes import follow_launcher
from sde_diffusion.storage import signals


def main() -> None:
    """Entry point of the command."""
    signals.listen()  # before imports that take seconds
    follow_launcher()
    from sde_diffusion.commands.app import command
    from sde_diffusion.commands.resuming import allow_stored_keys
    from sde_diffusion.commands.trained_for import name_other_model

    sys.argv = allow_stored_keys(name_other_model(sys.argv))
    command("train", processes=True)


if __name__ == "__main__":
    main()
