"""Which guidance scale, in which interval? `python -m benchmarks.guidance ckpt=PATH out=DIR`

It draws from a model of labelled images at each scale of classifier-free guidance, everywhere and in intervals of noise
levels, and of classifier guidance too, given `classifier=FILE unconditional=FILE`. For each it measures the Fréchet
distance, precision and recall, density and coverage, and the share of samples that the extractor's classifier takes for
the class that was asked for, all with confidence intervals and from the same seeds and labels. The results are
`guidance.csv`, `guidance.json`, `guidance.md` and `guidance.png`. A run that was interrupted or killed resumes when it
is started again. Settings: conf/guidance.yaml.
"""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from benchmarks.guidance_picture import draw, markdown
from benchmarks.guided_points import GuidedBench, points_of
from sde_diffusion.commands.app import command, resolved
from sde_diffusion.storage import progress, record
from sde_diffusion.storage.files import forget, fresh, writing

log = logging.getLogger(__name__)


def guidance(cfg: DictConfig) -> list[dict[str, Any]]:
    """Measure and write `guidance.csv`, `guidance.md`, `guidance.png` and, last, `guidance.json`.

    Args:
        cfg: The composed configuration of conf/guidance.yaml.

    Returns:
        The rows of the table.

    Raises:
        UserError: If the configuration or a checkpoint does not allow it, or the results exist already.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    about = fresh(out / "guidance.json", cfg.overwrite, out / ".points")
    points = points_of(cfg)
    bench = GuidedBench(cfg, out / ".points", points)
    rows = [bench.baseline()]
    with progress.bar("settings", len(points)) as bar:
        for point in points:
            bar.update(name=str(point))
            rows.append(bench.measure(point))
            log.info("%s: %s", point, _short(rows[-1]))
            bar.update(advance=1)
    text = markdown(cfg, bench, rows)
    with writing(out / "guidance.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, bench, out / "guidance.png")
    with writing(out / "guidance.md") as temporary:
        temporary.write_text(text)
    facts = {
        "rows": [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows],
        "settings": resolved(cfg),
        "checkpoint_sha256": bench.digests,
        **record.provenance(),
    }
    with writing(about) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
    forget(out / ".points")
    log.info("%s", text)
    for name in ("guidance.csv", "guidance.png", "guidance.md", "guidance.json"):
        log.info("%s", out / name)
    return rows


def _short(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {row[name]:.3g}" for name in ("frechet_distance", "share", "precision", "recall"))


def main() -> None:
    command("guidance", guidance)


if __name__ == "__main__":
    main()
