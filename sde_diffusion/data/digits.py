"""The default data: scikit-learn's 8x8 digits."""

from __future__ import annotations

import torch

from sde_diffusion.data.module import DataModule
from sde_diffusion.data.split import Split, divide
from sde_diffusion.text import Captions

_SPLIT_SEED = 0  # fixed, so that different runs are compared on the same test split


class Digits(DataModule):
    """1,797 grey 8x8 handwritten digits with 17 levels, included in scikit-learn (the test set of Optdigits, UCI).

    The splits are fixed: train 1,437, val 60, test 300, with each class in proportion. The validation split is small so
    that the test split can be large: the smaller it is, the larger the Fréchet distance even of perfect samples.

    It takes the arguments of `DataModule`, batches of 64 by default.
    """

    name = extractor = "digits"
    handwriting = True

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        min_batches_per_epoch: int = 250,
        flip: bool = False,
        shrink: int = 1,
        captions: Captions | None = None,
    ) -> None:
        super().__init__(batch_size, seed, min_batches_per_epoch, flip, shrink, captions)

    def load(self) -> dict[str, Split]:
        """Read the digits from the installed scikit-learn."""
        from sklearn.datasets import load_digits  # a second to import

        data = load_digits()
        x = torch.from_numpy(data.images).to(torch.uint8)[:, None]
        label = torch.from_numpy(data.target).long()
        train, val, test = divide(len(x), (60, 300), _SPLIT_SEED, data.target, start=0.0)
        return {
            name: Split(x[rows], label[rows], levels=17)
            for name, rows in (("train", train), ("val", val), ("test", test))
        }
