"""The probability flow of data and their log-density, for a solver."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_finite
from sde_diffusion.denoiser.conditions import chosen
from sde_diffusion.density.prior import LogDensity, log_density
from sde_diffusion.density.trace import Trace
from sde_diffusion.errors import UserError
from sde_diffusion.sampling import ReverseProcess
from sde_diffusion.sde import Number, float64, value_of


class DensityFlow:
    """The flow of [y, int div / D]: the last columns are estimates of the integral of the divergence.

    Divided by D, the log-density has the weight of one dimension of the state in the error of a step.

    Args:
        process: The flow of the state.
        trace: The estimator of the divergence.
        vectors: Its probes, [columns, N or 1, *dims].
        shape: Of the data, [N, *dims].
        create_graph: Whether to keep the graph.
        conditions: Of the denoiser.
        rows: Most items of a network pass, if each can be at a place of its own; None: all are at the same.
    """

    def __init__(
        self,
        process: ReverseProcess,
        trace: Trace,
        vectors: Tensor,
        shape: Sequence[int],
        create_graph: bool,
        conditions: Mapping[str, Any],
        rows: int | None,
    ) -> None:
        self.sde, self.t_end = process.sde, process.t_end
        self.denoiser, self.conditions, self.whole = process.predict, conditions, shape[0]  # also those of parts
        self.process = copy(process)
        self.process.predict = partial(process.predict, **conditions)
        self.trace = trace
        self.vectors = vectors
        self.shape = tuple(shape)
        self.size = math.prod(self.shape[1:])
        self.create_graph = create_graph
        self.apart, self.rows = rows is not None, rows or 0
        self.check = False
        self.items = torch.arange(self.shape[0])
        self.counts = torch.zeros_like(self.items)
        self._scales = process.scale(0.0), process.scale(1.0)

    def time(self, u: Tensor | float) -> tuple[Tensor, Number]:
        """See `Flow`."""
        return self.process.time(u)

    def passes(self, u: Tensor | float) -> int:
        """See `Flow`."""
        return self.process.passes(u)

    @property
    def separable(self) -> DensityFlow | None:
        """The flow, if its items can be at different places; NaN is looked for with all items together."""
        return self if self.apart and not self.check else None

    def part(self, items: Tensor) -> DensityFlow:
        """The flow of some items, whose passes count among those of this one; items: [N], int64, on the CPU."""
        part = copy(self)
        part.items = self.items[items]
        own = {name: chosen(value, part.items, self.whole) for name, value in self.conditions.items()}
        part.process = copy(self.process)
        part.process.predict = partial(self.denoiser, **own)
        if self.vectors.shape[1] == self.shape[0]:
            part.vectors = self.vectors[:, items.to(self.vectors.device)]
        part.shape = (len(items), *self.shape[1:])
        return part

    def slowest(self) -> tuple[int, int]:
        """Which of these items has had the most passes, and how many."""
        most, position = self.counts[self.items].max(0)
        return int(position), int(most)

    @property
    def stretch(self) -> Tensor:
        """log |dy/dx| at the data less that at the noise, D log(scale(0) / scale(1)); [], float64."""
        data, noise = self._scales
        return self.size * (float64(data).log() - float64(noise).log())

    def start(self, x: Tensor) -> Tensor:
        """The state [y, 0] at u = 0 from data [B, *dims]; [B, D + columns]."""
        y = (x * self._scales[0]).flatten(1)
        return torch.cat([y, y.new_zeros(len(y), self.trace.columns)], 1)

    def read(self, state: Tensor, prior: LogDensity) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a state at u = 1 says.

        Returns:
            The log-density of the data, [B], the latents, [B, *dims], their log-density under the prior, [B], and the
            estimates of the integral of the divergence, [B, columns].
        """
        latent = (state[:, : self.size] / self._scales[1]).reshape(self.shape)
        density, estimates = log_density(prior, latent).double(), state[:, self.size :].double() * self.size
        return density + estimates.mean(1) + self.stretch, latent, density, estimates

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
            check_finite(
                f"the drift at t = {value_of(self.process.time(u)[0]):.6g}", out, remedy, UserError, self.items.tolist()
            )
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
        retain = self.create_graph or not self.trace.single_call
        if len(vectors) == 1:
            (product,) = torch.autograd.grad(slope, y, vectors[0], retain_graph=retain, create_graph=self.create_graph)
            return product.unsqueeze(0)
        (products,) = torch.autograd.grad(
            slope, y, vectors, retain_graph=retain, create_graph=self.create_graph, is_grads_batched=True
        )
        return products
