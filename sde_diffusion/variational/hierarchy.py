"""Hierarchical variational autoencoders: several latent variables, z_1 next to the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_choice, check_sizes
from sde_diffusion.variational.chain import Autoencoder, Inference, LatentVariable
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
"""How q of a latent variable is made of a network's output and the prior, by name: q that goes down like the model."""

BOTTOM_UP = "bottom_up"
INFERENCES = (*COMBINATIONS, BOTTOM_UP)


class HierarchicalVAE(Autoencoder):
    """A hierarchical VAE: p(x | z_1 ... z_T) p(z_1 | z_2 ... z_T) ... p(z_T).

    The model goes down: states s_T, a constant, and s_{t-1} = down_t(s_t, z_t); p(z_t | s_t) is normal, with the
    outputs of prior_t, and p(x | s_0) has those of the decoder. If down_t returns z_t, the model is Markovian, p(z_t |
    z_{t+1}). If it carries more than z_t, it is a deterministic path beside the latent variables.

    There are two kinds of q:

    - Down like the model, q(z_T | x) q(z_{T-1} | z_T, x) ... q(z_1 | z_2 ..., x): q of z_t combines p with the outputs
      of posterior_t, which sees s_t and what the data say at this depth, h_t = up_t(h_{t-1}), h_0 = x. Each KL
      divergence has a closed form given the latent variables above. inference is ladder (`precision_weighted`),
      residual (`residual`) or direct (the outputs alone).
    - Up, q(z_1 | x) q(z_2 | z_1) ... q(z_T | z_{T-1}), with inference=bottom_up: each posterior_t sees z_{t-1} alone,
      z_0 = x. For a Markovian model this loses nothing, as its true posterior factorises so, but only the last KL
      divergence has a closed form: the others are estimated by their draw.

    Args:
        posterior: posterior_t(h_t, s_t) -> [B, 2 C_t, *], t = 1, ..., T; with bottom_up, posterior_t(z_{t-1}).
        prior: prior_t(s_t) -> [B, 2 C_t, *], t = 1, ..., T.
        down: down_t(s_t, z_t) -> s_{t-1}, t = 1, ..., T.
        decoder: Network from s_0 to [B, outputs, *shape].
        observation: p(x | s_0) given the decoder's outputs.
        shape: Shape of the data.
        latent_shapes: Shape of each z_t, z_1 first.
        top_shape: Shape of s_T, which is learned; None: s_T is the constant 0, of shape [1].
        up: up_1, ..., up_T; none with bottom_up.
        inference: ladder, residual, direct or bottom_up.

    Raises:
        ValueError: If inference is none of these, or there is not one network of each kind for each latent variable.

    References:
        Soenderby et al. 2016, "Ladder Variational Autoencoders"; Child 2021, "Very Deep VAEs Generalize Autoregressive
        Models and Can Outperform Them on Images".
    """

    top: Tensor

    def __init__(
        self,
        posterior: Sequence[nn.Module],
        prior: Sequence[nn.Module],
        down: Sequence[nn.Module],
        decoder: nn.Module,
        observation: ObservationModel,
        shape: Sequence[int],
        latent_shapes: Sequence[Sequence[int]],
        top_shape: Sequence[int] | None = None,
        up: Sequence[nn.Module] = (),
        inference: str = "residual",
    ) -> None:
        super().__init__(decoder, observation, shape, latent_shapes)
        self.up, self.posterior, self.prior, self.down = (nn.ModuleList(part) for part in (up, posterior, prior, down))
        if top_shape is None:
            self.register_buffer("top", torch.zeros(1), persistent=False)
        else:
            self.top = nn.Parameter(torch.zeros(*check_sizes("top_shape", top_shape)))
        self.inference = check_choice("inference", inference, INFERENCES)
        counts = {"posterior": len(self.posterior), "prior": len(self.prior), "down": len(self.down)}
        for name, count in {**counts, "up": len(self.up)}.items():
            needed = 0 if name == "up" and inference == BOTTOM_UP else len(self.latent_shapes)
            if count != needed:
                raise ValueError(
                    f"{name} must have {needed} networks, for {len(self.latent_shapes)} latent variables and "
                    f"inference={inference}; got {count}"
                )

    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> Inference:
        """Draw all latent variables given x; see `LatentVariableModel.infer`."""
        upwards = self.inference == BOTTOM_UP
        drawn = self._draw_upwards(x, noise) if upwards else []
        seen = [] if upwards else self._see(x)
        state, latents, top = self._top(len(x)), [], len(self.prior) - 1
        for t in range(top, -1, -1):
            p = DiagonalGaussian.of_outputs(self.prior[t](state))
            if upwards:
                q, z = drawn[t]
            else:
                found = DiagonalGaussian.of_outputs(self.posterior[t](seen[t], state))
                q = COMBINATIONS[self.inference](found, p)
                z = q.draw(noise[t])
            latents.append(LatentVariable(z, q, p, closed=t == top or not upwards))
            state = self.down[t](state, z)
        outputs = self.decoded(state)
        return Inference(latents[::-1], self.observation.log_prob(x, outputs), outputs)

    def _see(self, x: Tensor) -> list[Tensor]:
        """What the data say at each depth: h_1, ..., h_T."""
        seen = []
        for up in self.up:
            x = up(x)
            seen.append(x)
        return seen

    def _draw_upwards(self, x: Tensor, noise: Sequence[Tensor]) -> list[tuple[DiagonalGaussian, Tensor]]:
        """q of each latent variable given the one below, and a draw from it."""
        drawn = []
        for posterior, one in zip(self.posterior, noise, strict=True):
            q = DiagonalGaussian.of_outputs(posterior(x))
            x = q.draw(one)
            drawn.append((q, x))
        return drawn

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
