"""`python -m sde_diffusion.restore ckpt=PATH operator=mask operator.path=MASK.png images=DIR`: repair pictures."""

from sde_diffusion.storage import signals


def main() -> None:
    """Entry point of the command."""
    signals.listen()  # before imports that take seconds
    from sde_diffusion.commands.app import command

    command("restore")


if __name__ == "__main__":
    main()
