r"""Latent variable models: p(x | z_1) p(z_1 | z_2) ... p(z_T), with an approximate posterior q of all z given x.

    log p(x) >= L = E_q log w,    log w = log p(x, z_1, ..., z_T) - log q(z_1, ..., z_T | x),

where log p(x) - L = KL(q || p(z | x)). A VAE is T = 1; a Markovian hierarchical VAE has several latent variables; a
diffusion model is one whose q is fixed and linear (`DiffusionChain`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sde_diffusion.checks import check_kind, check_sizes
from sde_diffusion.variational.observation import ObservationModel

Shape = tuple[int, ...]


class Prior(Protocol):
    """What a bound asks of p of a latent variable."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at z [B, *dims], in nats, or log-probability if z takes countably many values; [B]."""

    def log_prob_terms(self, z: Tensor) -> Tensor:
        """The parts of log_prob by dimension, or by position for codes, [B, *dims]."""

    def standardised(self, z: Tensor) -> Tensor | None:
        """The coordinates of z that are standard normal by p, [B, *dims]; None: there are none, as for codes."""


class Posterior(Protocol):
    """What bounds and latent diffusion ask of q of a latent variable."""

    @property
    def mean(self) -> Tensor:
        """The mean, [B, *dims]."""

    @property
    def std(self) -> Tensor:
        """The standard deviation in each dimension, [B, *dims]; 0 if q is a point."""

    def draw(self, noise: Tensor) -> Tensor:
        """Mean + std noise, for standard normal noise: a draw; [B, *dims]."""

    def log_prob(self, z: Tensor) -> Tensor:
        """See `Prior.log_prob`."""

    def entropy(self) -> Tensor:
        """-E log q, in nats; [B]. Raises UserError if q is a point."""

    def log_prob_terms(self, z: Tensor) -> Tensor:
        """See `Prior.log_prob_terms`."""

    def kl(self, other: Any) -> Tensor:
        """KL(self || other), for a fitting prior, in nats; [B]."""

    def kl_terms(self, other: Any) -> Tensor:
        """The parts of KL(self || other) by dimension, or by position for codes, [B, *dims]."""

    def detach(self) -> Any:
        """The same distribution, without gradients to its parameters."""


@dataclass(frozen=True)
class LatentVariable:
    """One latent variable of one draw from q.

    Attributes:
        z: The draw, [B, *dims].
        q: The distribution that it was drawn from.
        p: The model's distribution of it, given the latent variables above.
        closed: Whether q.kl(p) is the expectation of log q - log p over this draw: whether p depends only on what was
            drawn before z.
    """

    z: Tensor
    q: Posterior
    p: Prior
    closed: bool

    def log_ratio(self, pathwise: bool = False) -> Tensor:
        """Log p(z) - log q(z), [B]; with `pathwise`, gradients reach q only through the draw."""
        q = self.q.detach() if pathwise else self.q
        return self.p.log_prob(self.z) - q.log_prob(self.z)

    def kl(self) -> Tensor:
        """KL(q || p): in closed form, or by its draw; [B]."""
        return self.q.kl(self.p) if self.closed else -self.log_ratio()

    def kl_terms(self) -> Tensor:
        """The parts of `kl` by dimension, or by position for codes, [B, *dims]."""
        if self.closed:
            return self.q.kl_terms(self.p)
        return self.q.log_prob_terms(self.z) - self.p.log_prob_terms(self.z)


@dataclass(frozen=True)
class UsageCurves:
    """Metrics of a split that say how far latent variables are used, as a picture shows them.

    Attributes:
        name: Name of the picture.
        metrics: Names of metrics, and the labels of their curves.
        axis: What they are, with its unit.
        what: What the picture shows, in words.
        factors: By which metrics are multiplied, by name; 1 for all others.
        top: Upper end of the axis; None: by the values.
    """

    name: str
    metrics: Mapping[str, str]
    axis: str
    what: str
    factors: Mapping[str, float] = field(default_factory=dict)
    top: float | None = None


@dataclass(frozen=True)
class PosteriorSample:
    """One draw of all latent variables from q given x.

    Attributes:
        latents: The latent variables, z_1 first.
        log_prob: Log p(x | z_1), [B].
        outputs: The decoder's outputs, which describe p(x | z_1), [B, outputs, *shape]; None: the model
            has no decoder network. An `Autoencoder` always gives them.
        commitment: Squared distance of an encoder's vectors to their codes, with a gradient to the encoder alone, [B];
            None: the model is not `quantized`.
    """

    latents: Sequence[LatentVariable]
    log_prob: Tensor
    outputs: Tensor | None = None
    commitment: Tensor | None = None

    def log_weight(self, pathwise: bool = False) -> Tensor:
        """Log w = log p(x, z) - log q(z | x), [B]; with `pathwise`, see `LatentVariable.log_ratio`."""
        return self.log_prob + torch.stack([latent.log_ratio(pathwise) for latent in self.latents]).sum(0)

    def kl(self) -> Tensor:
        """The KL divergence of each latent variable, [T, B]; log_prob minus their sum has the expectation of log w."""
        return torch.stack([latent.kl() for latent in self.latents])


class LatentVariableModel(nn.Module, ABC):
    """A model of data with latent variables z_1 ... z_T.

    Attributes:
        shape: Shape of the data.
        latent_shapes: Shape of each latent variable, z_1 first.
        nfe: Network passes of one draw of `infer`.
        quantized: Whether the latent variables are codes, so that training needs `PosteriorSample.commitment`.
    """

    shape: Shape
    latent_shapes: Sequence[Shape]
    nfe: int = 1
    quantized: bool = False

    @abstractmethod
    def infer(self, x: Tensor, noise: Sequence[Tensor]) -> PosteriorSample:
        """Draw all latent variables given x; a model with conditions takes these too, by name.

        Args:
            x: Data, [B, *shape].
            noise: Standard normal, [B, *latent_shape] for each latent variable, z_1 first.
        """

    @abstractmethod
    def generate(self, noise: Sequence[Tensor]) -> list[Tensor]:
        """Draw all latent variables from the model, z_1 first; the noise is as in `infer`."""

    def usage(self, found: PosteriorSample) -> dict[str, Tensor]:
        """What `usage_metrics` needs of a batch, by name; it is summed over the batches of a split. By default none."""
        return {}

    def usage_metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Metrics of a split besides the KL divergences kl_1, kl_2, ..., given its sums of `usage`; [] each."""
        return {}

    def usage_curves(self) -> UsageCurves:
        """What shows how far the latent variables are used: their KL divergences, unless overridden."""
        labels = {f"kl_{t}": f"$z_{{{t}}}$" for t in range(1, len(self.latent_shapes) + 1)}
        return UsageCurves("kl", labels, "KL(q || p) in nats", "KL divergence of each latent variable")


class Autoencoder(LatentVariableModel):
    """A latent variable model with a decoder network.

    A bias, 0 at first, is added to the network's outputs; see `fit_statistics`.

    Args:
        decoder: Network from what it needs of z to [B, outputs, *shape]. For a `PatchAdversary`, its property
            `last_layer` is the layer, with a `weight`, that makes the outputs.
        observation: p(x | z) given the outputs.
        shape: Shape of the data.
        latent_shapes: Shape of each latent variable, z_1 first.

    Raises:
        TypeError: If observation is not an observation model.
        ValueError: If a shape is not one.
    """

    output_bias: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        observation: ObservationModel,
        shape: Sequence[int],
        latent_shapes: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        check_kind("observation", observation, ObservationModel)
        self.decoder, self.observation = decoder, observation
        self.shape = check_sizes("shape", shape)
        self.latent_shapes = [check_sizes("latent_shapes", dims) for dims in latent_shapes]
        self.register_buffer("output_bias", torch.zeros(observation.n_outputs, *self.shape))

    def fit_statistics(self, x: Tensor) -> None:
        """Set the bias so that the outputs describe data [N, *shape] before anything is learned.

        Training then begins at the bound of independent values, and need not learn first what is the same for all data.
        """
        self.output_bias.copy_(self.observation.marginal_outputs(x))

    @abstractmethod
    def outputs(self, z: Sequence[Tensor]) -> Tensor:
        """The outputs for latent variables z_1, ..., z_T, [B, outputs, *shape]."""

    def _with_bias(self, z: Tensor) -> Tensor:
        """The decoder's outputs for its input, with the bias added."""
        outputs: Tensor = self.decoder(z)
        return outputs + self.output_bias

    def decode(self, z: Sequence[Tensor]) -> Tensor:
        """The mean of p(x | z), on the data's scale of [-1, 1]; [B, *shape]."""
        return self.observation.mean(self.outputs(z))

    def draw_data(self, z: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Draw x from p(x | z), with standard normal noise [B, *shape]."""
        return self.observation.draw(self.outputs(z), noise)


class SingleLatentAutoencoder(Autoencoder):
    """An autoencoder with one latent variable z, which can be the first stage of latent diffusion.

    Args:
        decoder: See `Autoencoder`, as for the other arguments.
        observation: See `Autoencoder`.
        shape: See `Autoencoder`.
        latent_shape: Shape of z.

    Attributes:
        has_entropy: Whether q(z | x) has an entropy, without which latent diffusion has no bound on log p(x); False if
            the encoder is deterministic.
    """

    has_entropy: bool = True

    def __init__(
        self, decoder: nn.Module, observation: ObservationModel, shape: Sequence[int], latent_shape: Sequence[int]
    ) -> None:
        super().__init__(decoder, observation, shape, [latent_shape])

    @abstractmethod
    def encode(self, x: Tensor) -> Posterior:
        """q(z | x) for data [B, *shape]."""
