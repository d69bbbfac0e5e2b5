"""In what precision a model can be trained."""

from __future__ import annotations

from sde_diffusion.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
"""What of Lightning's trainer.precision a model can be trained in."""


def check_precision(precision: str) -> None:
    """Check that a model can be trained in a precision of Lightning's.

    Raises:
        UserError: If it cannot.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} would keep the weights themselves in low precision, where small updates "
            f"and the moving average round to nothing; the precisions that work are {', '.join(PRECISIONS)} (16-mixed "
            "on GPUs only)"
        )
