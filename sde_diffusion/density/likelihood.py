r"""Exact log-likelihood through the probability flow.

Along dy/du = drift(u, y) the log-density changes by -div drift (the instantaneous change of variables), hence from data
at u = 0 to noise at u = 1, with y = scale(u) x in D dimensions,

    log p(x_0) = log p_T(x_1) + int_0^1 div_y drift du + D log(scale(0) / scale(1)).

References: Chen et al. 2018, "Neural Ordinary Differential Equations", theorem 1; Song et al. 2021, "Score-Based
Generative Modeling through SDEs", section 4.3 and appendix D.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_count
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.denoiser import Denoiser, in_eval_mode, recordable
from sde_diffusion.density.arguments import check_call
from sde_diffusion.density.density_flow import DensityFlow
from sde_diffusion.density.prior import GaussianPrior, LogDensity
from sde_diffusion.density.trace import Trace, trace_of
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Noise, ReverseProcess
from sde_diffusion.sampling.arguments import check_dtype, check_t_end
from sde_diffusion.sampling.coordinates import Coordinate, UnitVariance, coordinate_of
from sde_diffusion.sampling.ode_kinds import ODEMethod, Solution
from sde_diffusion.sampling.ode_methods import ODESolver
from sde_diffusion.sde import GRIDS, BandLogSNR, Grid


@dataclass
class Likelihood:
    """The result of `log_likelihood`.

    Attributes:
        log_prob: Log-density of each x at t_end, in nats, [B], float64.
        prior: Log-density of the latents under the prior, a term of log_prob, [B].
        latent: The states at t_max that the flow takes x to, [B, *].
        std_error: Standard error of log_prob due to the trace's probes, [B]; None if there is only one estimate.
        nfe: Network passes (each a forward pass and, for each probe, one gradient with respect to the input): the mean
            over the items, rounded up. With adams each item takes its own steps; otherwise all take the same.
        passes: Network passes of each item, [B].
        solver_error: Estimate of the solver's error, [B], in nats; None if the tolerance was met for all. If the flow
            was rough in time and the tolerance had to be loosened (see `ODESolver`), it is the difference to log_prob
            with four times that tolerance: 0 for items that met theirs, NaN for one that is not finite there. It is no
            bound: if both solutions step over the same oscillation, it can be several times too small.
        rtol: The relative tolerance; if it had to be loosened for some items, theirs. `atol` was loosened by the same
            factor.
    """

    log_prob: Tensor
    prior: Tensor
    latent: Tensor
    std_error: Tensor | None
    nfe: int
    passes: Tensor
    solver_error: Tensor | None = None
    rtol: float | None = None


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trace: str | Trace = "hutchinson",
    probes: int = 1,
    seed: int = 0,
    *,
    seeds: Sequence[int] | None = None,
    prior: LogDensity | None = None,
    method: str | ODEMethod = "adams",
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    coordinate: str | Coordinate | None = None,
    grid: str | Grid | None = None,
    t_end: float | None = None,
    max_nfe: int = 10_000,
    dtype: torch.dtype = torch.float64,
    create_graph: bool = False,
    rows: int | None = None,
    **conditions: Any,
) -> Likelihood:
    """Log-density of x under the denoiser's probability flow, at t_end.

    With adams each item takes the steps that it needs by itself. One that is at the end leaves, and of more than `rows`
    items the next takes its place: a batch costs its mean, and a single item far from all training data, which can cost
    thousands of passes, costs the others nothing. With other methods, with create_graph, and if the denoiser has
    settings for each item that cannot be told apart (`Denoiser.per_sample`), `rows` items at a time take the steps of
    the most difficult one; a value then depends on its batch to within the tolerance. If the flows of some items are
    rough in time, these are solved with a looser tolerance, the same for all of them (`Likelihood.rtol`). The defaults
    are those with the fewest passes to an error of 1e-3 bits per dimension (`python -m benchmarks.likelihood`).

    Args:
        denoiser: The denoiser; its network computes in its own precision (or autocast's), the state in `dtype`.
        x: Data on [-1, 1], [B, *dims], dequantised if they have levels.
        rtol: Relative tolerance of a step, for the state and the log-density per dimension, largest over the samples.
        atol: Absolute tolerance, of the same.
        trace: hutchinson (signs), gaussian, hutch++ or exact (D gradients an evaluation), or a `Trace`.
        probes: Number of vectors, of an estimator given by name; two or more of hutchinson or gaussian give a standard
            error.
        seed: The probes of sample i are a function of seed + i, unless seeds are given.
        seeds: One integer for each sample.
        prior: Log-density at t_max in place of N(0, sigma(t_max)^2 I): [B, *dims] -> [B] (see `GaussianPrior.matched`).
        method: As for `ODESolver`: a name or an `ODEMethod` of your own.
        steps: As for `ODESolver`.
        options: As for `ODESolver`.
        coordinate: The variable that is solved for, as for `ODESampler`; `UnitVariance(0.25)` by default, as most
            directions of images vary little: it is nearer to their scale than 0.5, the size of the whole.
        grid: Time change in which the solver steps, a name of `GRIDS` or a `Grid`; `BandLogSNR()` by default.
        t_end: The time of x; the path's t_min by default.
        max_nfe: Largest number of network passes of an item, of an adaptive method.
        dtype: Type of the state: float64, or float32, which cannot meet tolerances below about 1e-5.
        create_graph: Keep the graph, for derivatives of log_prob with respect to x, the network, and the parameters of
            a learned path; for small data.
        rows: Most items of a network pass; None: all. One call with many items is faster than a call for every `rows`
            of them: a pass costs more for each item if it has few.
        **conditions: Passed to the denoiser, such as label=[B].

    Returns:
        The log-densities.

    Raises:
        TypeError: If the denoiser is not one, x not a tensor of floats, or a condition is not known.
        ValueError: If an argument is out of its range or the shapes do not fit.
        UserError: If the tolerance cannot be met, or the drift is NaN or infinite; the message says at which t, and for
            which samples.
    """
    seeds, conditions = check_call(denoiser, x, seed, seeds, conditions)
    rows = len(x) if rows is None else check_count("rows", rows, also=", or None for all items")
    if denoiser.per_sample and rows < len(x):
        raise ValueError(f"rows must be at least {len(x)}, as the denoiser has settings for each of so many items")
    sde = denoiser.sde
    t_end = check_t_end(t_end, sde)
    check_dtype(dtype)
    estimator = trace_of(trace, probes)
    solver = ODESolver(method, rtol, atol, steps, max_nfe, options)
    apart = solver.method.by_item and not (create_graph or denoiser.per_sample)
    # Outside inference mode, which Lightning uses for tests and in which nothing can be differentiated.
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(create_graph),
        sde.on_cpu(),
        in_eval_mode(denoiser, not create_graph),
    ):
        conditions = {name: recordable(value) for name, value in conditions.items()}
        process = ReverseProcess(
            denoiser,
            sde,
            as_instance("grid", BandLogSNR() if grid is None else grid, GRIDS, Grid),
            t_end,
            coordinate=coordinate_of(UnitVariance(0.25) if coordinate is None else coordinate),
            passes_at=denoiser.passes_at,
        )
        x = x.to(dtype) if create_graph else x.detach().clone().to(dtype)
        vectors = estimator.vectors(Noise(seeds, x.shape[1:], x.device, dtype))
        flow = DensityFlow(process, estimator, vectors, x.shape, create_graph, conditions, rows if apart else None)
        parts = [flow] if apart or len(x) <= rows else [flow.part(items) for items in torch.split(flow.items, rows)]
        found = _joined([_solved(solver, part, x[part.items.to(x.device)], rows) for part in parts])
        ending = GaussianPrior.standard(sde) if prior is None else prior
        log_prob, latent, density, estimates = flow.read(found.state, ending)
        error = estimates.std(1) / estimator.columns**0.5 if estimator.columns > 1 else None
        solver_error = None
        if found.coarser is not None:
            solver_error = (log_prob - flow.read(found.coarser, ending)[0]).detach().abs()
        nfe = math.ceil(flow.counts.double().mean())
        return Likelihood(log_prob, density, latent, error, nfe, flow.counts, solver_error, found.rtol)


def _solved(solver: ODESolver, flow: DensityFlow, x: Tensor, rows: int) -> Solution:
    """The flow's solution from x to the latents; rows: most items of a network pass.

    Raises:
        UserError: If it has NaN or infinite numbers; the message says at which t, and for which samples.
    """
    start = flow.start(x)
    found = solver.solution(flow, start, 0.0, 1.0, flow.worst)
    if not bool(torch.isfinite(found.state).all()):
        # Looking at each pass would have waited for the device each time: walk again and look.
        for items in torch.split(torch.arange(len(x)), rows):
            part = flow.part(items)
            part.check = True
            solver(part, start[items.to(x.device)], 0.0, 1.0, part.worst)
        raise UserError(f"the flow becomes infinite on {flow.sde}: smaller tolerances or more steps may help")
    return found


def _joined(found: list[Solution]) -> Solution:
    """Solutions of some items after each other, with the loosest tolerance."""
    rough = any(one.coarser is not None for one in found)
    coarser = [one.state if one.coarser is None else one.coarser for one in found]
    state, rtol = torch.cat([one.state for one in found]), max(one.rtol for one in found)
    return Solution(state, torch.cat(coarser) if rough else None, rtol)
