"""The base class of every data set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from sde_diffusion.checks import check_bool, check_count, check_kind
from sde_diffusion.conditions import Conditions
from sde_diffusion.config import settings_of
from sde_diffusion.data.captioned import captioned
from sde_diffusion.data.checks import check_image_settings, check_processes, check_splits
from sde_diffusion.data.conditions import kinds_of
from sde_diffusion.data.loader import Batch, InOrder, Loader, Shuffled
from sde_diffusion.data.split import Split, differences, shrunk
from sde_diffusion.errors import UserError, did_you_mean
from sde_diffusion.modality import Modality, kind_by_shape
from sde_diffusion.modality.units import Units
from sde_diffusion.storage.memory import check_fits
from sde_diffusion.text import Captions

SPLITS = ("train", "val", "test")
_MOST_ITEMS = 1_000_000_000  # maximum number of items of an epoch, as its order is held in memory


class DataModule(LightningDataModule, ABC):
    """A data set: three splits in memory, and batches {"x": float32 [B, *shape] on [-1, 1], "label": int64 [B], ...}.

    A new data set is a subclass that sets `name`, defines `load`, and stores each constructor argument in an attribute
    of the same name, from which a checkpoint can rebuild the data set (see `describe`). The data are loaded once, when
    they are first used.

    Args:
        batch_size: Number of items per batch and process, at least 1.
        seed: Seed of the training order, which is a pure function of (seed, epoch). The splits do not depend on it.
        min_batches_per_epoch: Minimum number of batches per epoch; a small training split is repeated to reach it.
        flip: Train on mirrored images too: an epoch has every image once as it is, and once mirrored left to right.
        shrink: Divide height and width of images by this number, which must divide them: means of blocks, as
            `Downsample(shrink)` gives, rounded to 256 levels if the data have levels.
        captions: A text for each image, the condition `text`, in place of labels; None: no texts.

    Raises:
        ValueError: If a size or seed is out of its range.
    """

    name: str = "data"
    data_range: tuple[float, float] = (-1.0, 1.0)
    in_files: bool = False  # whether rows are read from files in batches
    handwriting: bool = False  # whether the items are images of handwritten digits
    bounded: bool = True  # whether all values must lie in data_range; False for densities, whose tails may exceed it
    units: Units | None = None  # units of float data; None: they are on [-1, 1] already, or have levels
    modality_class: type[Modality] | None = None  # modality of the items; None: by their shape
    extractor: str | None = None  # name of the default feature extractor of metrics; None: that of the modality
    class_names: tuple[str, ...] | None = None  # names of the classes 0, 1, ..., if there are any; set by `load`
    value_names: Mapping[str, Sequence[str]] = MappingProxyType({})  # names of the classes of other conditions
    why_no_labels: str = ""  # why there are no labels, as the end of a message; set by `load`

    def __init__(
        self,
        batch_size: int = 128,
        seed: int = 0,
        min_batches_per_epoch: int = 250,
        flip: bool = False,
        shrink: int = 1,
        captions: Captions | None = None,
    ) -> None:
        super().__init__()
        check_kind("captions", captions, Captions, or_none=True)
        self.captions = captions
        self._train: Split | None = None  # the training split on the GPU of a run
        self.batch_size, self.seed = check_count("batch_size", batch_size), check_count("seed", seed, least=0)
        self.min_batches_per_epoch = check_count("min_batches_per_epoch", min_batches_per_epoch)
        self.flip, self.shrink = check_bool("flip", flip), check_count("shrink", shrink, also=" (1: as they are)")
        items = self.batch_size * self.min_batches_per_epoch
        if items > _MOST_ITEMS:
            raise ValueError(
                f"an epoch of {items} items, batch_size x min_batches_per_epoch, is more than the {_MOST_ITEMS} allowed"
            )

    # To be defined by a subclass
    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Read the splits `train`, `val` and `test`; all with the same shape and levels, values on [-1, 1].

        Raises:
            UserError: If the files are missing, damaged or of another kind.
        """

    # Properties of the data
    @cached_property
    def splits(self) -> dict[str, Split]:
        """The loaded and checked splits by name; see `check_splits`."""
        splits = self.load()
        check_image_settings(self.name, self._modality(splits["train"]), flip=self.flip, shrink=self.shrink > 1)
        if self.shrink > 1:
            splits, self.extractor = shrunk(self.name, splits, self.shrink), None  # the extractor is for other sizes
        check_splits(self.name, splits, self.bounded, self.class_names)
        if self.captions is not None:
            splits = captioned(
                self.name, splits, self.captions, self.class_names, self.flip, self.handwriting, self.files()
            )
        return splits

    def files(self) -> tuple[str, Mapping[str, Sequence[str]]] | None:
        """The folder of the items' files, and their paths in it by split; None if they are not files."""
        return None

    @property
    def modality(self) -> Modality:
        """The modality of the items, such as `Images`."""
        return self._modality(self.splits["train"])

    def _modality(self, split: Split) -> Modality:
        shape = tuple(split.x.shape[1:])
        return (self.modality_class or kind_by_shape(shape))(shape, split.levels, self.units)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item: [C, H, W] for images, [D] for points, [C, L] for signals."""
        return tuple(self.splits["train"].x.shape[1:])

    @property
    def levels(self) -> int | None:
        """Number of levels of the values, or None for continuous data."""
        return self.splits["train"].levels

    @cached_property
    def conditions(self) -> Conditions:
        """The conditions of the items by name: `label`, and others; see `kinds_of`."""
        found, why = kinds_of(self.splits, {"label": self.class_names, **self.value_names})
        self.why_no_labels = why or self.why_no_labels
        return found

    @property
    def n_classes(self) -> int:
        """One more than the largest label, or the number of class names if that is larger; 0 without such labels."""
        return getattr(self.conditions.get("label"), "n_classes", 0)

    @cached_property
    def std(self) -> float:
        """Standard deviation of the training split, scaled to [-1, 1]; see `Split.statistics`."""
        return self.splits["train"].statistics.std

    def prepare(self) -> DataModule:
        """Load the data, if that has not been done, and return self."""
        _ = self.splits
        return self

    def setup(self, stage: str | None = None) -> None:
        """Load the data, and check that each process has items to validate on (called by Lightning)."""
        self.prepare()
        if stage == "fit":
            check_processes(self.name, len(self.splits["val"]), self._process[1])

    def split(self, name: str) -> Split:
        """One split: `train`, `val` or `test`.

        Raises:
            UserError: If there is no split of that name.
        """
        if name not in (s := self.splits):
            raise UserError(f"no split {name!r} in {self.name!r}{did_you_mean(name, s)}; there are {', '.join(s)}")
        return self.splits[name]

    def tensor(self, name: str) -> Tensor:
        """One split as float32 [N, *shape] on [-1, 1]."""
        return self.split(name).tensor()

    def encode(self, y: npt.ArrayLike | Tensor) -> Tensor:
        """Convert data in their own units, [B, *shape], to the scale of models, float32 on [-1, 1]."""
        return self.modality.encode(torch.as_tensor(y))

    def decode(self, x: Tensor) -> Tensor:
        """Convert data or samples on [-1, 1], [B, *shape], to the data's own units; the inverse of `encode`.

        float32, or uint8 for data with levels.
        """
        return self.modality.decode(x)

    def change_units(self, units: Units | None) -> None:
        """Change the scaling of float data between their own units and [-1, 1], for instance to that of a model.

        Args:
            units: The scaling; None: the data's own units are on [-1, 1] already.
        """
        if units == self.units or self.levels is not None:
            return
        for name, split in self.splits.items():
            y = self.decode(split.tensor())
            self.splits[name] = replace(split, x=y if units is None else units.encode(y))
        self.units = units

    @property
    def config(self) -> dict[str, Any]:
        """`_target_` and all constructor arguments, from which this data set can be rebuilt."""
        captions = None if self.captions is None else self.captions.describe()
        return settings_of(self, DataModule) | {"captions": captions}

    def describe(self) -> dict[str, Any]:
        """The description of the data that checkpoints contain, in plain Python containers."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "modality": self.modality.describe(),
            "levels": self.levels,
            "data_range": list(self.data_range),
            "conditions": self.conditions.describe(),
            "std": self.std,
            "units": None if self.units is None else self.units.describe(),
            "config": self.config,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def fingerprint(self) -> dict[str, Any] | None:
        """Number and digest of the training and validation items, by split; None if they follow from the arguments.

        It distinguishes data of the same shape. The digest is of all bytes of a split up to 64 MiB; of a larger split,
        evenly spaced items are used.
        """
        return {name: {"items": len(self.splits[name]), "digest": self.digest(name)} for name in ("train", "val")}

    def digest(self, name: str) -> str:
        """The digest of one split, for `fingerprint`."""
        return self.splits[name].digest()

    def changed_since(self, fingerprint: dict[str, Any] | None) -> str:
        """How the data differ from those of a fingerprint, as a message; "" if they do not, or it is unknown."""
        return differences(fingerprint, self.fingerprint)

    # Batches
    def train_batch(self, index: Tensor) -> Batch:
        """The training items at index [B]; with flip, index N + i stands for the i-th image mirrored."""
        split = self._train or self.splits["train"]
        index = split.placed(index)
        if not self.flip:
            return split.batch(index)
        batch = split.batch(index % len(split))
        mirrored = (index >= len(split)).view(-1, *(1,) * (batch["x"].ndim - 1))
        batch["x"] = torch.where(mirrored, batch["x"].flip(-1), batch["x"])
        return batch

    def _loader(
        self,
        sampler: Shuffled | InOrder,
        fetch: Callable[[Tensor], Batch],
        first: Callable[[], int | None] = lambda: None,
    ) -> Loader:
        return Loader(sampler, fetch, first, ahead=self.in_files, pin=self._gpu is not None)

    @property
    def _gpu(self) -> torch.device | None:
        device = None if self.trainer is None else self.trainer.strategy.root_device
        return device if device is not None and device.type == "cuda" else None

    @property
    def _process(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> Loader:
        """Shuffled full batches; in a resumed run, those that follow the last batch before the stop."""
        n = len(self.splits["train"]) * (2 if self.flip else 1)
        # The larger of a batch, in float32, and the order of an epoch, two int64 for each of its items.
        size = self.batch_size * max(math.prod(self.shape) * 4, 16 * self.min_batches_per_epoch)
        check_fits(f"data.batch_size={self.batch_size} items", size, "make it smaller")
        sampler = Shuffled(n, self.batch_size, self.seed, self.min_batches_per_epoch, *self._process)
        self._train = None if self._gpu is None else self.splits["train"].on(self._gpu)
        return self._loader(sampler, self.train_batch, self._batches_done)

    def _batches_done(self) -> int | None:
        """Number of batches that the run has been trained on, over all epochs and restarts; None outside training.

        Lightning's other counters are not reliable: a run that reached max_steps has its incomplete epoch counted as
        complete, and the number of started batches includes one that was interrupted by a crash.
        """
        if self.trainer is None or not self.trainer.training:
            return None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def _in_order(self, name: str) -> Loader:
        split = self.splits[name]
        return self._loader(InOrder(len(split), self.batch_size, *self._process), split.batch)

    def val_dataloader(self) -> Loader:
        """The validation split in order; the last batch may be smaller."""
        return self._in_order("val")

    def test_dataloader(self) -> Loader:
        """The test split in order; the last batch may be smaller."""
        return self._in_order("test")
