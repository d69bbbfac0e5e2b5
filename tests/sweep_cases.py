"""Sweep files and runs for the tests of sweeps."""

import json
from pathlib import Path

import yaml
from conftest import TINY

SHORT = (
    *(word for word in TINY if "width" not in word),
    "trainer.max_steps=10",
    "trainer.val_check_interval=5",
    "callbacks.samples=null",
)
COMMAND = ["${env}", "python", "-m", "${program}", "${args_no_hyphens}"]
PLAIN = {
    "program": "sde_diffusion.train",
    "command": COMMAND,
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {"model.lr": {"values": [0.001, 0.01]}},
}


def written(folder: Path, **changes) -> Path:
    """PLAIN with changes, as a file; None leaves a key out."""
    path = folder / "sweep.yaml"
    kept = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())
