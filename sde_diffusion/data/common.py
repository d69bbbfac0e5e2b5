"""The arguments that all data sets have."""

from typing import TypedDict

from sde_diffusion.text import Captions


class Common(TypedDict, total=False):
    """The arguments that every data set passes to `DataModule`."""

    batch_size: int
    seed: int
    min_batches_per_epoch: int
    flip: bool
    shrink: int
    captions: Captions | None
