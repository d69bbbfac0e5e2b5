r"""The evidence lower bound: a likelihood without an equation to solve, for every path.

    log p(x) >= E log p(x | z_0)  -  KL(q(z_1 | x) || prior)  -  diffusion,

z_0 at t_end and z_1 at t_max. With T steps the diffusion term is a sum of KLs of Gaussians, exact since both sides have
the posterior's variance,

    sum_i KL(q(z_s | z_t, x) || q(z_s | z_t, x0_hat)) = sum_i 1/2 (e^(lambda_s - lambda_t) - 1) E|eps_hat - eps|^2,

and in continuous time its limit 1/2 int E|eps_hat - eps|^2 dlambda.

References: Kingma et al. 2021, "Variational Diffusion Models", equations 11-18; Sohl-Dickstein et al. 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density.arguments import check_call
from sde_diffusion.density.decoders import Decoder, GaussianDecoder
from sde_diffusion.density.places import Continuous, Discrete
from sde_diffusion.density.prior import GaussianPrior, LogDensity, Prior, SampledPrior
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Noise
from sde_diffusion.sampling.arguments import check_dtype, check_t_end
from sde_diffusion.sde import SDE, Grid, UniformLogSNR, float64, number

_SIGMA_DATA = 0.5  # a guess at the data's size, on which only the variance depends
_PRIOR_WEIGHT = 4  # differences of strata that the slope of the control variate is worth from the start
_END_DRAWS = 16  # of the noise at the decoder and at the prior, which cost no network pass

ELBO_DRAWS = 1 << 42
"""Number of the first draw of a sample's stream that the bound takes; see `trace.PROBE_DRAWS`."""


@dataclass
class ELBO:
    """What `elbo` returns; all in nats, [B], float64.

    Attributes:
        log_prob: The bound: reconstruction - prior - diffusion.
        reconstruction: E log p(x | z_0).
        prior: KL(q(z_1 | x) || prior).
        diffusion: The steps' KLs.
        std_error: Error of log_prob due to the draws of t and noise, such that log_prob ± 1.96 std_error holds the
            bound's value in 95 cases of 100; None for less than 4 draws. See `elbo`.
        nfe: Network passes for each sample.
    """

    log_prob: Tensor
    reconstruction: Tensor
    prior: Tensor
    diffusion: Tensor
    std_error: Tensor | None
    nfe: int


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    steps: int | None = 1000,
    draws: int | None = None,
    *,
    decoder: Decoder | None = None,
    prior: LogDensity | None = None,
    grid: Grid | None = None,
    t_end: float | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    rows: int = 4096,
    dtype: torch.dtype = torch.float64,
    create_graph: bool = False,
    **conditions: Any,
) -> ELBO:
    """Lower bound on log p(x), unbiased, one prediction a draw.

    Times are drawn uniformly in the grid's u, one in each of `draws` strata (and so by importance in t, with density
    1 / (dt/du)), for each sample by itself; the noise's square serves as a control variate. The standard error comes
    from the differences d of neighbouring strata. It is scaled by t / z, the 97.5% quantiles of Student's distribution
    and the normal one, with (sum d^2)^2 / (2 sum d^4) degrees of freedom, at least 2 (a Satterthwaite-type estimate),
    because rare large draws carry the bound in few dimensions. With few draws, where the terms' course along the path
    counts as noise, log_prob ± 1.96 std_error is much too wide. An error that a rare draw carries alone cannot be seen
    before it is met: for data on a few separate points the interval is then too short. Fewer than 4 draws give no
    standard error. Measured coverage: benchmarks/README.md.

    Args:
        denoiser: The denoiser.
        x: Data on [-1, 1], [B, *dims].
        steps: T, the number of discrete steps; None for continuous time.
        draws: Predictions for each sample; all T steps if not given, 128 in continuous time.
        decoder: p(x | z_0): `GaussianDecoder()` if not given, for which the bound is one on a density;
            `LevelDecoder(L)` for data on levels.
        prior: Log-density at t_max, in place of N(0, sigma(t_max)^2 I).
        grid: Spacing of the steps, and density of the draws; uniform in log-SNR if not given, for which every draw in
            continuous time has the same weight.
        t_end: Where the decoder stands; its `place` if not given.
        seed: Sample i's draws are a function of seed + i.
        seeds: One integer for each sample in place of seed + i.
        rows: Rows of a network pass, in which draws of several times are put together.
        dtype: In which errors are taken.
        create_graph: Keep the graph, for derivatives of the bound and its parts with respect to the network, to x and
            to the parameters of a learned path: pathwise, through the times too.
        **conditions: Passed to the denoiser, such as label=[B].

    Returns:
        The bound and its parts.

    Raises:
        TypeError: If the denoiser is not one, x not a tensor of floats, or a condition is not known.
        ValueError: If an argument is out of its range or the shapes do not fit.
        UserError: If the denoiser's answer is not finite: at which t, and of which samples.
    """
    seeds, conditions = check_call(denoiser, x, seed, seeds, conditions)
    sde = denoiser.sde
    if steps is not None:
        steps = check_count("steps", steps, also=", or None for continuous time")
    most = ", and at most the number of steps"
    draws = check_count("draws", (128 if steps is None else steps) if draws is None else draws, also=most)
    if steps is not None and draws > steps:
        raise ValueError(f"draws must be a whole number of at least 1{most}; got {draws}")
    rows = check_count("rows", rows)
    check_dtype(dtype)
    with (
        torch.inference_mode(torch.is_inference_mode_enabled() and not create_graph),
        torch.set_grad_enabled(create_graph),
        sde.on_cpu(),
    ):
        return _bound(
            *(denoiser, x.to(dtype), steps, draws, seeds, conditions, rows),
            GaussianDecoder() if decoder is None else decoder,
            GaussianPrior.standard(sde) if prior is None else prior,
            UniformLogSNR() if grid is None else grid,
            t_end,
        )


def _bound(
    denoiser: Denoiser,
    x: Tensor,
    steps: int | None,
    draws: int,
    seeds: Sequence[int],
    conditions: dict[str, Any],
    rows: int,
    decoder: Decoder,
    prior: LogDensity,
    grid: Grid,
    t_end: float | None,
) -> ELBO:
    """`elbo` of arguments that have been checked."""
    sde, dtype = denoiser.sde, x.dtype
    t_end = check_t_end(decoder.place(sde) if t_end is None else t_end, sde)
    noise, clock = Noise(seeds, x.shape[1:], x.device, dtype), Noise(seeds, (draws,), "cpu", torch.float64)
    # Each sample's own place within each stratum, [draws, B].
    places = (torch.arange(draws).unsqueeze(1) + torch.special.ndtr(clock.normal(ELBO_DRAWS)).T) / draws
    times = Continuous(sde, grid, t_end) if steps is None else Discrete(sde, grid, t_end, steps)
    begin, end = times.ends
    for place in (begin,) if steps is None else (begin, end):
        if not math.isfinite(sde.log_snr(place).item()):
            raise ValueError(
                f"log-SNR is infinite at t = {place:g} of {sde}: a decoder needs some noise (t_end > 0), and the last "
                "of discrete steps some signal (an earlier t_max, or steps=None)"
            )
    terms = _controlled(*_errors(denoiser, x, places, times, noise, rows, conditions))
    diffusion = terms.mean(0)
    after = ELBO_DRAWS + 1 + draws
    at_decoder, at_prior = range(after, after + _END_DRAWS), range(after + _END_DRAWS, after + 2 * _END_DRAWS)
    decoded = torch.stack([decoder.expected(sde, begin, x, noise.normal(draw)).double() for draw in at_decoder])
    kls = torch.stack([_prior_kl(sde, end, prior, x, noise.normal(draw)) for draw in at_prior])
    reconstruction, kl = decoded.mean(0), kls.mean(0)
    error = None
    if draws >= 4:
        ends = (decoded.var(0) + kls.var(0)) / _END_DRAWS
        error = (_student_variance(terms.detach()) + ends).sqrt().detach()
    return ELBO(reconstruction - kl - diffusion, reconstruction, kl, diffusion, error, draws * denoiser.passes)


def _errors(
    denoiser: Denoiser,
    x: Tensor,
    places: Tensor,
    times: Discrete | Continuous,
    noise: Noise,
    rows: int,
    conditions: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Weighted squared errors of the noise at places [draws, B], and their controls; [draws, B] each.

    Raises:
        UserError: If an error is not finite: at which t, and of which samples.
    """
    sde = denoiser.sde
    terms, controls = (torch.empty(places.shape, dtype=torch.float64, device=x.device) for _ in range(2))
    at_once = max(1, rows // len(x))
    for start in range(0, len(places), at_once):
        part = places[start : start + at_once]
        t, weight = (value.to(x.device) for value in times(part.flatten()))
        eps = torch.cat([noise.normal(ELBO_DRAWS + 1 + start + i) for i in range(len(part))])
        repeated = {key: _repeat(value, len(part), len(x)) for key, value in conditions.items()}
        clean = x.repeat(len(part), *(1,) * (x.ndim - 1))
        belief = denoiser(sde.perturb(clean, t, eps), t, **repeated).eps
        error, square = ((v.flatten(1).double().square().sum(1)) for v in (belief - eps, eps))
        control = (square - eps[0].numel()) * (1 + sde.log_snr(t).neg().exp() / _SIGMA_DATA**2) ** -2
        for values, rows_of in ((error, terms), (control, controls)):
            rows_of[start : start + len(part)] = (weight * values).reshape(len(part), len(x))
    fine = torch.isfinite(terms)
    if not bool(fine.all()):
        draw = int((~fine.all(1)).nonzero()[0])
        lost = (~fine[draw]).nonzero().flatten().tolist()
        t = times(places[draw])[0][lost[0]]
        raise UserError(
            f"the denoiser's answer at t = {float(t):.6g} is not finite for {len(lost)} of {len(x)} samples (numbers "
            f"{str(lost[:8])[1:-1]}{', ...' if len(lost) > 8 else ''}): look at the weights"
        )
    return terms, controls


def _controlled(terms: Tensor, controls: Tensor) -> Tensor:
    """Terms less a multiple of controls, whose expectation is zero; both [draws, B].

    Where noise is small beside the data it cannot be guessed, and the error is |eps|^2 for the most part, whose
    expectation is known: D. How much of it to take off is found by regression for each sample, in each half of the
    draws for the other half, which leaves the estimate unbiased. The regression is on differences of neighbouring
    strata, for the terms' own course along the path is not to be explained. Its slope is 1 where the guess at the
    data's size is right: as much weight as four differences speaks for 1, and decides where draws are few.
    """
    if len(terms) < 2:
        return terms - controls
    out = terms.clone()
    for half, other in ((0, 1), (1, 0)):
        rise, run = (values[other::2].diff(dim=0) for values in (terms, controls))
        first = _PRIOR_WEIGHT * controls[other::2].square().mean(0)
        slope = ((rise * run).sum(0) + first) / (run.square().sum(0) + first).clamp(min=1e-300)
        out[half::2] -= slope.clamp(0, 1) * controls[half::2]
    return out


def _student_variance(terms: Tensor) -> Tensor:
    """Squared standard error of the strata's mean, [draws, B] -> [B], widened to be used with normal quantiles."""
    differences = terms.diff(dim=0)
    squares = differences.square()
    freedom = squares.sum(0).square() / (2 * squares.square().sum(0)).clamp(min=1e-300)
    # Between few strata the terms' own course is wider than their noise: two degrees are enough then.
    quantile = stdtrit(freedom.clamp(2, max(2.0, 2 * (len(terms) - 1) / 3)).cpu().numpy(), 0.975)
    # The mean square difference of two neighbours is the sum of their variances.
    wide = torch.from_numpy(quantile / ndtri(0.975)).to(terms)
    return squares.mean(0) / (2 * len(terms)) * wide.square()


def best_place(denoiser: Denoiser, decoder: Decoder, x: Tensor, places: Sequence[float], **options: Any) -> float:
    """The t_end of several at which a decoder gives the greatest bound for data, not those that are scored.

    Args:
        denoiser: The denoiser.
        decoder: The decoder.
        x: Data to choose by, such as the validation split, [N, *dims].
        places: Times to try.
        **options: Of `elbo`.

    Returns:
        One of places.
    """
    return max(places, key=lambda t: float(elbo(denoiser, x, decoder=decoder, t_end=t, **options).log_prob.mean()))


def _repeat(value: Any, times: int, batch: int) -> Any:
    """A condition for `times` copies of the batch: tensors with a row for each sample are repeated."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value.repeat(times, *(1,) * (value.ndim - 1))
    return value


def _prior_kl(sde: SDE, t: float, prior: LogDensity, x: Tensor, noise: Tensor) -> Tensor:
    """KL(q(z_1 | x) || prior), [B], z_1 at t."""
    prior = prior if isinstance(prior, Prior) else SampledPrior(prior)
    alpha, sigma = number(sde.alpha(t)), number(sde.sigma(t))
    entropy = 0.5 * math.prod(x.shape[1:]) * (math.log(2 * math.pi) + 2 * float64(sigma).log() + 1)
    return -entropy - prior.expected(alpha * x, sigma, noise).double()
