"""Hierarchical variational autoencoders: several latent variables, z_1 next to the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_choice, check_sizes
from sde_diffusion.variational.chain import Autoencoder, Inference, Level
from sde_diffusion.variational.gaussian import DiagonalGaussian
from sde_diffusion.variational.observation import ObservationModel


def precision_weighted(evidence: DiagonalGaussian, prior: DiagonalGaussian) -> DiagonalGaussian:
    """The product of two normal densities: 1/s^2 = 1/s_e^2 + 1/s_p^2, mean = s^2 (m_e / s_e^2 + m_p / s_p^2).

    It is the posterior if the evidence is a Gaussian likelihood of z. References: Soenderby et al. 2016, "Ladder
    Variational Autoencoders", equation 9.
    """
    # 2 log s_e and 2 log s_p: the weight of the evidence is a sigmoid of their difference.
    weight = torch.sigmoid(2 * (prior.log_std - evidence.log_std))
    mean = torch.lerp(prior.mean, evidence.mean, weight.expand_as(prior.mean))
    log_std = -0.5 * torch.logaddexp(-2 * evidence.log_std, -2 * prior.log_std)
    return DiagonalGaussian(mean, log_std)


def residual(change: DiagonalGaussian, prior: DiagonalGaussian) -> DiagonalGaussian:
    """N(m_p + s_p m, (s_p s)^2) for a change N(m, s^2), so that KL(q || p) = KL(N(m, s^2) || N(0, I)).

    References: Vahdat & Kautz 2020, "NVAE", section 3.2.
    """
    mean = prior.mean + prior.log_std.exp() * change.mean
    return DiagonalGaussian(mean, prior.log_std + change.log_std)


def direct(found: DiagonalGaussian, prior: DiagonalGaussian) -> DiagonalGaussian:
    """What the network found, whatever the prior."""
    return found


Combine = Callable[[DiagonalGaussian, DiagonalGaussian], DiagonalGaussian]

COMBINATIONS: dict[str, Combine] = {"ladder": precision_weighted, "residual": residual, "direct": direct}
"""How q of a level is made of a network's output and the level's prior, by name."""


class TopDownVAE(Autoencoder):
    """A hierarchical VAE whose q goes down like the model: q(z_T | x) q(z_{T-1} | z_T, x) ... q(z_1 | z_2, x).

    The model has states s_T, a constant, and s_{t-1} = down_t(s_t, z_t). p(z_t | s_t) is normal, with the outputs of
    prior_t, and p(x | s_0) has those of the decoder. If down_t returns z_t the model is Markovian: p(z_t | z_{t+1}). If
    it carries more than z_t it is a deterministic path beside the latent variables. q of z_t combines p with the
    outputs of posterior_t, which sees s_t and what the data say at this level, h_t = up_t(h_{t-1}), h_0 = x. So each KL
    divergence has a closed form given the levels above.

    Args:
        up: up_1, ..., up_T.
        posterior: posterior_t(h_t, s_t) -> [B, 2 C_t, *], t = 1, ..., T.
        prior: prior_t(s_t) -> [B, 2 C_t, *], t = 1, ..., T.
        down: down_t(s_t, z_t) -> s_{t-1}, t = 1, ..., T.
        decoder: Network from s_0 to [B, outputs, *shape].
        observation: p(x | s_0) given the decoder's outputs.
        shape: Shape of the data.
        latent_shapes: Shape of each z_t, z_1 first.
        top_shape: Shape of s_T.
        inference: ladder (`precision_weighted`), residual or direct.

    References:
        Soenderby et al. 2016, "Ladder Variational Autoencoders"; Child 2021, "Very Deep VAEs Generalize Autoregressive
        Models and Can Outperform Them on Images".
    """

    def __init__(
        self,
        up: Sequence[nn.Module],
        posterior: Sequence[nn.Module],
        prior: Sequence[nn.Module],
        down: Sequence[nn.Module],
        decoder: nn.Module,
        observation: ObservationModel,
        shape: Sequence[int],
        latent_shapes: Sequence[Sequence[int]],
        top_shape: Sequence[int],
        inference: str = "residual",
    ) -> None:
        super().__init__(decoder, observation, shape, latent_shapes)
        self.up, self.posterior, self.prior, self.down = (nn.ModuleList(part) for part in (up, posterior, prior, down))
        self.top = nn.Parameter(torch.zeros(*check_sizes("top_shape", top_shape)))
        self.inference = check_choice("inference", inference, tuple(COMBINATIONS))

    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> Inference:
        """Draw all latent variables given x, from z_T down; see `LatentVariableModel.infer`."""
        seen, h = [], x
        for up in self.up:
            h = up(h)
            seen.append(h)
        combine = COMBINATIONS[self.inference]
        state, levels = self._top(len(x)), []
        for t in reversed(range(len(self.prior))):
            p = DiagonalGaussian.of_outputs(self.prior[t](state))
            q = combine(DiagonalGaussian.of_outputs(self.posterior[t](seen[t], state)), p)
            z = q.draw(noise[t])
            levels.append(Level(z, q, p, closed=True))
            state = self.down[t](state, z)
        return Inference(levels[::-1], self.observation.log_prob(x, self.decoded(state)))

    def generate(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """Draw all latent variables from the model, z_1 first."""
        state, z = self._top(len(noise[0])), []
        for t in reversed(range(len(self.prior))):
            z.append(DiagonalGaussian.of_outputs(self.prior[t](state)).draw(noise[t]))
            state = self.down[t](state, z[-1])
        return z[::-1]

    def outputs(self, z: Sequence[Tensor]) -> Tensor:
        """The decoder's outputs for z_1, ..., z_T."""
        state = self._top(len(z[0]))
        for t in reversed(range(len(self.down))):
            state = self.down[t](state, z[t])
        return self.decoded(state)

    def _top(self, batch: int) -> Tensor:
        return self.top.expand(batch, *self.top.shape)


class MarkovVAE(Autoencoder):
    """A Markovian hierarchical VAE whose q goes up: q(z_1 | x) q(z_2 | z_1) ... q(z_T | z_{T-1}).

    The model is p(x | z_1) p(z_1 | z_2) ... p(z_T) with p(z_T) = N(0, I). This q loses nothing, as the true posterior
    of a Markov chain factorises so, but only the last KL divergence has a closed form: the others are estimated by
    their draw.

    Args:
        encoders: Networks from x, z_1, ..., z_{T-1} to the outputs of q of the next, [B, 2 C, *].
        priors: Networks from z_2, ..., z_T to the outputs of p of the one below, [B, 2 C, *].
        decoder: Network from z_1 to [B, outputs, *shape].
        observation: p(x | z_1) given the decoder's outputs.
        shape: Shape of the data.
        latent_shapes: Shape of each z_t, z_1 first.
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        priors: Sequence[nn.Module],
        decoder: nn.Module,
        observation: ObservationModel,
        shape: Sequence[int],
        latent_shapes: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(decoder, observation, shape, latent_shapes)
        self.encoders, self.priors = nn.ModuleList(encoders), nn.ModuleList(priors)

    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> Inference:
        """Draw all latent variables given x, from z_1 up; see `LatentVariableModel.infer`."""
        q, z, below = [], [], x
        for encoder, one in zip(self.encoders, noise, strict=True):
            q.append(DiagonalGaussian.of_outputs(encoder(below)))
            z.append(below := q[-1].draw(one))
        p = [DiagonalGaussian.of_outputs(prior(above)) for prior, above in zip(self.priors, z[1:], strict=True)]
        p.append(DiagonalGaussian.standard_like(z[-1]))
        top = len(z) - 1
        levels = [Level(*parts, closed=t == top) for t, parts in enumerate(zip(z, q, p, strict=True))]
        return Inference(levels, self.observation.log_prob(x, self.decoded(z[0])))

    def generate(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """Draw all latent variables from the model, z_1 first."""
        z = [noise[-1]]
        for prior, one in zip(reversed(self.priors), reversed(noise[:-1]), strict=True):
            z.append(DiagonalGaussian.of_outputs(prior(z[-1])).draw(one))
        return z[::-1]

    def outputs(self, z: Sequence[Tensor]) -> Tensor:
        """The decoder's outputs for z_1."""
        return self.decoded(z[0])
