"""Methods for stochastic differential equations by name: torchsde's, and what they need."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_diffusion.sampling.reverse import ReverseProcess
from sde_diffusion.sampling.solver_options import NotNegative
from sde_diffusion.sde import Number

if TYPE_CHECKING:
    from sde_diffusion.sampling.brownian import SeededBrownian

Drift = Callable[[float, Tensor], Tensor]


class TorchSDE:
    """Adapter that presents a reverse process to torchsde: flattened, in increasing time tau = -steps u.

    Every step has length one exactly, so that rounding cannot add a tiny last step.

    Args:
        process: The process.
        drift: Its drift, (u, y [B, *dims]) -> dy/du.
        shape: Shape of the state, [B, *dims].
        steps: Number of steps.
        up: Whether tau = steps u instead, from data to noise, for a deterministic process.
        sde_type: ito or stratonovich, as the method requires; the two are the same, as the diffusion does not depend on
            the state.
        memory: Number of drifts that are cached, for solvers that evaluate the same one again (torchsde does so once
            before the first step, `srk` in each step, and an adaptive solver after each rejected step).
    """

    noise_type: str

    def __init__(
        self,
        process: ReverseProcess,
        drift: Drift,
        shape: torch.Size,
        steps: int,
        sde_type: str,
        memory: int = 1,
        up: bool = False,
    ) -> None:
        self.process = process
        self.drift = drift
        self.shape = shape
        self.rate = (1 if up else -1) / steps  # of u against tau
        self.sde_type = sde_type
        self.memory = memory
        self._known: OrderedDict[tuple[float, int], tuple[Tensor, Tensor]] = OrderedDict()

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        """Drift dy/dtau, [B, d]."""
        place = float(tau)
        key = (place, id(y))  # the cache holds the tensor too, so that no other can have its identity
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key][1]
        drift: Tensor = self.drift(place * self.rate, y.view(self.shape)).flatten(1).mul_(self.rate)
        self._known[key] = y, drift
        if len(self._known) > self.memory:
            self._known.popitem(last=False)
        return drift

    def diffusion(self, tau: Tensor) -> Number:
        """Diffusion coefficient in tau."""
        return self.process.diffusion(float(tau) * self.rate) * math.sqrt(abs(self.rate))


class AdditiveNoise(TorchSDE):
    """For methods that are cheaper, or of higher order, if the diffusion does not depend on the state."""

    noise_type = "additive"

    def g_prod(self, tau: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Diffusion times v, [B, d]."""
        return v * self.diffusion(tau)


class DiagonalNoise(TorchSDE):
    """For methods that need the diffusion itself, which as additive noise would be a matrix [B, d, d]."""

    noise_type = "diagonal"

    def f_and_g(self, tau: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Drift, and the diffusion of each dimension (one number, expanded)."""
        diffusion = self.diffusion(tau)
        if not isinstance(diffusion, Tensor):
            diffusion = torch.full((), diffusion, dtype=y.dtype, device=y.device)
        return self.f(tau, y), diffusion.to(y).expand_as(y)


@dataclass(frozen=True)
class SDEMethod:
    """A method for stochastic differential equations: one of torchsde's, and what it requires.

    A method of your own is a subclass that overrides `solve`.

    Attributes:
        name: torchsde's name of it.
        sde_type: ito or stratonovich.
        adapter: The form of the diffusion.
        levy_area: What it requires of the Brownian motion, by torchsde's name.
        single_pass: Whether each step costs one network pass, and there are no others.
        takes: Its options.
    """

    name: str
    sde_type: str
    adapter: type[TorchSDE] = AdditiveNoise
    levy_area: str = "none"
    single_pass: bool = False
    takes: Mapping[str, Any] = field(default_factory=lambda: {"dt_min": NotNegative})

    def solve(self, sde: TorchSDE, y: Tensor, times: Tensor, brownian: SeededBrownian, **settings: Any) -> Tensor:
        """Solve dy = f dtau + g dW from times[0] to times[-1].

        Args:
            sde: The equation, with torchsde's `f`, and `g_prod` or `f_and_g`; see `TorchSDE`.
            y: State at times[0], [B, d].
            times: [N], float64, increasing: both ends, and frames that are wanted in between; whole numbers unless
                adaptive.
            brownian: W(b) - W(a) = brownian(a, b), [B, d].
            **settings: Other arguments of `torchsde.sdeint`: adaptive, rtol, atol, dt_min, options.

        Returns:
            The states at these times, [N, B, d], by steps of length 1 unless adaptive.
        """
        # Imported here: SciPy comes with it, half a second that `import sde_diffusion` need not cost.
        import torchsde

        # torchsde tests g_prod with torch's global generator, whose state is restored.
        with torch.random.fork_rng([y.device] if y.device.type == "cuda" else []):
            found: Tensor = torchsde.sdeint(sde, y, times, bm=brownian, method=self.name, dt=1.0, **settings)
        return found


_METHODS = (
    SDEMethod("euler", "ito", single_pass=True),
    SDEMethod("milstein", "ito", single_pass=True, takes={"dt_min": NotNegative, "grad_free": bool}),
    SDEMethod("srk", "ito", levy_area="space-time"),
    SDEMethod("euler_heun", "stratonovich", single_pass=True),
    SDEMethod("heun", "stratonovich"),
    SDEMethod("midpoint", "stratonovich"),
    SDEMethod("log_ode", "stratonovich", levy_area="foster"),
    SDEMethod("reversible_heun", "stratonovich", DiagonalNoise),
)
METHODS: dict[str, SDEMethod] = {method.name: method for method in _METHODS}
"""torchsde's methods by name: all but adjoint_reversible_heun, which is only for gradients."""
