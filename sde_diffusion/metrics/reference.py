"""Statistics of reference data on disk, so that a data set passes through the extractor only once.

A file is safetensors: numbers, and a text header that identifies the data and the extractor. It is written atomically,
and read only if both are as requested.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sde_diffusion.errors import UserError
from sde_diffusion.storage.files import readable, writing

FORMAT = "sde_diffusion reference statistics 2"

log = logging.getLogger(__name__)

MOST_FEATURES = 8192
"""With more features a covariance takes more than half a gigabyte, and its eigenvalues minutes."""


class DamagedReferenceError(UserError):
    """A file does not contain reference statistics, or was changed after it was written."""


def fingerprint(item: nn.Module | Tensor | Iterable[Tensor]) -> str:
    """SHA-256 of tensors in their order, or of an extractor's class, width and weights.

    It depends on the code of a user's own extractor, but not of this package's: after a change of that, increase the
    number in `FORMAT`.
    """
    digest = hashlib.sha256()
    tensors: Iterable[tuple[object, Tensor]]
    if isinstance(item, nn.Module):
        tensors = item.state_dict().items()
        digest.update(f"{type(item).__name__} {getattr(item, 'num_features', None)}".encode())
        if type(item).__module__.split(".")[0] not in ("sde_diffusion", "torch"):
            with suppress(OSError):  # a class without a file
                digest.update(inspect.getsource(inspect.getmodule(type(item)) or type(item)).encode())
    else:
        tensors = enumerate([item] if isinstance(item, Tensor) else item)
    for name, tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class ReferenceKey:
    """The data and the extractor of reference statistics.

    Args:
        data: Name of the data set.
        split: Name of its split.
        extractor: Name of the extractor.
        preprocessing: Description of the preprocessing before the extractor: size, resizing, levels.
        data_digest: `fingerprint` of the data, or any text that changes with them.
        extractor_digest: `fingerprint` of the extractor.
    """

    data: str
    split: str
    extractor: str
    preprocessing: str
    data_digest: str
    extractor_digest: str

    def file(self, folder: Path) -> Path:
        """The file of the statistics: a different one for each key, even of two data sets of the same name."""
        short = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]
        stem = "-".join(re.sub(r"\W+", "_", part) for part in (self.data, self.split, self.extractor))[:150]
        return folder / f"{stem}-{short}.safetensors"


@dataclass(frozen=True)
class ReferenceStatistics:
    """Moments of reference features, and the features where they were kept.

    Args:
        key: Their data and extractor.
        n: Number of samples.
        mean: [D] float64.
        cov: [D, D] float64, unbiased (n - 1); [0, 0] if D > `MOST_FEATURES`.
        features: [n, D] float32, or None.
    """

    key: ReferenceKey
    n: int
    mean: Tensor
    cov: Tensor
    features: Tensor | None

    def check(self, extractor_digest: str, width: int) -> None:
        """Check that these are the statistics of an extractor.

        Raises:
            UserError: If they are not.
        """
        if self.key.extractor_digest != extractor_digest or len(self.mean) != width:
            raise UserError(
                f"reference statistics of {self.key.data}/{self.key.split} are of extractor {self.key.extractor!r} "
                f"with {len(self.mean)} features and weights {self.key.extractor_digest[:12]}; this metric's extractor "
                f"has {width} features and weights {extractor_digest[:12]}: use the same extractor for both, or make "
                "the statistics again"
            )


def reference_statistics(
    folder: Path, key: ReferenceKey, make: Callable[[], Tensor], keep_features: bool = True
) -> ReferenceStatistics:
    """Statistics from the cache, or made and put there.

    Args:
        folder: The cache.
        key: What is wanted.
        make: Gives the reference features [n, D]; called only if the file is not there.
        keep_features: Whether to keep the features (4 n D bytes) beside the moments; without them only the Fréchet
            distance can use the file. A file without features is computed again if they are needed.

    Returns:
        The statistics.

    Raises:
        UserError: If the file there is of other data or another extractor, or cannot be written.

    A file that is damaged or of another kind is computed again, with a warning.
    """
    path = key.file(folder)
    if path.exists():
        try:
            found = read_reference(path, key)
        except DamagedReferenceError as error:
            log.warning("%s", error)
        else:
            if found.features is not None or not keep_features:
                return found
    features = make().detach().cpu().float()
    if len(features) < 2 or not features.isfinite().all():
        raise UserError(f"reference {key.data}/{key.split}: {len(features)} samples; need 2 or more, all finite")
    width = features.shape[1]
    if width <= MOST_FEATURES:
        exact = features.double()
        mean, cov = exact.mean(0), exact.T.cov().view(width, width)
    else:  # no room for a covariance: only metrics that need none can use the file
        mean, cov = features.double().mean(0), torch.empty(0, 0, dtype=torch.float64)
    made = ReferenceStatistics(key, len(features), mean, cov, features if keep_features else None)
    tensors = {"mean": made.mean, "cov": made.cov.contiguous()}
    if keep_features:
        tensors["features"] = features.contiguous()
    about = {"format": FORMAT, "n": str(made.n), "key": json.dumps(asdict(key)), "content": _content(tensors)}
    with writing(path) as temporary:
        temporary.write_bytes(save(tensors, about))
    return made


def _content(tensors: Mapping[str, Tensor]) -> str:
    return fingerprint(tensors[name] for name in sorted(tensors))


def read_reference(path: Path, key: ReferenceKey) -> ReferenceStatistics:
    """Read a file of statistics; nothing in it is executed.

    Args:
        path: The file.
        key: What it must be of.

    Returns:
        The statistics.

    Raises:
        DamagedReferenceError: If the file is damaged or of another kind.
        UserError: If it is missing, or of another key.
    """
    if not path.exists():
        raise UserError(f"no reference statistics at {path}")
    if path.is_file() and not path.stat().st_size:
        raise DamagedReferenceError(f"{path} is empty: it must be computed again")
    try:
        with safe_open(readable(path), "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
            found, n = ReferenceKey(**json.loads(about["key"])), int(about["n"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            mean, cov, features = tensors["mean"], tensors["cov"], tensors.get("features")
            if about.get("content") != _content(tensors):
                raise ValueError("its numbers are not those that were written")
            d = len(mean)
            if cov.shape != ((d, d) if d <= MOST_FEATURES else (0, 0)) or (
                features is not None and features.shape != (n, d)
            ):
                raise ValueError(
                    f"its shapes do not fit each other: { ({k: tuple(v.shape) for k, v in tensors.items()}) }"
                )
    except UserError:  # it cannot be opened: computing it again would not help
        raise
    except Exception as error:  # damage shows in many ways: safetensors', torch's, json's
        raise DamagedReferenceError(
            f"{path} holds no reference statistics: {error}; it must be computed again"
        ) from error
    other = [name for name, value in asdict(key).items() if getattr(found, name) != value]
    if other:
        pairs = [f"{name} {getattr(found, name)[:24]!r} (wanted {getattr(key, name)[:24]!r})" for name in other]
        raise UserError(
            f"{path} is of other data or another extractor: {', '.join(pairs)}; delete it, and it is computed again"
        )
    return ReferenceStatistics(found, n, mean, cov, features)
