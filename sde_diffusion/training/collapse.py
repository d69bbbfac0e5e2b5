"""Latent variables that are not used: posterior collapse."""

from __future__ import annotations

from collections.abc import Sequence

_USED = 0.1
"""In nats: with a KL divergence below this, a latent variable is not used."""


def unused_latents(kl: Sequence[float]) -> list[int]:
    """The latent variables, counted from 1, whose KL divergence in nats is about 0."""
    return [t for t, nats in enumerate(kl, 1) if nats < _USED]


def collapse_message(unused: Sequence[int], kl: Sequence[float], step: int, advice: str) -> str:
    """What to say of these latent variables, counted from 1, at a training step; `advice` is what to try."""
    if sum(kl) < _USED:
        which, what = "the latents are not used", f"their KL divergence is {sum(kl):.2g} nats"
    else:
        names = " and ".join(f"z_{t}" for t in unused)
        verb = "are" if len(unused) > 1 else "is"
        which = f"{names} {verb} not used"
        what = "their KL divergences are " + ", ".join(f"{nats:.2g}" for nats in kl) + " nats from z_1 up,"
    return f"{which}: {what} at step {step:,} (posterior collapse); try {advice}"
