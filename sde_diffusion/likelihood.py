"""`python -m sde_diffusion.likelihood ckpt=PATH split=test out=DIR`: how likely are data under a checkpoint's model?"""

from sde_diffusion.commands.app import command


def main() -> None:
    """Entry point of the command."""
    command("likelihood")


if __name__ == "__main__":
    main()
