"""`python -m sde_diffusion.likelihood ckpt=PATH split=test out=DIR`: how likely are data under a checkpoint's model?"""

from sde_diffusion.storage import signals


def main() -> None:
    """Entry point of the command."""
    signals.listen()  # before imports that take seconds
    from sde_diffusion.commands.app import command

    command("likelihood")


if __name__ == "__main__":
    main()
