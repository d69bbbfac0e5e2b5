"""Confidence intervals of differences of two models' figures; how they are made is said in `metrics.intervals`."""

from __future__ import annotations

import torch

from sde_diffusion.metrics.intervals import Interval, Reference, WithIntervals, check_settings, named


def difference(
    a: WithIntervals,
    b: WithIntervals,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    reference: Reference = "sampled",
) -> dict[str, Interval]:
    """Figures of `a` minus those of `b`, with confidence intervals: is one sampler better than the other?

    Sample i of one is paired with sample i of the other, so that what both have from the same seed or the same
    reference cancels. Among several processes both must be divided alike.

    Args:
        a: Metric of the first model's samples.
        b: Metric of the same class of the second's, in the same order of seeds, against the same real data.
        level: Coverage.
        resamples: See `WithIntervals.interval`.
        seed: Of halves and groups.
        reference: See `WithIntervals.interval`.

    Returns:
        An `Interval` for each figure; the difference is significant where it leaves 0 out.

    Raises:
        ValueError: If the metrics are of two kinds, or have different numbers of samples.
        UserError: If there are too few samples.
    """
    check_settings(level, resamples, reference)
    if type(a) is not type(b):
        raise ValueError(f"a difference takes two metrics of one class; got {type(a).__name__}, {type(b).__name__}")
    with a.joined(), b.joined():
        sets = a._sets(), b._sets()
    shapes = [tuple(part.shape) for pair in sets for part in pair]
    if shapes[:2] != shapes[2:] or not torch.equal(sets[0][0], sets[1][0]):
        raise ValueError(
            f"a difference takes the same real data and equal numbers of samples; got real and generated features of "
            f"shapes {shapes[:2]} and {shapes[2:]}, {'the same' if shapes[0] == shapes[2] else 'other'} numbers of real"
        )
    z = a._quantile(level, *(shape[0] for shape in shapes[:2]))
    spreads = [metric._spread(*pair, resamples, seed, reference) for metric, pair in zip((a, b), sets, strict=True)]
    values = [metric._values(*pair) for metric, pair in zip((a, b), sets, strict=True)]
    first, second = spreads[0].minus(spreads[1], a._scale(values[0]), b._scale(values[1])).variances()
    gap = a.present(values[0]) - b.present(values[1])
    # Of shares at least that of two samples that change sides: what has not been seen in n samples has a share of up to
    # 3 / n, with 95% confidence.
    least = torch.tensor([2.0 * (name in a.proportions) for name in a.names], device=gap.device) / shapes[1][0] ** 2
    error = torch.maximum(first - second, least).sqrt()
    margin = z * error
    return named(a.names, level, gap, gap - margin, gap + margin, error)
