"""DPM-Solver++ and UniPC: exponential integrators on the data prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.checks import as_number, check_bool, check_count
from sde_diffusion.sampling.exponential import Steps, looking_back, step_weights
from sde_diffusion.sampling.multistep import Coefficients, MultistepSampler, Stage
from sde_diffusion.sampling.walk import Walk
from sde_diffusion.sde import SDE, Grid, Number, UniformLogSNR, number, numbers

_INNER = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""Inner nodes of the singlestep methods by order, in half log-SNR."""


class DPMSolver(MultistepSampler):
    r"""x_s = (sigma_s / sigma_t) e^(-eta^2 h) x_t + alpha_s int k e^(-k (ell_s - ell)) P(ell) dell + noise.

    P interpolates the data predictions: multistep through those of the last `order` steps, one pass a step; singlestep
    through one at the beginning and order - 1 within the step, `order` passes a step. Order 1 is DDIM (eta = 0).

    Global order for eta = 0: singlestep, `order`. Multistep, 1 and 2 for orders 1 and 2. With order 3 the usual start
    (first and second steps of orders 1 and 2) leaves an error of second order, so that the global order is 2;
    `singlestep_start` spends one more pass on a first step of order 2, which restores order 3. In walks from the prior
    that error is scaled by alpha(t_max), and order 3 is observed down to errors of 1e-5 or less: in up to 20 passes a
    shorter step is worth more than the extra pass, hence the default. Weak order for eta > 0: multistep 2 from order 2
    on; singlestep, whose intermediate times have no noise, 1.

    Order 2 is the safe choice in few passes, order 3 the better one from about 15 to 20 passes on
    (benchmarks/README.md).

    Args:
        steps: Number of network passes, at least 1.
        order: 1, 2 or 3 (see above).
        singlestep: Use predictions within the step instead of those of earlier steps.
        singlestep_start: Multistep: take the first step by the singlestep method of order 2.
        eta: Scale of the noise, at least 0: 1 is the reverse SDE, 0 the probability flow.
        grid: See `Sampler`; uniform in log-SNR by default. If the last step is much longer in log-SNR than those
            before it, as with uniform t down to 1e-5, the polynomial extrapolates far beyond its nodes, and a walk of
            few steps fails.
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If steps < 1, order is not 1, 2 or 3, or eta < 0.

    References:
        Lu et al. 2022, "DPM-Solver++", algorithms 1 and 2 and section 5. The third order of the published code (and of
        its ports) uses half of the second divided difference and is of order 2 whatever the start; this one uses all.
    """

    always_shown = ("steps", "order", "eta")

    def __init__(
        self,
        steps: int = 10,
        order: int = 2,
        singlestep: bool = False,
        singlestep_start: bool = False,
        eta: float = 0.0,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(steps, UniformLogSNR() if grid is None else grid, denoise, t_end)
        self.order = check_count("order of DPM-Solver++", order, most=3)
        self.singlestep = check_bool("singlestep", singlestep)
        self.singlestep_start = check_bool("singlestep_start", singlestep_start)
        self.eta = as_number("eta", eta)
        if not self.eta >= 0:
            raise ValueError(f"eta must not be negative (0: deterministic, 1: reverse SDE); got {eta!r}")

    def transitions(self, passes: int) -> int:
        """Number of steps for a number of passes; in a singlestep method the fewest with at most `order` passes each.

        The passes are then distributed evenly: 7 passes of order 3 make steps of orders 3, 2, 2 rather than 3, 3, 1,
        whose last step would dominate the error of the walk.
        """
        if self.singlestep:
            return -(-passes // self.order)
        return passes - 1 if self._extra_pass(passes) else passes

    def _extra_pass(self, passes: int) -> bool:
        return self.singlestep_start and self.order > 2 and passes > 2

    def climb(self, x: Tensor, run: Walk) -> Tensor:
        """The steps of the same method, up; see `Sampler.climb`."""
        if self.eta:
            raise ValueError(f"only the deterministic walk (eta = 0) can be inverted; got eta={self.eta}")
        return self.follow_up(x, run)

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """Multistep or singlestep weights; see `MultistepSampler.coefficients`."""
        steps = Steps.between(sde, times[:-1], times[1:])
        table = Coefficients(
            from_x=numbers(steps.from_x(self.eta)),
            from_predictions=[],
            from_noise=numbers(steps.from_noise(self.eta)) if self.eta else None,
        )
        passes, n = self.steps - self.denoise, len(times) - 1
        if self.singlestep:
            for i in range(n):
                self._inner(table, sde, times, i, (passes + n - 1 - i) // n)
            return table
        ell = 0.5 * sde.log_snr(times)
        for part, nodes in looking_back(ell, self.order):
            table.from_predictions += numbers(step_weights(steps.part(part), nodes, self.eta))
        if self._extra_pass(passes):
            table.from_predictions[0] = []
            self._inner(table, sde, times, 0, 2)
        return table

    def _inner(self, table: Coefficients, sde: SDE, times: Tensor, i: int, order: int) -> None:
        """Set the coefficients of step i to those of the singlestep method of an order."""
        t, s = times[i], times[i + 1]
        ell_t, ell_s = 0.5 * sde.log_snr(t), 0.5 * sde.log_snr(s)
        nodes, stages = [0.0], []
        for place in _INNER[order]:
            u = sde.time(2 * torch.lerp(ell_t, ell_s, place))
            inner = Steps.between(sde, t.reshape(1), u.reshape(1))
            seen = torch.tensor([nodes], dtype=torch.float64) / place
            stages.append(Stage(number(u), number(inner.from_x()[0]), numbers(inner.from_predictions(seen)[0])))
            nodes.insert(0, place)
        step = Steps.between(sde, t.reshape(1), s.reshape(1))
        weights = numbers(step.from_predictions(torch.tensor([nodes], dtype=torch.float64), self.eta)[0])
        table.from_predictions[i : i + 1] = [weights]
        if stages:
            table.stages[i] = stages


class UniPC(MultistepSampler):
    """Predictor: DPM-Solver++ multistep. Corrector: the same step again, with the prediction at its end as a node.

    The prediction at the predicted state is used by the corrector and by the next predictor: one pass a step, and one
    order more. The last step is not corrected. The first step, of order 1 corrected to 2, leaves an error of third
    order, so that the global order is min(order + 1, 3). In walks from the prior that error is small (see `DPMSolver`),
    and order + 1 is observed.

    As with `DPMSolver`, order 2 is the safe choice in few passes, order 3 the better one in many
    (benchmarks/README.md).

    Args:
        steps: Number of network passes, at least 1.
        order: Order of the predictor, 1, 2 or 3 (see above).
        grid: See `Sampler`; uniform in log-SNR by default (see `DPMSolver`).
        denoise: See `Sampler`.
        t_end: See `Sampler`.

    Raises:
        ValueError: If steps < 1 or order is not 1, 2 or 3.

    References:
        Zhao et al. 2023, "UniPC", algorithms 1 and 2 with B_2(h) = e^h - 1; for three and more nodes B(h) cancels.
    """

    always_shown = ("steps", "order")

    def __init__(
        self,
        steps: int = 10,
        order: int = 2,
        grid: str | Grid | None = None,
        denoise: bool = True,
        t_end: float | None = None,
    ) -> None:
        super().__init__(steps, UniformLogSNR() if grid is None else grid, denoise, t_end)
        self.order = check_count("order of UniPC", order, most=3)

    def coefficients(self, sde: SDE, times: Tensor) -> Coefficients:
        """The weights of predictor and corrector; see `MultistepSampler.coefficients`."""
        steps = Steps.between(sde, times[:-1], times[1:])
        predictor: list[list[Number]] = []
        corrector: list[list[Number]] = []
        for part, nodes in looking_back(0.5 * sde.log_snr(times), self.order):
            some = steps.part(part)
            weights = step_weights(some, nodes)
            predictor += numbers(weights)
            # The new prediction is node 1; the changes of the weights are to be in the order newest first.
            better = step_weights(some, torch.cat([nodes[:, :1], torch.ones_like(nodes[:, :1]), nodes[:, 1:]], 1))
            others = torch.cat([better[:, :1], better[:, 2:]], 1) - weights
            corrector += numbers(torch.cat([better[:, 1:2], others], 1))
        return Coefficients(numbers(steps.from_x()), predictor, corrector=corrector)
