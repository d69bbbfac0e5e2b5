"""Adams' method with adaptive steps, as an `ODEMethod` of `ode_methods`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from sde_diffusion.errors import UserError
from sde_diffusion.sampling.adams import RoughError, adams
from sde_diffusion.sampling.adams_by_item import adams_by_item
from sde_diffusion.sampling.flow import Flow, MonitoredDrift, Separable
from sde_diffusion.sampling.ode_kinds import Adaptive, Ends, Norm, Solution
from sde_diffusion.sampling.solver_options import integer

if TYPE_CHECKING:
    from sde_diffusion.sampling.ode_methods import ODESolver

ROUGH = "the denoiser is rough in time (it has noise, or turns thousands of times on the way)"
"""The reason given in messages."""

_LOOSEST, _FACTOR, _ENOUGH, _MOST = 0.01, 4.0, 300.0, 1000
"""If the slope is rough in time: the first relative tolerance; the factor between tolerances; the least difference of
two solutions, in requested tolerances, for which a further one is computed; and the most passes expected for it."""


class Adams(Adaptive):
    """This library's Adams method; see `adams`, `adams_by_item` and `ODESolver`."""

    by_item = True
    takes: Mapping[str, Any] = {"order": integer(1, 6)}  # beyond, its steps are tiny

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`order`, 4 by default."""
        return {"order": 4, **super().options(name, given)}

    def solve(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Tensor:
        """See `ODEMethod.solve`; warns if the tolerance had to be loosened."""
        found = self.solution(solver, flow, y, ends, norm)
        if found.coarser is not None:
            off = float((found.state - found.coarser).detach().square().mean().sqrt())
            warnings.warn(
                f"{ROUGH}: solved with rtol={found.rtol:.2g} in place of {solver.rtol:g}, which changes the states by "
                f"{off:.2g} (root mean square) from four times that",
                stacklevel=2,
            )
        return found.state

    def solution(self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm) -> Solution:
        """See `ODEMethod.solution`; if the slope is rough in time, with the least tolerance that the passes allow."""
        visited: list[tuple[float, Tensor]] = []
        found = self._settled(solver, flow, y, ends, norm, visited)
        for u, state in visited:
            if ends.keep is not None:
                ends.keep(u, state)
        return found

    def _settled(
        self, solver: ODESolver, flow: Flow, y: Tensor, ends: Ends, norm: Norm, visited: list[tuple[float, Tensor]]
    ) -> Solution:
        """`solution`; puts the states at `ends.places` into `visited`, those of the returned solution alone."""
        walk = _Walks(self, solver.monitor(flow), y, ends, norm, visited)
        try:
            return Solution(walk(solver), None, solver.rtol)
        except RoughError as error:
            if error.items is None or error.state is None:
                return self._loosened(solver, walk)
            items, state = error.items, error.state
        some = items.to(y.device)
        part = cast(Separable, flow).part(items)
        found = self._loosened(solver, _Walks(self, solver.monitor(part), y[some], ends, norm, visited))
        coarser = None if found.coarser is None else state.index_copy(0, some, found.coarser)
        return Solution(state.index_copy(0, some, found.state), coarser, found.rtol)

    def _loosened(self, solver: ODESolver, walk: _Walks) -> Solution:
        """The solution with looser tolerances, of a flow whose slope is rough in time."""
        factor, monitor = max(_LOOSEST / solver.rtol, _FACTOR), walk.monitor
        found: Solution | None = None
        while True:
            looser = copy(solver)
            looser.rtol, looser.atol, looser.settles = factor * solver.rtol, factor * solver.atol, True
            before = monitor.nfe
            try:
                state = walk(looser)
            except UserError:
                if found is None or found.coarser is None:
                    raise
                return found
            found = Solution(state, None if found is None else found.state, looser.rtol)
            passes = monitor.nfe - before
            factor /= _FACTOR
            most = min(_MOST, solver.max_nfe - monitor.nfe)
            if found.coarser is not None:
                scale = solver.atol + solver.rtol * state.abs()
                off = float(walk.norm((state - found.coarser).detach() / scale.detach()))
                if not off > _ENOUGH or factor < 1 or _FACTOR * passes > most:
                    return found

    def attempt(self, solver: ODESolver, drift: MonitoredDrift, y: Tensor, ends: Ends, norm: Norm) -> Tensor | None:
        """See `Adaptive.attempt`."""
        order, tolerances = int(solver.options["order"]), (solver.rtol, solver.atol)
        separable: Separable | None = getattr(drift.process, "separable", None)
        if separable is not None and ends.keep is None:
            span = (y, ends.start, ends.end, *tolerances, order)
            return adams_by_item(separable, drift, *span, test_roughness=not solver.settles)
        if ends.keep is not None and ends.places and ends.places[0] == ends.start:
            ends.keep(ends.start, y)
            ends = replace(ends, places=ends.places[1:])
        test, places, keep = not solver.settles, ends.places, ends.keep
        walk = (drift, y, ends.start, ends.end, *tolerances, norm, order)
        return adams(*walk, test_roughness=test, places=places, keep=keep)


@dataclass(frozen=True)
class _Walks:
    """Solutions of one flow with one tolerance or another; `visited` has the states at `ends.places` of the last."""

    method: Adams
    monitor: MonitoredDrift
    y: Tensor
    ends: Ends
    norm: Norm
    visited: list[tuple[float, Tensor]]

    def __call__(self, solver: ODESolver) -> Tensor:
        """The state at the end."""
        on_the_way: list[tuple[float, Tensor]] = []
        ends = self.ends
        if ends.keep is not None:
            ends = replace(ends, keep=lambda u, y: on_the_way.append((u, y)))
        state = self.method.monitored(solver, self.monitor, self.y, ends, self.norm)
        self.visited[:] = on_the_way
        return state
