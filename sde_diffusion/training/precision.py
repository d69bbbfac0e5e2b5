"""The precisions in which a model can be trained."""

from __future__ import annotations

from sde_diffusion.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
"""The values of Lightning's trainer.precision in which a model can be trained."""


def check_precision(precision: str) -> None:
    """Check that a model can be trained in one of Lightning's precisions.

    Raises:
        UserError: If it cannot.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} would store the weights in low precision, where small updates and the "
            f"moving average are lost to rounding; choose from {', '.join(PRECISIONS)} (16-mixed on GPUs only)"
        )
