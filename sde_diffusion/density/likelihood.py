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
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_finite
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.denoiser import Denoiser, in_eval_mode, recordable
from sde_diffusion.denoiser.conditions import chosen
from sde_diffusion.density.arguments import check_call
from sde_diffusion.density.prior import GaussianPrior, LogDensity, log_density
from sde_diffusion.density.trace import Trace, trace_of
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import Noise, ReverseProcess
from sde_diffusion.sampling.arguments import check_dtype, check_t_end
from sde_diffusion.sampling.coordinates import Coordinate, UnitVariance, coordinate_of
from sde_diffusion.sampling.ode_kinds import ODEMethod, Solution
from sde_diffusion.sampling.ode_methods import ODESolver
from sde_diffusion.sde import GRIDS, BandLogSNR, Grid, float64, value_of


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
        solver_error: Estimate of the solver's error, [B], in nats; None if the tolerance was met. If the flow was rough
            in time and the tolerance had to be loosened (see `ODESolver`), it is the difference to log_prob with four
            times that tolerance, NaN for an item that is not finite there. It is no bound: if both solutions step over
            the same oscillation, it can be several times too small.
        rtol: The relative tolerance of the solution; `atol` was loosened by the same factor.
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
    **conditions: Any,
) -> Likelihood:
    """Log-density of x under the denoiser's probability flow, at t_end.

    With adams each item takes the steps that it needs by itself, and leaves the batch at the end: a batch costs its
    mean, and a single item far from all training data, which can cost thousands of passes, costs the others nothing.
    The items take their steps together, those of the most difficult one, with other methods, with create_graph, and if
    the denoiser or a condition has settings for each item that cannot be told apart (`Denoiser.per_sample`); a value
    then depends on its batch to within the tolerance. The defaults are those with the fewest passes to an error of 1e-3
    bits per dimension (`python -m benchmarks.likelihood`).

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
        max_nfe: Largest number of network passes of an adaptive method.
        dtype: Type of the state: float64, or float32, which cannot meet tolerances below about 1e-5.
        create_graph: Keep the graph, for derivatives of log_prob with respect to x, the network, and the parameters of
            a learned path; for small data.
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
    sde = denoiser.sde
    t_end = check_t_end(t_end, sde)
    check_dtype(dtype)
    estimator = trace_of(trace, probes)
    solver = ODESolver(method, rtol, atol, steps, max_nfe, options)
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
        apart = not (create_graph or denoiser.per_sample)
        flow = _DensityFlow(process, estimator, vectors, x.shape, create_graph, conditions, apart)
        found = _solved(solver, flow, x)
        ending = GaussianPrior.standard(sde) if prior is None else prior
        latent, density, estimates = flow.read(found.state, ending)
        log_prob = density + estimates.mean(1) + flow.stretch
        error = estimates.std(1) / estimator.columns**0.5 if estimator.columns > 1 else None
        solver_error = None
        if found.coarser is not None:
            _, there, others = flow.read(found.coarser, ending)
            solver_error = (log_prob - there - others.mean(1) - flow.stretch).detach().abs()
        nfe = math.ceil(flow.counts.double().mean())
        return Likelihood(log_prob, density, latent, error, nfe, flow.counts, solver_error, found.rtol)


def _solved(solver: ODESolver, flow: _DensityFlow, x: Tensor) -> Solution:
    """The flow's solution from x to the latents.

    Raises:
        UserError: If it has NaN or infinite numbers; the message says at which t, and for which samples.
    """
    start = flow.start(x)
    found = solver.solution(flow, start, 0.0, 1.0, flow.worst)
    if not bool(torch.isfinite(found.state).all()):
        # Looking at each pass would have waited for the device each time: walk again and look.
        flow.check = True
        solver(flow, start, 0.0, 1.0, flow.worst)
        raise UserError(f"the flow becomes infinite on {flow.sde}: smaller tolerances or more steps may help")
    return found


class _DensityFlow:
    """The flow of [y, int div / D]: the last columns are estimates of the integral of the divergence.

    Divided by D, the log-density has the weight of one dimension of the state in the error of a step.
    """

    def __init__(
        self,
        process: ReverseProcess,
        trace: Trace,
        vectors: Tensor,
        shape: Sequence[int],
        create_graph: bool,
        conditions: Mapping[str, Any],
        apart: bool,
    ) -> None:
        self.sde, self.t_end, self.time, self.passes = process.sde, process.t_end, process.time, process.passes
        self.denoiser, self.conditions = process.predict, conditions
        self.process = copy(process)
        self.process.predict = partial(process.predict, **conditions)
        self.trace = trace
        self.vectors = vectors
        self.shape = tuple(shape)
        self.size = math.prod(self.shape[1:])
        self.create_graph = create_graph
        self.apart = apart
        self.check = False
        self.items = torch.arange(self.shape[0])
        self.counts = torch.zeros_like(self.items)
        self._scales = process.scale(0.0), process.scale(1.0)

    @property
    def separable(self) -> _DensityFlow | None:
        """The flow, if its items can be at different places; NaN is looked for with all items together."""
        return self if self.apart and not self.check else None

    def part(self, items: Tensor) -> _DensityFlow:
        """The flow of some items, whose passes count among those of this one; items: [N], int64, on the CPU."""
        part, batch = copy(self), self.shape[0]
        part.conditions = {name: chosen(value, items, batch) for name, value in self.conditions.items()}
        part.process = copy(self.process)
        part.process.predict = partial(self.denoiser, **part.conditions)
        if self.vectors.shape[1] == batch:
            part.vectors = self.vectors[:, items.to(self.vectors.device)]
        part.shape = (len(items), *self.shape[1:])
        part.items = self.items[items]
        return part

    @property
    def stretch(self) -> Tensor:
        """log |dy/dx| at the data less that at the noise, D log(scale(0) / scale(1)); [], float64."""
        data, noise = self._scales
        return self.size * (float64(data).log() - float64(noise).log())

    def start(self, x: Tensor) -> Tensor:
        """The state [y, 0] at u = 0 from data [B, *dims]; [B, D + columns]."""
        y = (x * self._scales[0]).flatten(1)
        return torch.cat([y, y.new_zeros(len(y), self.trace.columns)], 1)

    def read(self, state: Tensor, prior: LogDensity) -> tuple[Tensor, Tensor, Tensor]:
        """What a state at u = 1 says.

        Returns:
            The latents, [B, *dims], their log-density under the prior, [B], and the estimates of the integral of the
            divergence, [B, columns].
        """
        latent = (state[:, : self.size] / self._scales[1]).reshape(self.shape)
        return latent, log_density(prior, latent).double(), state[:, self.size :].double() * self.size

    def drift(self, u: Tensor | float, state: Tensor) -> Tensor:
        """d[y, int div / D]/du; u: [], or [B] for items at different places."""
        self.counts[self.items] += 0 if self.check else self.passes(u)
        y = state[:, : self.size].reshape(self.shape)
        with torch.enable_grad():
            if not y.requires_grad:
                y = y.detach().requires_grad_()
            slope = self.process.drift(u, y)
            divergence = self.trace.divergence(lambda vectors: self._products(slope, y, vectors), self.vectors)
            out = torch.cat([slope.flatten(1), divergence.to(slope) / self.size], 1)
        if self.check:
            remedy = ": smaller tolerances, a later t_end, or other weights may help"
            check_finite(f"the drift at t = {value_of(self.process.time(u)[0]):.6g}", out, remedy, UserError)
        return out if self.create_graph else out.detach()

    def sizes(self, error: Tensor) -> Tensor:
        """Size of each item's error: the state's root mean square or, if it is more and smooth, the density's; [B]."""
        state = error[:, : self.size].square().mean(1).sqrt()
        return torch.maximum(state, error[:, self.size :].abs().amax(1)) if self.trace.smooth else state

    def worst(self, error: Tensor) -> Tensor:
        """The largest of these sizes."""
        return self.sizes(error.detach()).max()  # the choice of steps is not differentiated

    def _products(self, slope: Tensor, y: Tensor, vectors: Tensor) -> Tensor:
        """Jacobian's transpose times vectors [K, B or 1, *dims]."""
        vectors = vectors.to(slope).expand(len(vectors), *slope.shape)
        if len(vectors) == 1:
            (product,) = torch.autograd.grad(slope, y, vectors[0], retain_graph=True, create_graph=self.create_graph)
            return product.unsqueeze(0)
        (products,) = torch.autograd.grad(
            slope, y, vectors, retain_graph=True, create_graph=self.create_graph, is_grads_batched=True
        )
        return products
