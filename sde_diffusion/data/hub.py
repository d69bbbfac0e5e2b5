"""Data sets of images of the Hugging Face hub, by its library `datasets`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from sde_diffusion.checks import check_bool
from sde_diffusion.checks.reprs import few
from sde_diffusion.data.common import EncodedOptions
from sde_diffusion.data.encoded import Encoded, EncodedImages
from sde_diffusion.data.module import SPLITS
from sde_diffusion.data.names import SPLIT_OF
from sde_diffusion.data.tables import class_names, columns, images_of, labels_of, library
from sde_diffusion.errors import UserError
from sde_diffusion.storage.memory import ran_out


class HubImages(EncodedImages):
    """Images of a data set of the Hugging Face hub, or of a local folder in one of its formats; needs `datasets`.

    Nothing is downloaded unless `download` is set: without it, the data set must be in the library's own cache already,
    or in a folder. Code in data sets is never run (`datasets` 4 and later have no such feature).

    Args:
        name: Name of the data set, such as uoft-cs/cifar10, or the path of a folder.
        subset: Name of its subset (configuration), if it has several.
        revision: Branch, tag or commit; None: the main branch.
        download: Whether it may be downloaded.
        **options: See `EncodedImages` and `DataModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        name: str,
        subset: str | None = None,
        revision: str | None = None,
        download: bool = False,
        **options: Unpack[EncodedOptions],
    ) -> None:
        super().__init__(**options)
        path = Path(name).expanduser()
        self.name = str(path.absolute()) if path.is_dir() else name
        self.subset, self.revision = subset, revision
        self.download = check_bool("download", download)

    def encoded(self) -> tuple[Mapping[str, Encoded], Sequence[str] | None]:
        """Load the data set; see `EncodedImages.encoded`."""
        found, names = {}, None
        for split, data in self._data_set().items():
            schema = data.features.arrow_schema
            image, label = columns(schema, f"{self.name}, {split}", self.image, self.label)
            table = data.with_format("arrow")[:]
            where = f"{self.name}, {split}"
            images = images_of(table, image, where)
            found[split] = Encoded(images, labels_of([table], label), functools.partial("{}, row {}".format, where))
            names = names or class_names(schema, label)
        return found, names

    def _data_set(self) -> dict[str, Any]:
        """The splits of the data set, as `datasets.Dataset`, beginning with `train`."""
        datasets = library("datasets", "hub", f"data.name={self.name}: reading data sets of the Hugging Face hub")
        offline = datasets.config.HF_HUB_OFFLINE
        try:
            datasets.config.HF_HUB_OFFLINE = offline or not self.download
            loaded = datasets.load_dataset(self.name, self.subset, revision=self.revision)
        except Exception as error:  # the library, and the files' own readers, raise many kinds
            if ran_out(error):
                raise
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            more = "" if self.download else "; it is not downloaded unless you set data.download=true"
            raise UserError(f"data.name={self.name}: {why}{more}") from error
        finally:
            datasets.config.HF_HUB_OFFLINE = offline
        found = {SPLIT_OF[name.lower()]: data for name, data in loaded.items() if name.lower() in SPLIT_OF}
        if "train" not in found:
            raise UserError(f"data.name={self.name} has the splits {few(list(loaded))}, and no train")
        return {split: found[split] for split in SPLITS if split in found}
