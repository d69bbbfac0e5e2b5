r"""Reverse processes, for samplers and likelihoods alike.

For any eta, the process run backwards in time

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw_bar

has the path's marginals (Song et al. 2021, equations 6 and 13; eta = 1 is the reverse SDE, eta = 0 the probability
flow). As f x - g^2 score / 2 is the velocity v, its drift is v - eta^2 g^2 score / 2: finite wherever v is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sde_diffusion.checks import as_positive
from sde_diffusion.denoiser import Prediction
from sde_diffusion.errors import UserError
from sde_diffusion.sampling.base import Walk, singular
from sde_diffusion.sde import SDE, Grid, Number, add, float64, number, value_of


class Coordinate(ABC):
    """A variable y = scale(t) x in which the reverse process is solved."""

    @abstractmethod
    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """The factor y / x, positive; t: [], float64. Returns [], float64."""

    @abstractmethod
    def drift(self, prediction: Prediction, eta: float) -> Tensor:
        """Drift dy/dt of the reverse process, from what is believed at (x, t); [B, *]."""


@dataclass(frozen=True)
class State(Coordinate):
    """y = x: dy/dt = v - eta^2 g^2 score / 2."""

    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def drift(self, prediction: Prediction, eta: float) -> Tensor:
        """See the class."""
        if not eta:
            return prediction.velocity
        g = prediction.sde.diffusion(prediction.t)
        return add(prediction.velocity, prediction.score, -number(0.5 * (eta * g) ** 2))


@dataclass(frozen=True)
class NoiseToSignal(Coordinate):
    """y = x / alpha, in which the linear drift is gone: dy/dr = (1 + eta^2) eps against r = sigma / alpha.

    From (v - f x) / alpha = (sigma' - f sigma) eps / alpha = r' eps and g^2 = 2 sigma alpha r'. Needs alpha > 0 at the
    ends of the walk.

    References:
        Song et al. 2021, "Denoising Diffusion Implicit Models", equation 14; Karras et al. 2022, section 4.
    """

    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """1 / alpha."""
        return 1 / sde.alpha(t)

    def drift(self, prediction: Prediction, eta: float) -> Tensor:
        """See the class."""
        sde, t = prediction.sde, prediction.t
        rate = -0.5 * sde.log_snr_rate(t) * sde.sigma(t) / sde.alpha(t)  # dr/dt
        return prediction.eps * number((1 + eta**2) * rate)


@dataclass(frozen=True)
class UnitVariance(Coordinate):
    """y = x / sqrt(alpha^2 sigma_data^2 + sigma^2), of unit variance all along the walk.

    Where the data are one Gaussian of standard deviation sigma_data, y does not move at all: what is left for the
    solver is the data's structure. Likelihoods are solved in it.

    Args:
        sigma_data: Standard deviation of the data, positive; its right order of size is enough.

    Raises:
        ValueError: If sigma_data is not positive.

    References:
        Karras et al. 2022, section 5 (c_in).
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma_data", as_positive("sigma_data", self.sigma_data))

    def scale(self, sde: SDE, t: Tensor) -> Tensor:
        """1 / sqrt(alpha^2 sigma_data^2 + sigma^2)."""
        return self._variance(sde, t).rsqrt()

    def drift(self, prediction: Prediction, eta: float) -> Tensor:
        """The drift in x, and x times the rate of the scale."""
        sde, t = prediction.sde, float64(prediction.t)
        variance = self._variance(sde, t)
        rate = sde.alpha(t) * sde.alpha_rate(t) * self.sigma_data**2 + sde.sigma(t) * sde.sigma_rate(t)
        drift = add(State().drift(prediction, eta), prediction.x_t, -number(rate / variance))
        return drift * number(variance.rsqrt())

    def _variance(self, sde: SDE, t: Tensor) -> Tensor:
        return (sde.alpha(t) * self.sigma_data).square() + sde.sigma(t).square()


class Flow(Protocol):
    """What a solver of ordinary differential equations asks for: dy/du = drift(u, y), u in [0, 1] -> t."""

    sde: SDE
    t_end: float

    def time(self, u: Tensor | float) -> tuple[Tensor, Number]:
        """t and dt/du at u."""

    def passes(self, u: Tensor | float) -> int:
        """Network passes that the drift at u costs."""

    def drift(self, u: Tensor | float, y: Tensor) -> Tensor:
        """dy/du, of y's shape."""


class ReverseProcess:
    """The reverse process of a path in a chosen coordinate y = scale(t) x and a grid's time u in [0, 1] -> t.

    u = 0 is t_end and u = 1 is t_max: samplers walk from u = 1 to 0, likelihoods from 0 to 1. With eta = 0, `drift` is
    the ordinary differential equation dy/du of the probability flow, differentiable in y.

    Args:
        predict: The denoiser with its conditions: (x [B, *dims], t [] float64) -> Prediction.
        sde: The path.
        grid: The map u -> t, a continuous one.
        t_end: The time at u = 0.
        eta: Share of noise, at least 0.
        coordinate: The variable y; x itself if not given.
        passes_at: Network passes that `predict` costs at t (`Denoiser.passes_at`); 1 if not given.
    """

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor], Prediction],
        sde: SDE,
        grid: Grid,
        t_end: float,
        eta: float = 0.0,
        coordinate: Coordinate | None = None,
        passes_at: Callable[[Tensor], int] = lambda t: 1,
    ) -> None:
        self.predict = predict
        self.sde = sde
        self.grid = grid
        self.t_end = t_end
        self.eta = eta
        self.coordinate = State() if coordinate is None else coordinate
        self.passes_at = passes_at
        self._clock: tuple[float, Tensor, Number] | None = None
        self._recording = torch.is_grad_enabled()  # whether gradients are to reach the path's parameters, if it has any

    def time(self, u: Tensor | float) -> tuple[Tensor, Number]:
        """t and dt/du at u (brought back to [0, 1] where a solver oversteps it); float64 []."""
        u = min(max(float(u), 0.0), 1.0)
        if self._clock is None or self._clock[0] != u:  # drift and diffusion ask in turn
            self._clock = (u, *self._time(u))
        return self._clock[1:]

    def _time(self, u: float) -> tuple[Tensor, Number]:
        # Outside inference mode, under which Lightning validates and which records nothing to differentiate.
        with torch.inference_mode(False), torch.enable_grad():
            place = torch.tensor([u], dtype=torch.float64, requires_grad=True)
            moving = self._recording and self.grid.time(self.sde, place.detach(), self.t_end).requires_grad
            t = self.grid.time(self.sde, place, self.t_end)
            slope = None
            if t.requires_grad:
                (slope,) = torch.autograd.grad(t, place, create_graph=moving, allow_unused=True)
            if slope is None:
                raise ValueError(
                    f"{self.grid} is a list of times without steps in between, which torchsde and torchdiffeq need: "
                    "use a continuous grid (UniformTime, QuadraticTime, UniformLogSNR, KarrasRho)"
                )
        t = (t if moving else t.detach()).clamp(self.t_end, self.sde.t_max)
        return t.squeeze(0), number(slope.squeeze(0))

    def passes(self, u: Tensor | float) -> int:
        """Network passes that the drift at u costs."""
        return self.passes_at(self.time(u)[0])

    def scale(self, u: Tensor | float) -> Number:
        """The factor y / x at u.

        Raises:
            ValueError: If the path makes it infinite there.
        """
        scale = number(self.coordinate.scale(self.sde, self.time(u)[0]))
        if not math.isfinite(value_of(scale)):
            raise singular(self.sde)
        return scale

    def drift(self, u: Tensor | float, y: Tensor) -> Tensor:
        """Drift dy/du of the reverse process; y: [B, *dims].

        Raises:
            ValueError: If the path makes it infinite at an end. (Not before the walk: which ends are looked at is the
                solver's affair, and whether sigma = 0 can be passed the denoiser's.)
        """
        t, rate = self.time(u)
        scale = self.scale(u)
        x = y if scale == 1 else y / scale
        prediction = self.predict(x, t)
        drift = self.coordinate.drift(prediction, self.eta) * rate
        if not 1e-12 < float(u) < 1 and not _finite(drift) and _finite(x) and _finite(prediction.output):
            raise singular(self.sde)
        return drift

    def diffusion(self, u: Tensor | float) -> Number:
        """Diffusion coefficient of y against u, eta g scale sqrt(dt/du), the same for every dimension and state."""
        if not self.eta:  # also where g is infinite
            return 0.0
        t, rate = self.time(u)
        return number(self.eta * self.sde.diffusion(t) * self.coordinate.scale(self.sde, t) * float64(rate).sqrt())


def solver_frames(run: Walk, process: ReverseProcess, start: float, end: float) -> dict[str, Any]:
    """`places` and `keep` of a solver that is to keep a walk's frames; nothing if there are none."""
    frames = run.frames
    if frames is None:
        return {}

    def keep(u: float, y: Tensor) -> None:
        frames.keep(y / process.scale(u), value_of(process.time(u)[0]))

    return {"places": frames.places(process, start, end), "keep": keep}


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


class LostError(AssertionError):
    """An adaptive solver has come upon numbers that are none (torchsde and torchdiffeq assert that it does not)."""


class Watch:
    """A flow's drift for an adaptive solver: notes where the solver is, and ends a walk that gets nowhere.

    Args:
        process: The flow.
        max_nfe: Most network passes.
        advice: Settings to try where it gets nowhere.
    """

    def __init__(self, process: Flow, max_nfe: int, advice: str = "larger rtol and atol, or a larger max_nfe") -> None:
        self.process = process
        self.max_nfe = max_nfe
        self.advice = advice
        self.nfe = 0
        self.last: Tensor | None = None
        self.failure: AssertionError | None = None
        # A step of the solvers here takes two to thirteen slopes; six span the better part of one.
        self._recent: deque[float] = deque(maxlen=6)

    def __call__(self, u: Tensor | float, y: Tensor) -> Tensor:
        """The drift at (u, y).

        Raises:
            UserError: If max_nfe passes have been made.
            LostError: If u is not a number.
        """
        if math.isnan(u):
            raise LostError
        if self.nfe >= self.max_nfe:
            raise self.unmet(f"after max_nfe = {self.max_nfe} network passes it")
        self.nfe += self.process.passes(u)
        self._recent.append(value_of(self.process.time(u)[0]))
        try:
            self.last = self.process.drift(u, y)
        except AssertionError as error:  # the denoiser's own, which is not to be taken for the solver's
            self.failure = error
            raise
        return self.last

    def unmet(self, subject: str) -> UserError:
        """An error that says where the solver got stuck."""
        t, stride = max(self._recent), max(self._recent) - min(self._recent)
        return UserError(
            f"the adaptive solver cannot meet its tolerance: {subject} is at t = {t:.6g}, between "
            f"{self.process.t_end:g} and {self.process.sde.t_max:g}, with steps of about {stride:.2g}. Try "
            f"{self.advice}; a float64 state, a later t_end or a fixed-step method may help too"
        )

    def broken(self) -> bool:
        """Whether the last drift has numbers that are none (then the sampler's caller finds out which)."""
        return self.last is not None and not _finite(self.last)
