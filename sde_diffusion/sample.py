"""`python -m sde_diffusion.sample ckpt=PATH sampler=ode n=64 seed=0 out=DIR`: draw samples from a checkpoint."""

from sde_diffusion.storage import signals


def main() -> None:
    """Entry point of the command."""
    signals.listen()  # before imports that take seconds
    from sde_diffusion.commands.app import command

    command("sample")


if __name__ == "__main__":
    main()
