"""Draws from posteriors for `sde_diffusion.restore`, by any method, in batches that are stored as they are finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_diffusion.commands.app import is_overridden, override_hint, resolved
from sde_diffusion.commands.conditions import digests
from sde_diffusion.commands.drawing import check_guided, check_seeds
from sde_diffusion.commands.loading import denoiser_of
from sde_diffusion.commands.restored import exactly
from sde_diffusion.commands.sampling_run import Sampled, sample_in_batches
from sde_diffusion.config import build
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.errors import UserError
from sde_diffusion.guidance import Operator, PosteriorDenoiser, PosteriorMethod
from sde_diffusion.sampling import Sampler, Samples

if TYPE_CHECKING:
    from sde_diffusion.training.generative import GenerativeModel
    from sde_diffusion.training.measured import Measured


class PosteriorDraws:
    """The posterior that a configuration describes, of a model's data given measurements.

    One network pass is made at once, so that what the method does not support is known before the work.

    Args:
        cfg: The composed configuration of conf/restore.yaml.
        model: The model of `cfg.ckpt`.
        operator: A.
        y: The measurements, [N, *out].
        conditions: Conditions of each, [N, *] each.
        device: Where to sample.
        own: What the model itself was trained given, if its belief is used; `conditions` then have it, and the
            configuration has neither operator nor posterior.

    Attributes:
        settings: The operator and the posterior, as reported.

    Raises:
        UserError: If the method does not support the operator, the noise or the model, has steps of its own although
            a sampler is given, or has no evidence although it is asked for.
    """

    def __init__(
        self,
        cfg: DictConfig,
        model: GenerativeModel,
        operator: Operator,
        y: Tensor,
        conditions: Mapping[str, Tensor],
        device: torch.device,
        own: Measured | None = None,
    ) -> None:
        self.cfg, self.model, self.device, self.operator = cfg, model, device, operator.to(device)
        self.sampler: Sampler = build(resolved(cfg.sampler), "sampler")
        self.network = self.denoiser = denoiser_of(model)
        self.settings = {"operator": model.hparams.get("measured", {}).get("operator"), "posterior": None}
        self.takes_y = own is None
        if self.takes_y:
            self.settings = {key: resolved(cfg[key]) for key in ("operator", "posterior")}
            self._choose(self.sampler)
        elif cfg.evidence:
            raise UserError("evidence=true needs posterior=smc and an operator: the model's own belief has none")
        known = {**conditions, "y": y}
        self.known = {name: values.repeat_interleave(cfg.n, 0).to(device) for name, values in known.items()}
        check_guided(model, {name: values for name, values in self.known.items() if name != "y"}, len(self.known["y"]))
        self._try()

    def _choose(self, given: Sampler) -> None:
        """Set the sampler and the denoiser of the posterior that is asked for."""
        method: PosteriorMethod = build(self.settings["posterior"], "posterior")
        likelihood, self.sampler = method.likelihood_and_sampler(given)
        self._check_choice(given)
        try:
            self.denoiser = PosteriorDenoiser(self.network, self.operator, self.cfg.noise, likelihood).to(self.device)
        except ValueError as error:  # of a model with a condition y
            raise UserError(f"{self.cfg.ckpt}: {error}") from error

    def _check_choice(self, given: Sampler) -> None:
        name = type(self.sampler).__name__
        if self.sampler is not given and is_overridden("sampler"):
            raise UserError(
                f"{name}{override_hint('posterior')} has steps of its own, and takes no sampler"
                f"{override_hint('sampler')}: set its own, such as posterior.steps=50 (see --help), or leave it out"
            )
        if self.cfg.evidence and not self.sampler.has_evidence:
            raise UserError(
                f"evidence=true needs posterior=smc: {name} draws samples, and has no estimate of log p(y)"
                f"{override_hint('posterior')}"
            )

    def _try(self) -> None:
        first: dict[str, Any] = {name: values[:1] for name, values in self.known.items() if self._passed(name)}
        try:
            self.sampler(
                self.denoiser, (1, *self.model.data["shape"]), callback=lambda *_: True, device=self.device, **first
            )
        except (ValueError, TypeError) as error:
            keys = ("posterior", "sampler", "operator", "guidance")
            hint = "".join(override_hint(key) for key in keys).replace(") (given:", "")
            takes = "; posterior=mmps, the default, takes any differentiable operator, and noise=0"
            raise UserError(f"{error}{hint}{takes if is_overridden('posterior') else ''}") from error

    @property
    def remedy(self) -> str:
        """What to try if draws diverge or do not agree with the measurements."""
        other = ", posterior=mmps (the default)" if is_overridden("posterior") else ""
        return f"try more steps{other}, or a larger noise"

    def _passed(self, name: str) -> bool:
        """Whether the denoiser takes a condition: y is only kept for the end where the model is told it otherwise."""
        return self.takes_y or name != "y"

    @property
    def at_once(self) -> int:
        """Number of draws in a batch: batch_size counts states, of which a draw may have several."""
        return max(1, int(self.cfg.batch_size) // self.sampler.states)

    def draw(self, folder: Path) -> Sampled:
        """The draws, n for each measurement; stored are x, `gradients`, and `log_evidence` if there is any.

        Args:
            folder: Where batches are stored until all are finished.

        Raises:
            UserError: If the folder has unfinished batches of other draws, or NaN or infinite numbers are drawn.
        """
        cfg, operator = self.cfg, self.operator
        kept = ("sampler", "guidance", "noise", "n", "seed")
        plan = {
            "checkpoint": self.model.digest,
            **({"guides": self.model.guides} if self.model.guides else {}),
            **{key: resolved(cfg[key]) for key in kept},
            **self.settings,
            "conditions": digests(self.known),
            "buffers": digests(dict(operator.named_buffers())),  # such as the mask, which a file describes
        }

        def with_y(denoiser: Denoiser, shape: tuple[int, ...], y: Tensor, **options: Any) -> Samples:
            try:
                given: dict[str, Any] = {"y": y} if self.takes_y else {}
                found: Samples = self.sampler(denoiser, shape, **given, **options)
            except UserError as error:  # NaN or infinite numbers
                raise UserError(f"{error}; {self.remedy}") from error
            return found if cfg.noise else dataclasses.replace(found, x=exactly(operator, found.x, y))

        def stored(drawn: Samples) -> dict[str, Tensor]:
            found = {"x": drawn.x, "gradients": torch.tensor(drawn.gradients)}
            return found if drawn.log_evidence is None else {**found, "log_evidence": drawn.log_evidence}

        return sample_in_batches(
            with_y,
            self.denoiser,
            self.model.data["shape"],
            check_seeds(cfg, len(self.known["y"]) // cfg.n),
            self.at_once,
            self.known,
            stored,
            ("gradients", "log_evidence") if self.sampler.has_evidence else ("gradients",),
            folder=folder,
            plan=plan,
            overwrite=cfg.overwrite,
            counted=self.network,
            device=self.device,
        )
