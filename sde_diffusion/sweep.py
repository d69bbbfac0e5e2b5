"""`python -m sde_diffusion.sweep file=grid n=6 out=DIR`: run a wandb sweep file on this machine, without a server."""

import sys

from sde_diffusion.storage import signals


def main() -> None:
    """Entry point of the command; arguments after `--` are added to every run's command line."""
    signals.listen()  # before imports that take seconds
    from sde_diffusion.commands.app import command

    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    added = sys.argv[place + 1 :]
    sys.argv = sys.argv[:place]
    command("sweep", added=added)


if __name__ == "__main__":
    main()
