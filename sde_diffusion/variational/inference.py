"""How q of a hierarchical VAE draws the latent variables given x: from the top down, or from the bottom up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from sde_diffusion.checks.instances import as_instance
from sde_diffusion.checks.reprs import ShowsArguments
from sde_diffusion.variational.chain import LatentVariable
from sde_diffusion.variational.gaussian import DiagonalGaussian


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
Draw = Callable[[Tensor, DiagonalGaussian], LatentVariable]
"""From the state s_t and p(z_t | s_t) to a draw of z_t from q."""

COMBINATIONS: dict[str, Combine] = {"ladder": precision_weighted, "residual": residual, "direct": direct}
"""How q of a latent variable is made of a network's output and the prior, by name."""


class HierarchicalInference(ShowsArguments, ABC):
    """The order in which q of a `HierarchicalVAE` draws the latent variables, and what each q is given.

    Attributes:
        has_up: Whether there are networks up_1, ..., up_T, which describe the data to q at each depth.
    """

    has_up: ClassVar[bool]

    @abstractmethod
    def in_shapes(
        self,
        shape: Sequence[int],
        latent_shapes: Sequence[Sequence[int]],
        states: Sequence[Sequence[int]],
        hidden: Sequence[int],
    ) -> tuple[list[Sequence[int]], list[list[Sequence[int]]]]:
        """Shapes of what the networks take.

        Args:
            shape: Shape of the data.
            latent_shapes: Shape of each z_t, z_1 first.
            states: Shape of each s_t, s_1 first.
            hidden: Shape of each result h_t of up_t.

        Returns:
            The shape of the input of each up_t, and the shapes of the inputs of each posterior_t.
        """

    @abstractmethod
    def draws(self, up: nn.ModuleList, posterior: nn.ModuleList, x: Tensor, noise: Sequence[Tensor]) -> list[Draw]:
        """How each z_t is drawn given x, once its state and prior are known; z_1 first.

        Args:
            up: up_1, ..., up_T, or none.
            posterior: posterior_1, ..., posterior_T.
            x: Data, [B, *shape].
            noise: Standard normal, [B, *latent_shape] for each z_t.
        """


class TopDown(HierarchicalInference):
    """q draws z_T first, in the order of the generative model: q(z_T | x) q(z_{T-1} | z_T, x) ... q(z_1 | z_2 ..., x).

    q of z_t combines p with the outputs of posterior_t(h_t, s_t), which sees the state s_t and what the data say at
    this depth, h_t = up_t(h_{t-1}), h_0 = x. Each KL divergence has a closed form given the latent variables above.

    Args:
        combine: ladder (`precision_weighted`), residual (`residual`), direct (the outputs alone), or a function from
            the distribution that the outputs describe, and p, to q.

    Raises:
        ValueError: If combine is none of these.
    """

    has_up = True

    def __init__(self, combine: str | Combine = "residual") -> None:
        example = "a function like precision_weighted"
        self.combine: Combine = as_instance("combine", combine, COMBINATIONS, Callable, example)

    def in_shapes(
        self,
        shape: Sequence[int],
        latent_shapes: Sequence[Sequence[int]],
        states: Sequence[Sequence[int]],
        hidden: Sequence[int],
    ) -> tuple[list[Sequence[int]], list[list[Sequence[int]]]]:
        """See `HierarchicalInference.in_shapes`."""
        return [shape, *[hidden] * (len(states) - 1)], [[hidden, state] for state in states]

    def draws(self, up: nn.ModuleList, posterior: nn.ModuleList, x: Tensor, noise: Sequence[Tensor]) -> list[Draw]:
        """See `HierarchicalInference.draws`."""
        found: list[Draw] = []
        for below, network, one in zip(up, posterior, noise, strict=True):
            x = below(x)
            found.append(partial(self._draw, network, x, one))
        return found

    def _draw(
        self, network: nn.Module, seen: Tensor, noise: Tensor, state: Tensor, prior: DiagonalGaussian
    ) -> LatentVariable:
        q = self.combine(DiagonalGaussian.of_outputs(network(seen, state)), prior)
        return LatentVariable(q.draw(noise), q, prior, closed=True)


class BottomUp(HierarchicalInference):
    """q draws z_1 first, from the data upwards: q(z_1 | x) q(z_2 | z_1) ... q(z_T | z_{T-1}).

    posterior_t sees z_{t-1} alone, z_0 = x.

    For a Markovian model this loses nothing, as its true posterior factorises so, but only the last KL divergence has a
    closed form: the others are estimated by their draw.
    """

    has_up = False

    def in_shapes(
        self,
        shape: Sequence[int],
        latent_shapes: Sequence[Sequence[int]],
        states: Sequence[Sequence[int]],
        hidden: Sequence[int],
    ) -> tuple[list[Sequence[int]], list[list[Sequence[int]]]]:
        """See `HierarchicalInference.in_shapes`."""
        return [], [[below] for below in (shape, *latent_shapes[:-1])]

    def draws(self, up: nn.ModuleList, posterior: nn.ModuleList, x: Tensor, noise: Sequence[Tensor]) -> list[Draw]:
        """See `HierarchicalInference.draws`."""
        found: list[Draw] = []
        for network, one in zip(posterior, noise, strict=True):
            q = DiagonalGaussian.of_outputs(network(x))
            x = q.draw(one)
            found.append(partial(self._drawn, x, q, len(found) == len(noise) - 1))
        return found

    @staticmethod
    def _drawn(z: Tensor, q: DiagonalGaussian, closed: bool, state: Tensor, prior: DiagonalGaussian) -> LatentVariable:
        return LatentVariable(z, q, prior, closed)


TOP_DOWN = {name: TopDown(name) for name in COMBINATIONS}
INFERENCES: dict[str, HierarchicalInference] = {**TOP_DOWN, "bottom_up": BottomUp()}
"""What may draw the latent variables, by name."""
