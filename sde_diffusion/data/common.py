"""The arguments that all data sets have."""

from collections.abc import Sequence
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


class EncodedOptions(Common, total=False):
    """The arguments that data sets of encoded images pass to `EncodedImages`."""

    size: int | Sequence[int] | None
    crop: str
    mode: str | None
    n_val: int
    image: str | None
    label: str | None
    cache: str | None
    num_workers: int
