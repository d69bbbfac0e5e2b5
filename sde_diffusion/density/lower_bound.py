r"""The evidence lower bound on log p(x), for every path; it needs no differential equation.

    log p(x) >= E log p(x | x_{t_end})  -  KL(q(x_{t_max} | x) || prior)  -  diffusion,

for states x_t from t_end to t_max. With T steps the diffusion term is a sum of KL divergences of Gaussians, both with
the posterior's variance,

    sum_i KL(q(x_s | x_t, x) || q(x_s | x_t, x0_hat)) = sum_i 1/2 (e^(lambda_s - lambda_t) - 1) E|eps_hat - eps|^2,

and in continuous time its limit, 1/2 int E|eps_hat - eps|^2 dlambda.

References: Kingma et al. 2021, "Variational Diffusion Models", equations 11-18; Sohl-Dickstein et al. 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.denoiser import Denoiser, in_eval_mode, repeated
from sde_diffusion.denoiser.conditions import chosen
from sde_diffusion.density.arguments import check_call
from sde_diffusion.density.bound import LEAST_DRAWS, Bound, student_factor
from sde_diffusion.density.bound_times import Continuous, Discrete
from sde_diffusion.density.decoders import Decoder, GaussianDecoder
from sde_diffusion.density.prior import GaussianPrior, LogDensity, Prior, SampledPrior
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Noise
from sde_diffusion.sampling.arguments import check_dtype, check_t_end
from sde_diffusion.sde import GRIDS, SDE, Grid, UniformLogSNR, float64, number

_SIGMA_DATA = 0.5  # an assumed scale of the data, which affects only the variance
_PRIOR_WEIGHT = 4  # weight, in differences of strata, of the prior for the control variate's slope
_END_DRAWS = 16  # draws of the noise at the decoder and at the prior, which cost no network pass

ELBO_DRAWS = 1 << 42
"""Number of the first draw that the bound uses of a sample's noise stream; see `trace.PROBE_DRAWS`."""


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    steps: int | None = 1000,
    draws: int | None = None,
    *,
    decoder: Decoder | None = None,
    prior: LogDensity | None = None,
    grid: str | Grid | None = None,
    t_end: float | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    rows: int = 4096,
    dtype: torch.dtype = torch.float64,
    create_graph: bool = False,
    **conditions: Any,
) -> Bound:
    """Unbiased estimate of a lower bound on log p(x); each draw is one prediction.

    Times are drawn uniformly in the grid's u, one in each of `draws` strata, independently for each sample (in t this
    is importance sampling with density 1 / (dt/du)); |noise|^2 is a control variate. The standard error is computed
    from the differences d of neighbouring strata. It is multiplied by the ratio of the 97.5% quantiles of Student's t
    and the normal distribution, with (sum d^2)^2 / (2 sum d^4) degrees of freedom, at least 2 (a Satterthwaite-type
    estimate), because in few dimensions rare large draws dominate the bound. With few draws the variation of the terms
    along the path counts as noise, and log_prob ± 1.96 std_error is much too wide. If an error is due to rare draws
    that were not drawn, as for data on a few separate points, the interval is too short. Fewer than 4 draws give no
    standard error. Measured coverage: benchmarks/README.md.

    Args:
        denoiser: The denoiser.
        x: Data on [-1, 1], [B, *dims].
        steps: T, the number of discrete steps; None for continuous time.
        draws: Predictions for each sample; by default all T steps, or 128 in continuous time.
        decoder: p(x | x_{t_end}): `GaussianDecoder()` by default, for a bound on a density; `LevelDecoder(L)` for data
            on levels.
        prior: Log-density at t_max; N(0, sigma(t_max)^2 I) by default.
        grid: Spacing of the steps, and density of the draws, a name of `GRIDS` or a `Grid`; uniform in log-SNR by
            default, for which every draw in continuous time has the same weight.
        t_end: The time of the first state; the decoder's `default_t_end` by default.
        seed: The draws of sample i are a function of seed + i, unless seeds are given.
        seeds: One integer for each sample.
        rows: Largest batch of a network pass, which may contain draws of several times.
        dtype: Type in which errors are computed, float32 or float64.
        create_graph: Keep the graph, for derivatives of the bound and its parts with respect to the network, to x and
            to the parameters of a learned path: pathwise, through the times too.
        **conditions: Passed to the denoiser, such as label=[B].

    Returns:
        The bound and its parts; see `Bound`. The standard error is None for fewer than 4 draws.

    Raises:
        TypeError: If the denoiser is not one, x not a tensor of floats, or a condition is not known.
        ValueError: If an argument is out of its range or the shapes do not fit.
        UserError: If a prediction is NaN or infinite; the message says at which t, and for which samples.
    """
    seeds, conditions = check_call(denoiser, x, seed, seeds, conditions)
    sde = denoiser.sde
    if steps is not None:
        steps = check_count("steps", steps, also=", or None for continuous time")
    most = ", and at most the number of steps"
    draws = check_count("draws", (128 if steps is None else steps) if draws is None else draws, also=most)
    if steps is not None and draws > steps:
        raise ValueError(f"draws must be an integer of at least 1{most}; got {draws}")
    rows = check_count("rows", rows)
    check_dtype(dtype)
    with (
        torch.inference_mode(torch.is_inference_mode_enabled() and not create_graph),
        torch.set_grad_enabled(create_graph),
        sde.on_cpu(),
        in_eval_mode(denoiser, not create_graph),
    ):
        return _bound(
            denoiser,
            x.to(dtype),
            steps,
            draws,
            seeds,
            conditions,
            rows,
            GaussianDecoder() if decoder is None else decoder,
            GaussianPrior.standard(sde) if prior is None else prior,
            as_instance("grid", UniformLogSNR() if grid is None else grid, GRIDS, Grid),
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
) -> Bound:
    """`elbo` with checked arguments."""
    sde, dtype = denoiser.sde, x.dtype
    t_end = check_t_end(decoder.default_t_end(sde) if t_end is None else t_end, sde)
    noise, clock = Noise(seeds, x.shape[1:], x.device, dtype), Noise(seeds, (draws,), "cpu", torch.float64)
    # u, one draw for each sample in each stratum, [draws, B].
    u = (torch.arange(draws).unsqueeze(1) + torch.special.ndtr(clock.normal(ELBO_DRAWS)).T) / draws
    times = Continuous(sde, grid, t_end) if steps is None else Discrete(sde, grid, t_end, steps)
    begin, end = times.ends
    for t in (begin,) if steps is None else (begin, end):
        if not math.isfinite(sde.log_snr(t).item()):
            raise ValueError(
                f"log-SNR is infinite at t = {t:g} of {sde}: a decoder needs some noise (t_end > 0), and the last "
                "of discrete steps some signal (an earlier t_max, or steps=None)"
            )
    terms = _controlled(*_errors(denoiser, x, u, times, noise, rows, conditions))
    diffusion = terms.mean(0)
    after = ELBO_DRAWS + 1 + draws
    at_decoder, at_prior = range(after, after + _END_DRAWS), range(after + _END_DRAWS, after + 2 * _END_DRAWS)
    decoded = torch.stack([decoder.expected(sde, begin, x, noise.normal(draw)).double() for draw in at_decoder])
    kls = torch.stack([prior_kl(sde, end, prior, x, noise.normal(draw)) for draw in at_prior])
    reconstruction, kl = decoded.mean(0), kls.mean(0)
    error = None
    if draws >= LEAST_DRAWS:
        ends = (decoded.var(0) + kls.var(0)) / _END_DRAWS
        error = (_student_variance(terms.detach()) + ends).sqrt().detach()
    parts, nfe = torch.stack([diffusion, kl]), draws * denoiser.passes
    return Bound(reconstruction - kl - diffusion, reconstruction, parts, error, nfe, ("diffusion", "prior"))


def _errors(
    denoiser: Denoiser,
    x: Tensor,
    u: Tensor,
    times: Discrete | Continuous,
    noise: Noise,
    rows: int,
    conditions: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Weighted squared errors of the noise at u [draws, B], and control variates for them; [draws, B] each.

    Raises:
        UserError: If an error is NaN or infinite.
    """
    sde = denoiser.sde
    terms, controls = (torch.empty(u.shape, dtype=torch.float64, device=x.device) for _ in range(2))
    at_once = max(1, rows // len(x))
    for start in range(0, len(u), at_once):
        part = u[start : start + at_once]
        t, weight = (value.to(x.device) for value in times(part.flatten()))
        eps = torch.cat([noise.normal(ELBO_DRAWS + 1 + start + i) for i in range(len(part))])
        own = {key: repeated(value, len(part), len(x)) for key, value in conditions.items()}
        clean = repeated(x, len(part))
        noisy = sde.perturb(clean, t, eps)
        few = [slice(first, first + rows) for first in range(0, len(clean), rows)]  # one, unless B > rows
        each = [{key: chosen(value, some, len(clean)) for key, value in own.items()} for some in few]
        belief = torch.cat([denoiser(noisy[i], t[i], **given).eps for i, given in zip(few, each, strict=True)])
        error, square = ((v.flatten(1).double().square().sum(1)) for v in (belief - eps, eps))
        control = (square - eps[0].numel()) * (1 + sde.log_snr(t).neg().exp() / _SIGMA_DATA**2) ** -2
        for values, rows_of in ((error, terms), (control, controls)):
            rows_of[start : start + len(part)] = (weight * values).reshape(len(part), len(x))
    fine = torch.isfinite(terms)
    if not bool(fine.all()):
        draw = int((~fine.all(1)).nonzero()[0])
        lost = (~fine[draw]).nonzero().flatten().tolist()
        t = times(u[draw])[0][lost[0]]
        raise UserError(
            f"the denoiser's output at t = {float(t):.6g} is not finite for {len(lost)} of {len(x)} samples (indices "
            f"{str(lost[:8])[1:-1]}{', ...' if len(lost) > 8 else ''}): check the network's weights"
        )
    return terms, controls


def _controlled(terms: Tensor, controls: Tensor) -> Tensor:
    """Terms minus a multiple of the controls, whose expectation is zero; both [draws, B].

    If the noise is small compared to the data it cannot be predicted, and the error is mostly |eps|^2, whose
    expectation D is known. The multiple is estimated by regression for each sample, from each half of the draws for the
    other half, so that the bound stays unbiased. The regression uses differences of neighbouring strata, to exclude the
    variation along the path. If the assumed scale of the data is right the slope is 1: a prior of the weight of four
    differences favours 1, and dominates if there are few draws.
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
    """Squared standard error of the mean of the strata, [draws, B] -> [B], scaled for use with normal quantiles."""
    differences = terms.diff(dim=0)
    squares = differences.square()
    freedom = squares.sum(0).square() / (2 * squares.square().sum(0)).clamp(min=1e-300)
    # Between few strata the variation along the path exceeds the noise: two degrees of freedom are enough then.
    wide = student_factor(freedom.clamp(2, max(2.0, 2 * (len(terms) - 1) / 3)))
    # The mean square difference of two neighbours is the sum of their variances.
    return squares.mean(0) / (2 * len(terms)) * wide.square()


def best_t_end(denoiser: Denoiser, decoder: Decoder, x: Tensor, candidates: Sequence[float], **options: Any) -> float:
    """The t_end among several at which a decoder gives the largest bound; choose it on other data than those scored.

    Args:
        denoiser: The denoiser.
        decoder: The decoder.
        x: Data to choose by, such as the validation split, [N, *dims].
        candidates: Times to try.
        **options: Arguments of `elbo`.

    Returns:
        One of candidates.
    """
    return max(candidates, key=lambda t: float(elbo(denoiser, x, decoder=decoder, t_end=t, **options).log_prob.mean()))


def prior_kl(sde: SDE, t: float, prior: LogDensity, x: Tensor, noise: Tensor) -> Tensor:
    """KL(q(x_t | x) || prior), in nats; [B], in closed form or by standard normal noise [B, *]."""
    prior = prior if isinstance(prior, Prior) else SampledPrior(prior)
    alpha, sigma = number(sde.alpha(t)), number(sde.sigma(t))
    entropy = 0.5 * math.prod(x.shape[1:]) * (math.log(2 * math.pi) + 2 * float64(sigma).log() + 1)
    return -entropy - prior.expected(alpha * x, sigma, noise).double()
