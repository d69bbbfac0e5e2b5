"""Hierarchical variational autoencoders: several latent variables, z_1 next to the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_sizes
from sde_diffusion.checks.instances import as_instance
from sde_diffusion.variational.chain import Autoencoder, PosteriorSample
from sde_diffusion.variational.gaussian import DiagonalGaussian
from sde_diffusion.variational.inference import INFERENCES, HierarchicalInference
from sde_diffusion.variational.observation import ObservationModel


class HierarchicalVAE(Autoencoder):
    """A hierarchical VAE: p(x | z_1 ... z_T) p(z_1 | z_2 ... z_T) ... p(z_T).

    The model goes down: states s_T, a constant, and s_{t-1} = down_t(s_t, z_t); p(z_t | s_t) is normal, with the
    outputs of prior_t, and p(x | s_0) has those of the decoder. If down_t returns z_t, the model is Markovian, p(z_t |
    z_{t+1}). If it carries more than z_t, it is a deterministic path beside the latent variables.

    q is drawn from the top down, like the model, or from the bottom up: see `TopDown` and `BottomUp`.

    Args:
        posterior: posterior_t(h_t, s_t) -> [B, 2 C_t, *], t = 1, ..., T; from the bottom up, posterior_t(z_{t-1}).
        prior: prior_t(s_t) -> [B, 2 C_t, *], t = 1, ..., T.
        down: down_t(s_t, z_t) -> s_{t-1}, t = 1, ..., T.
        decoder: Network from s_0 to [B, outputs, *shape].
        observation: p(x | s_0) given the decoder's outputs.
        shape: Shape of the data.
        latent_shapes: Shape of each z_t, z_1 first.
        top_shape: Shape of s_T, which is learned; None: s_T is the constant 0, of shape [1].
        up: up_t(h_{t-1}) -> h_t, t = 1, ..., T, h_0 = x; none from the bottom up.
        inference: ladder, residual or direct, which are `TopDown`; bottom_up; or an instance of either.

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
        inference: str | HierarchicalInference = "residual",
    ) -> None:
        super().__init__(decoder, observation, shape, latent_shapes)
        self.up, self.posterior, self.prior, self.down = (nn.ModuleList(part) for part in (up, posterior, prior, down))
        if top_shape is None:
            self.register_buffer("top", torch.zeros(1), persistent=False)
        else:
            self.top = nn.Parameter(torch.zeros(*check_sizes("top_shape", top_shape)))
        self.inference: HierarchicalInference = as_instance("inference", inference, INFERENCES, HierarchicalInference)
        shown = inference if isinstance(inference, str) else type(inference).__name__
        counts = {"posterior": len(self.posterior), "prior": len(self.prior), "down": len(self.down)}
        for name, count in {**counts, "up": len(self.up)}.items():
            needed = len(self.latent_shapes) if name != "up" or self.inference.has_up else 0
            if count != needed:
                raise ValueError(
                    f"{name} must have {needed} networks, for {len(self.latent_shapes)} latent variables and "
                    f"inference={shown}; got {count}"
                )

    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> PosteriorSample:
        """Draw all latent variables given x; see `LatentVariableModel.infer`."""
        draws = self.inference.draws(self.up, self.posterior, x, noise)
        state, latents = self._top(len(x)), []
        for t in reversed(range(len(draws))):
            latents.append(draws[t](state, DiagonalGaussian.of_outputs(self.prior[t](state))))
            state = self.down[t](state, latents[-1].z)
        outputs = self._with_bias(state)
        return PosteriorSample(latents[::-1], self.observation.log_prob(x, outputs), outputs)

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
        return self._with_bias(state)

    def _top(self, batch: int) -> Tensor:
        return self.top.expand(batch, *self.top.shape)
