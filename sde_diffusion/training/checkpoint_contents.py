"""What a checkpoint must contain: structure and type of each entry that this package or Lightning reads.

Lightning 2.6 copies most of a checkpoint into its objects unchecked (`__dict__.update`), so that a wrong type would
cause an error much later, in the middle of training. Here it is one message before the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sde_diffusion.checks.arguments import integer_words
from sde_diffusion.checks.reprs import shown
from sde_diffusion.training.consistency import check_consistency
from sde_diffusion.training.entries import (
    ANYTHING,
    COUNT,
    FLAG,
    MAPPING,
    NUMBER,
    RELEASE,
    ROOT,
    SCALAR,
    SETTINGS,
    SIMPLE,
    TENSOR,
    TEXT,
    ContentsError,
    Each,
    Either,
    Entries,
    Kind,
    Value,
    check_size,
    leaves,
)

FORMAT = 1
"""Version of the layout of checkpoints; increased when earlier versions of this package could not read it."""

_LEAVES = (str, bytes, bool, int, float, complex, type(None), Tensor, torch.dtype, torch.device, torch.Size)

_READY = Entries({"ready": COUNT, "completed": COUNT})
_STARTED = Entries({**_READY.required, "started": COUNT})
_PROCESSED = Entries({**_STARTED.required, "processed": COUNT})


def _progress(tracker: Entries, **more: Kind) -> Entries:
    return Entries({"total": tracker, "current": tracker, **more})


_FIT_LOOP = Entries(
    {
        "epoch_progress": _progress(_PROCESSED),
        "epoch_loop.batch_progress": _progress(_PROCESSED, is_last_batch=FLAG),
        "epoch_loop.scheduler_progress": _progress(_READY),
        "epoch_loop.automatic_optimization.optim_progress": Entries(
            {"optimizer": Entries({"step": _progress(_READY), "zero_grad": _progress(_STARTED)})}
        ),
    },
    {
        "state_dict": Entries({}, {"combined_loader": Each(MAPPING)}, ANYTHING),
        "epoch_loop.state_dict": Entries({}, {"_batches_that_stepped": COUNT}, ANYTHING),
        "epoch_loop.manual_optimization.optim_step_progress": _progress(_READY),
        "epoch_loop.val_loop.batch_progress": _progress(_PROCESSED, is_last_batch=FLAG),
    },
    MAPPING,
)

_MODEL_CHECKPOINT = Entries(
    {"best_model_path": TEXT, "best_model_score": Either(SCALAR)},
    {
        "dirpath": Either(TEXT),
        "kth_best_model_path": TEXT,
        "last_model_path": TEXT,
        "kth_value": Either(SCALAR),
        "current_score": Either(SCALAR),
        "best_k_models": Each(SCALAR, str),
    },
    ANYTHING,
)

_CALLBACKS = Entries(
    {},
    {
        "EMA": Entries({"latest_update_step": COUNT, "updates": COUNT}, others=ANYTHING),
        "SampleGrid": Entries({"validations": COUNT}, others=ANYTHING),
        "Timer": Entries({"time_elapsed": Each(NUMBER, str)}, others=ANYTHING),
    },
    ANYTHING,
)

_OPTIMIZER = Entries(
    {
        "state": Each(Entries({"step": SCALAR, "exp_avg": TENSOR, "exp_avg_sq": TENSOR}, others=ANYTHING), int),
        "param_groups": Each(Entries({"params": Each(COUNT)}, {"betas": Each(NUMBER)}, SIMPLE)),
    }
)

_SCHEDULER = Entries(
    {
        "last_epoch": COUNT,
        "_step_count": COUNT,
        "lr_lambdas": Each(Value("null", lambda value: value is None)),
    },
    {"base_lrs": Each(NUMBER), "_last_lr": Each(NUMBER)},
    SIMPLE,
)

_SCALER = Entries(
    dict.fromkeys(("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"), NUMBER),
    {},
    SIMPLE,
)

_DATA = Entries(
    {},
    {
        "name": TEXT,
        "shape": Each(COUNT),
        "modality": SETTINGS,
        "levels": Either(Value(integer_words(2, 256), lambda value: type(value) is int and 2 <= value <= 256)),
        "data_range": Each(NUMBER),
        "conditions": Each(SETTINGS, str),
        "n_classes": COUNT,  # of version 0.1.0, as class_names
        "class_names": Either(Each(TEXT)),
        "std": NUMBER,
        "units": Either(Entries({"low": Each(NUMBER), "high": Each(NUMBER)})),
        "config": SETTINGS,
        "fingerprint": Either(Each(Entries({"items": COUNT, "digest": TEXT}), str)),
    },
    ANYTHING,
)

_GROUPS = ("sde", "network", "denoiser", "objective", "data", "model", "sampler")

_RUN = Entries(
    {
        **dict.fromkeys(_GROUPS, SETTINGS),
        "trainer": SETTINGS,
        "seed": Value(integer_words(0, 2**32 - 1), lambda value: type(value) is int and 0 <= value < 2**32),
        "conditional": FLAG,
    },
    {"callbacks": Each(Either(SETTINGS), str), "record": SETTINGS, "guidance": Either(SETTINGS)},
    ANYTHING,
)

_COUNTER = Value("a counter", lambda value: isinstance(value, Tensor) and value.shape == () and not value.is_complex())
_METRICS = Each(Value("a number", lambda value: type(value) in (int, float)), str)

_CONTENTS = Entries(
    {
        "sde_diffusion": Entries(
            {"version": TEXT},
            {"format": COUNT, "model": TEXT, "run": Either(_RUN, empty=True), "metrics": _METRICS, "within_step": FLAG},
            ANYTHING,
        ),
        "hyper_parameters": SETTINGS,
        "state_dict": Each(TENSOR, str),
    },
    {
        "pytorch-lightning_version": RELEASE,
        "epoch": COUNT,
        "global_step": COUNT,
        "loops": Entries({"fit_loop": _FIT_LOOP}, others=MAPPING),
        "callbacks": _CALLBACKS,
        "optimizer_states": Each(_OPTIMIZER),
        "lr_schedulers": Each(_SCHEDULER),
        "current_model_state": Each(TENSOR, str),
        "averaging_state": Entries({"n_averaged": _COUNTER}),
        "MixedPrecision": Either(_SCALER, empty=True),
        "native_amp_scaling_state": Either(_SCALER, empty=True),
    },
    ANYTHING,
)

_TO_RESUME = {
    "global_step": "the count of steps",
    "epoch": "the count of epochs",
    "loops": "the place in the data",
    "optimizer_states": "the optimizer's moments",
    "lr_schedulers": "the place in the learning rate schedule",
    "callbacks": "the callbacks' counts",
    "pytorch-lightning_version": "Lightning's version",
}


def check_contents(checkpoint: Any) -> None:
    """Check that every entry has the type and structure that this package and Lightning expect, and its stated size.

    Raises:
        ContentsError: If one has not; the message says which.
    """
    check_size(checkpoint)
    for key, value in leaves(checkpoint):
        _check_leaf(key, value)
    _CONTENTS.check(checkpoint, ROOT)
    hyper_parameters = checkpoint["hyper_parameters"]
    Either(_DATA, empty=True).check(hyper_parameters.get("data"), "hyper_parameters.data")
    check_consistency(checkpoint)
    for number, state in enumerate(checkpoint.get("lr_schedulers", [])):
        for key in state:
            if key == "optimizer" or callable(getattr(LambdaLR, key, None)):  # the state would overwrite these
                raise ContentsError(f"lr_schedulers[{number}].{key} is not part of a schedule's state")
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint"):
            place = f"callbacks.{name.partition('{')[0]}"
            _MODEL_CHECKPOINT.check(state, place)
            if state.get("best_k_models") and state.get("kth_best_model_path") not in state["best_k_models"]:
                raise ContentsError(f"{place}.kth_best_model_path is not in {place}.best_k_models")


def _check_leaf(key: Any, value: Any) -> None:
    place = "one of its lists" if key is None else f"its entry {shown(key)}"
    for entry in (key, value):
        if not isinstance(entry, _LEAVES):
            raise ContentsError(f"{place} has an object of type {type(entry).__name__}")
        if isinstance(entry, int) and abs(entry) >= 2**64:
            raise ContentsError(f"{place} has an integer of more than 64 bits")
        if isinstance(entry, str) and "\0" in entry:
            raise ContentsError(f"{place} has text with a zero byte")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise ContentsError(f"{place} has a tensor that is not dense")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ContentsError(f"{place} has a tensor of {value.numel():,} values, and the file has fewer")


def check_resumable(checkpoint: Mapping[str, Any]) -> None:
    """Check that a run can be resumed exactly from checked contents.

    Raises:
        ContentsError: If something is missing; the message says what.
    """
    lacking = [what for name, what in _TO_RESUME.items() if name not in checkpoint]
    run = checkpoint["sde_diffusion"].get("run") or {}
    if "callbacks" in checkpoint and (run.get("callbacks") or {}).get("ema"):
        averaging = {*checkpoint, *checkpoint["callbacks"]}
        if not averaging >= {"current_model_state", "averaging_state", "EMA"}:
            lacking.append("the raw weights, beside their moving average")
    if checkpoint["sde_diffusion"].get("within_step"):
        raise ContentsError("it was written within a step, before the last batch of its gradient accumulation")
    if lacking:
        raise ContentsError(f"it lacks {', '.join(lacking)}")
    if len(checkpoint["optimizer_states"]) != 1 or len(checkpoint["lr_schedulers"]) != 1:
        raise ContentsError("it must have the state of one optimizer and of one schedule")
    fit = checkpoint["loops"]["fit_loop"]
    steps = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    if steps != checkpoint["global_step"]:
        raise ContentsError(f"global_step is {checkpoint['global_step']}, but its optimizer has taken {steps} steps")
    if run and len(fit.get("state_dict", {}).get("combined_loader", [None])) != 1:
        raise ContentsError("loops.fit_loop.state_dict.combined_loader must be one entry long")
