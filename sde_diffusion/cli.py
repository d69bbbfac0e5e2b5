"""What the commands share: Hydra with this package's configurations, and errors that a person can act on."""

from __future__ import annotations

import functools
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from sde_diffusion.errors import UserError

if TYPE_CHECKING:
    import torch

    from sde_diffusion.sampling import Samples
    from sde_diffusion.training.module import ScoreModel

log = logging.getLogger(__name__)


def config_folder() -> Path:
    """The folder of configurations: `conf/` of the source tree, or `sde_diffusion/conf` of an installed package."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configurations found beside {package}: reinstall sde_diffusion")


def run_folder(ckpt: str | None, default: str) -> str:
    """Where a training run goes: on resuming, the folder of the run that wrote RUN/checkpoints/NAME.ckpt."""
    if ckpt and Path(ckpt).parent.name == "checkpoints":
        return str(Path(ckpt).parent.parent)
    return default


def choices(name: str) -> str:
    """The groups that a command composes its configuration from, with their choices, for its help page."""
    defaults = OmegaConf.load(config_folder() / f"{name}.yaml").defaults
    groups = [str(group).split()[-1] for entry in defaults if isinstance(entry, DictConfig) for group in entry]
    known = {group: sorted(path.stem for path in (config_folder() / group).glob("*.yaml")) for group in groups}
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in known.items() if names)


def keys(name: str) -> str:
    """A command's own keys with their comments, as its file of defaults has them, for its help page."""
    text = (config_folder() / f"{name}.yaml").read_text()
    own = text.partition("\n\n")[2].partition("\n\nhydra:")[0]
    return own.replace("$", "$$")  # Hydra puts the whole page through string.Template


def command(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    """Run a command: compose its configuration from `sys.argv`, call the task, and turn mistakes into messages.

    Exits with status 1 and one message on a user's mistake, with 130 on Ctrl-C.
    """
    for resolver in (run_folder, choices, keys):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    sys.argv = nulls(sys.argv)
    # Hydra then raises its own errors instead of printing them, and they are told below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with telling():

        @functools.wraps(task)
        def told(cfg: DictConfig) -> Any:
            with telling():  # inside Hydra too, which would print its own report of an exception that passes through
                return task(cfg)

        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(told)()


@contextmanager
def telling() -> Iterator[None]:
    """Turn a user's mistake into one message and exit status 1, and Ctrl-C into status 130."""
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error).split(":")[-1].strip()
        _fail(f"{key} is needed: give {key}=VALUE (see --help)")
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error))
    except (FileExistsError, NotADirectoryError) as error:
        _fail(f"{error.filename} is or lies under a file: choose another folder")
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except RuntimeError as error:
        if "srun" not in str(error):
            raise
        _fail(f"hydra/launcher: {error} Without one, leave the launcher out, or take hydra/launcher=submitit_local")
    except KeyboardInterrupt:
        log.warning("interrupted")
        sys.exit(130)


def nulls(arguments: Sequence[str]) -> list[str]:
    """Arguments with KEY=None, which is how programs in Python such as wandb's agents spell it, as KEY=null.

    To Hydra None would be a word like another.
    """
    return [re.sub(r"(?<==)None$", "null", argument) for argument in arguments]


def interpreter() -> str:
    """What to type for this Python: `python` where that is the one running, else its path."""
    found = shutil.which("python")
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    return "python" if same else shlex.quote(sys.executable)


def plain(node: Any) -> Any:
    """A configuration node as plain containers, interpolations resolved.

    Raises:
        UserError: If a value that must be given is missing.
    """
    if not isinstance(node, DictConfig | ListConfig):
        return node
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise UserError(f"{', '.join(missing)} must be given: add {' '.join(f'{key}=VALUE' for key in missing)}")
    return OmegaConf.to_container(node, resolve=True)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def explain(error: BaseException) -> str:
    """Hydra's message, and for an unknown key or choice those that are allowed there."""
    if isinstance(error, MissingConfigException) and str(error.missing_cfg_file).startswith("hydra/launcher/submitit"):
        return "this launcher is Hydra's for submitit, which is not installed: pip install 'sde_diffusion[slurm]'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name} is no choice; choose {group}= from {', '.join(error.options)}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return f"{str(error).rpartition('full_key: ')[2]}: {error.__cause__}"
    absent = re.match(r"Could not override '(\w+)'", str(error))
    if absent and absent[1] == "sweeps":
        return "sweeps= is no group: the files of conf/sweeps are for wandb sweep and python -m sde_diffusion.sweep"
    if absent and (config_folder() / absent[1]).is_dir():
        return f"no {absent[1]}= here (what a model was trained with comes with its checkpoint); see --help"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigKeyError | OmegaConfBaseException) and isinstance(
            getattr(cause, "parent_node", None), DictConfig
        ):
            parent: DictConfig = cause.parent_node
            if getattr(cause, "key", None) is not None and cause.key not in parent:
                where = parent._get_full_key(None)
                allowed = ", ".join(sorted(str(key) for key in parent))
                place = f" in {where}" if where else ""
                return f"unknown key {cause.full_key or cause.key!r}; allowed{place}: {allowed}"
        cause = cause.__cause__
    return str(error).strip()


def load_model(cfg: DictConfig) -> tuple[ScoreModel, torch.device]:
    """The model of `cfg.ckpt` on `cfg.device` (auto: a GPU if there is one).

    Raises:
        UserError: If the checkpoint cannot be read, or the device is not there.
    """
    import torch

    from sde_diffusion.training.module import ScoreModel

    name = cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here; take device=cpu, or device=auto") from error
    return ScoreModel.load_from_checkpoint(cfg.ckpt, map_location=device), device


def draw(cfg: DictConfig, model: ScoreModel, device: torch.device, folder: Path) -> tuple[Samples, float]:
    """The samples that a configuration asks for, in batches that outlive a killed process.

    Args:
        cfg: A configuration with ckpt, sampler, n, seed, label, batch_size and overwrite.
        model: The model of `cfg.ckpt`.
        device: Where to sample.
        folder: Where the batches are kept until `parts.forget` is called.

    Returns:
        The samples, on the CPU, and the seconds that they took in all.

    Raises:
        UserError: If a value is not allowed, or the folder holds other samples' beginnings.
    """
    from sde_diffusion.config import build
    from sde_diffusion.sampling.batches import sample_resumably

    seeds = check_seeds(cfg)
    labels = class_labels(cfg, model.hparams["n_classes"])
    plan = {
        "checkpoint": checkpoint_digest(cfg.ckpt),
        "sampler": plain(cfg.sampler),
        "n": cfg.n,
        "seed": cfg.seed,
        "labels": None if labels is None else labels.tolist(),
    }
    labels = None if labels is None else labels.to(device)
    sampler, dims = build(plan["sampler"]), model.data["shape"]
    try:
        return sample_resumably(
            *(folder, plan, sampler, model.denoiser, dims, seeds, cfg.batch_size, labels),
            overwrite=cfg.overwrite,
            device=device,
        )
    except ValueError as error:  # what a sampler can only tell once it knows the model's path
        raise UserError(f"{error}{given('sampler')}") from error
    except KeyboardInterrupt:
        log.warning("the batches drawn so far are kept in %s: the same command goes on from there", folder)
        raise


def checkpoint_digest(ckpt: str) -> str:
    """SHA-256 of a checkpoint's bytes, which says what results were made of."""
    import hashlib

    with Path(ckpt).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def class_labels(cfg: DictConfig, n_classes: int) -> torch.Tensor | None:
    """The classes to sample, int64 [n]: label=N for one, null for all in turn; None for a model without classes.

    Raises:
        UserError: If a label is given that the model does not know.
    """
    import torch

    if not n_classes:
        if cfg.label is not None:
            raise UserError("this model knows no classes: leave label out (train one with conditional=true)")
        return None
    if cfg.label is None:
        return torch.arange(cfg.n) % n_classes
    if not isinstance(cfg.label, int) or not 0 <= cfg.label < n_classes:
        raise UserError(f"label must be one of 0 ... {n_classes - 1}, or null for all in turn; got {cfg.label}")
    return torch.full((cfg.n,), cfg.label)


def check_seeds(cfg: DictConfig) -> range:
    """The seeds of n samples, seed, seed + 1, ...

    Args:
        cfg: A configuration with n, seed and batch_size.

    Raises:
        UserError: If one of them is not a whole number, n or batch_size is not positive, or a seed exceeds 64 bits.
    """
    for key, least in (("n", 1), ("batch_size", 1), ("seed", -(2**63))):
        whole(cfg, key, least)
    if cfg.seed + cfg.n > 2**63:
        raise UserError(f"seeds must lie below 2^63; got seed={cfg.seed} for n={cfg.n} samples")
    return range(cfg.seed, cfg.seed + cfg.n)


def whole(cfg: DictConfig, key: str, least: int) -> None:
    """See that a value is a whole number of at least `least` that fits into 64 bits.

    Raises:
        UserError: If it is not.
    """
    value = OmegaConf.select(cfg, key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        limit = f" of at least {least}" if least > -(2**63) else " of at most 64 bits"
        raise UserError(f"{key} must be a whole number{limit}; got {key}={value}")


def given(group: str) -> str:
    """What the command line says about a group, for messages: " (given: trainer.precision=foo)"."""
    overrides = [override for override in HydraConfig.get().overrides.task if override.startswith(f"{group}.")]
    return f" (given: {' '.join(overrides)})" if overrides else ""
