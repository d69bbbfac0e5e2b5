"""`python -m sde_diffusion.evaluate ckpt=PATH sampler=ode n=2000 out=DIR`: how good are a checkpoint's samples?"""

from sde_diffusion.storage import signals


def main() -> None:
    """Entry point of the command."""
    signals.listen()  # before imports that take seconds
    from sde_diffusion.commands.app import command

    command("evaluate")


if __name__ == "__main__":
    main()
