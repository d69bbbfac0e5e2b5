"""The inception score, with any classifier."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sde_diffusion.metrics.base import FAKE, FeatureMetric


class _HasHead(Protocol):
    num_classes: int

    def head(self, features: Tensor) -> Tensor: ...


class Probabilities(nn.Module):
    """The class probabilities of a classifier as features.

    Args:
        classifier: Extractor with an int `num_classes` and `head(features)`, logits [B, num_classes].

    Raises:
        ValueError: If it has no `num_classes` or `head`.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        if not isinstance(getattr(classifier, "num_classes", None), int) or not hasattr(classifier, "head"):
            raise ValueError(
                f"an inception score needs a classifier with num_classes and head; {type(classifier).__name__} is "
                "none: use the extractor 'digits', 'mnist', 'cifar10' or 'inception'"
            )
        self.base = classifier
        self.num_features = cast(_HasHead, classifier).num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities [B, num_classes] float32 of samples [B, ...]."""
        return self.derive(self.base(x))

    def derive(self, features: Tensor) -> Tensor:
        """Probabilities [B, num_classes] float32 from the `base`'s features [B, D] of the same samples."""
        head = cast(_HasHead, self.base).head
        return torch.cat([head(some).double().softmax(1).float() for some in torch.split(features, 10_000)])


class InceptionScore(FeatureMetric):
    r"""exp(E KL(p(c|x) || p(c))): high if the classifier is certain of each sample and the classes are balanced.

    At least 1, at most the number of classes. It uses the generated samples alone, and depends neither on the data nor
    on the variety within a class; compare it with the score of the data.

    All samples give one score. (torchmetrics' metric averages over ten splits, each with a bias, and shuffles by
    torch's global generator.)

    Args:
        extractor: A classifier with `num_classes` and `head`, such as `load_extractor("digits")`.
        reset_real_features: Without effect, for the common interface.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If the extractor is no classifier.

    References:
        Salimans et al. 2016, "Improved Techniques for Training GANs", section 4; on one split and its bias, Barratt &
        Sharma 2018, "A Note on the Inception Score".
    """

    names = ("inception_score",)
    sides = (FAKE,)
    higher_is_better = True

    def __init__(self, extractor: nn.Module, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(Probabilities(extractor), reset_real_features, **kwargs)

    def _divergences(self, fake: Tensor) -> Tensor:
        """KL(p_i || mean p) of each sample, [M]; also its influence on the mean of these, up to a constant."""
        mean = fake.mean(0)
        return (torch.xlogy(fake, fake) - torch.xlogy(fake, mean)).sum(1)

    def statistic(self, real: Tensor, fake: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return self._divergences(fake).mean().unsqueeze(0)

    def influence(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureMetric`."""
        return fake.new_zeros(1, 0), self._divergences(fake).unsqueeze(0)

    def present(self, values: Tensor) -> Tensor:
        """See `FeatureMetric`."""
        return values.clamp(min=0).exp()
