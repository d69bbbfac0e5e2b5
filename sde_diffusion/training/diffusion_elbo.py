r"""The variational bound with all its terms, as an objective, for paths that are learned with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.checks import check_kind
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.density import Decoder, GaussianDecoder, LevelDecoder
from sde_diffusion.density.lower_bound import prior_kl
from sde_diffusion.density.prior import GaussianPrior
from sde_diffusion.errors import UserError
from sde_diffusion.sde import SDE, Time, float64
from sde_diffusion.training.adaptive_times import AdaptiveTimes
from sde_diffusion.training.objective import DenoisingScoreMatching
from sde_diffusion.training.time_sampling import TimeSampling
from sde_diffusion.training.weighting import ELBOWeighting


class DiffusionELBO(DenoisingScoreMatching):
    """-(E log p(x | x_{t_min}) - KL(q(x_{t_max} | x) || N(0, sigma^2 I)) - diffusion) / D.

    The diffusion term is denoising score matching with the weights of the bound. On a path with fixed ends the other
    two terms do not depend on anything that is learned; on a `LearnedVPSDE` they are what its ends are learned by.

    The bound does not depend on what lies between the ends, which decides how much its estimate from one draw of the
    time varies. It is learned in two ways, neither of which changes the value of the loss or another gradient:

    - `AdaptiveTimes`, the default, measure the error at each noise level, and draw the times accordingly;
    - a schedule with parameters (`KnotSchedule`, `MonotoneSchedule`) gets the gradient of E loss^2 for t uniform on
      it, in the same backward pass. With `ScheduleTimes` the times are uniform on it.

    For the gradient, let t_i be drawn with density q(t) at log-SNR lambda_i. With a schedule on which -dlambda/dt is
    r(lambda), uniform t have E loss^2 = E_q [loss_i^2 r(lambda_i) / r_i] with r_i = -lambda'(t_i) / q(t_i), whose
    gradient in r needs no derivative of the network.

    Args:
        times: The distribution of t; `AdaptiveTimes()` by default.
        decoder: p(x | x_{t_min}); None: for data on levels `LevelDecoder`, weighted by the frequencies of the levels in
            the training data (see `fit_statistics`), and `GaussianDecoder` for other data.
        levels: Number of levels of the data; None for continuous data.
        shape: Shape of one item; None: without those frequencies.

    Raises:
        TypeError: If times is not a `TimeSampling`, or decoder not a `Decoder`.
        ValueError: If levels are less than 2.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", equations 11 to 18, and section 5.1.
    """

    is_bound = True

    def __init__(
        self,
        times: TimeSampling | None = None,
        decoder: Decoder | None = None,
        levels: int | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(ELBOWeighting(), AdaptiveTimes() if times is None else times)
        self.levels, self.shape = levels, shape
        if decoder is None:
            decoder = GaussianDecoder() if levels is None else LevelDecoder(levels, shape=shape)
        self.decoder: Decoder = decoder
        check_kind("decoder", self.decoder, Decoder)

    def check(self, model: Denoiser) -> None:
        """See `Objective.check`.

        Raises:
            UserError: If the model's path has nothing to learn.
        """
        if not model.sde.learned:
            raise UserError(
                f"{type(model.sde).__name__} has no schedule to learn: take sde=learned for objective=vdm, or "
                "objective=elbo, the bound on a fixed path"
            )

    @property
    def uses_data(self) -> bool:
        """See `Objective.uses_data`: whether the decoder uses the data."""
        return self.decoder.uses_data

    def fit_statistics(self, x: Tensor) -> None:
        """See `Objective.fit_statistics`."""
        self.decoder.fit_statistics(x)

    def draw(self, model: Denoiser, x0: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """As `DenoisingScoreMatching.draw`, and the noise `end_noise` of x_{t_min}, [B, *]."""
        found = super().draw(model, x0, generator)
        if generator is None:
            return {**found, "end_noise": torch.randn_like(x0)}
        return {**found, "end_noise": torch.randn(x0.shape, generator=generator).to(x0)}

    def __call__(  # type: ignore[override]
        self,
        denoiser: Denoiser,
        x0: Tensor,
        t: Time | None = None,
        noise: Tensor | None = None,
        end_noise: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Loss of each sample, [B]; see `DenoisingScoreMatching.__call__`."""
        sde, size = denoiser.sde, x0[0].numel()
        t = self.times(sde, len(x0), x0.device) if t is None else float64(t).expand(len(x0))
        with torch.no_grad():  # before this batch changes the distribution that its own times were drawn from
            drawn = -sde.log_snr_rate(t) * self.times.importance(sde, t)
        diffusion = (sde.t_max - sde.t_min) * super().__call__(denoiser, x0, t, noise, **conditions)
        if denoiser.training:
            diffusion = diffusion + self._variance(sde, t, diffusion.detach(), drawn).to(diffusion)
        with sde.on_cpu():
            end_noise = torch.randn_like(x0) if end_noise is None else end_noise
            reconstruction = self.decoder.expected(sde, sde.t_min, x0, end_noise)
            prior = prior_kl(sde, sde.t_max, GaussianPrior.standard(sde), x0, end_noise)
        return diffusion + ((prior - reconstruction) / size).to(diffusion)

    @staticmethod
    def _variance(sde: SDE, t: Tensor, losses: Tensor, drawn: Tensor) -> Tensor:
        """Zero, [B], with the gradient of E loss^2 in the path between its ends."""
        with torch.no_grad():
            log_snr = sde.log_snr(t)
        speed = sde.log_snr_speed(log_snr)
        if speed is None or not speed.requires_grad:
            return torch.zeros_like(t)
        squares: Tensor = losses.double().square() / drawn * speed
        return squares - squares.detach()
