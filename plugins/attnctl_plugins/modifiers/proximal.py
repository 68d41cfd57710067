"""Proximal guidance: small differences between the two halves of guidance are noise of the inversion; drop them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from attnctl.controller import Controller, GuidanceCall, StepCall
from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.method import EditPlan, MethodConfig, ModelView, Preset
from attnctl.modifier import Modifier
from attnctl.request import PlanRequest

if TYPE_CHECKING:
    from torch import Tensor


PUBLISHED_WITH = ("negative-prompt", "null-text")
TRAINING_STEPS = 1000
"""The published threshold is an absolute timestep of a model with 1000 of them."""


class Proximal(Modifier):
    r"""Proximal guidance (Han et al., WACV 2024, arXiv 2306.05414).

    d = e_cond - e_uncond is shrunk by a threshold tau, the `quantile` of |d|, before guidance e = e_uncond + g d'.
    Late in the schedule, latents of the edit are drawn back to the inverted path where d' is within the threshold:
    x <- x - rate (x - L) (1 - E), with E the places where |d'| > tau, grown by `grow` latents.

    Published with negative-prompt and null-text inversion, whose unconditional half reconstructs the source.
    """

    name = "proximal"
    summary = "Drop small differences between the halves of guidance; keep what they leave on the source's path."
    paper = "arXiv:2306.05414"
    bibtex = """@inproceedings{han2024proxedit,
  title = {{ProxEdit}: Improving Tuning-Free Real Image Editing with Proximal Guidance},
  author = {Han, Ligong and Wen, Song and Chen, Qi and Zhang, Zhixing and Song, Kunpeng and Ren, Mengwei and others},
  booktitle = {WACV},
  year = {2024}
}"""
    presets: ClassVar[Mapping[str, Preset]] = {
        "reference": Preset(
            {"shrink": "l0", "quantile": 0.75, "scope": "both", "late_steps": 0.0},
            "As compared by Ju et al., arXiv 2310.01506: the authors' l0, which is soft, and no inversion guidance.",
        ),
        "proxedit": Preset(
            {"shrink": "l0", "quantile": 0.7, "scope": "both", "late_steps": 0.4, "rate": 1.0, "grow": 1},
            "The authors' code with inversion guidance in the last 40 % of the training timesteps.",
        ),
    }

    class Config(MethodConfig):
        """Settings of proximal guidance."""

        shrink: Literal["hard", "l0", "l1"] = Field(
            "hard",
            description="hard: differences within the threshold become 0, others stay (the l0 proximal operator); l0: "
            "what the authors' code calls so, soft shrinking; l1: what it calls so.",
        )
        quantile: float = Field(
            0.7, ge=0, le=1, description="The threshold is this quantile of |d|; 0 drops nothing, 1 everything."
        )
        threshold: float | None = Field(None, ge=0, description="A constant threshold in place of the quantile.")
        scope: Literal["edit", "both"] = Field(
            "edit", description="Whether the quantile is that of the edit lane, or of edit and source together."
        )
        late_steps: float = Field(
            0.4,
            ge=0,
            le=1,
            description="Share of the training timesteps, from the clean end, in which latents are drawn to the path.",
        )
        rate: float = Field(1.0, ge=0, le=1, description="How far they are drawn: 0 not at all, 1 onto the path.")
        grow: int = Field(1, ge=0, le=64, description="Latents by which the places that are left alone grow.")

    def modify(self, plan: EditPlan, request: PlanRequest, model: ModelView) -> EditPlan:
        """Put the shrinking of guidance, and for real pictures the pull to the path, before the method's controllers.

        Raises:
            InputError: The lane runs without guidance, or the method has its own.
        """
        guidance = request.guidance if plan.guidance is None else plan.guidance
        if guidance == 1:
            raise InputError("proximal changes guidance, and with guidance 1 there is none", hint="raise --guidance")
        if any(c.on_guidance is not None for c in plan.controllers):
            raise InputError("proximal changes guidance, which the method already does", hint="leave one of them out")
        config = self.config
        shrinking = _Shrinking(config)
        lanes = ("source",) if config.scope == "both" else ()
        added = [Controller("proximal guidance", on_guidance=shrinking.guide, lanes=lanes)]
        if plan.inversion is not None and config.late_steps > 0 and config.rate > 0:
            added.append(Controller("pull to the inverted path", on_step_end=shrinking.pull))
        notes = plan.notes
        if plan.inversion is None or plan.inversion.name not in PUBLISHED_WITH:
            with_what = "a generated source" if plan.inversion is None else plan.inversion.name
            notes = (*notes, f"proximal was published with {' and '.join(PUBLISHED_WITH)}, not with {with_what}")
        return replace(plan, controllers=(*added, *plan.controllers), notes=notes)


@dataclass
class _Shrinking:
    """One lane's proximal guidance; remembers the places that the last step changed."""

    config: Any
    changed: Tensor | None = None

    def guide(self, call: GuidanceCall) -> Tensor:
        """Return e_uncond + g d'."""
        uncond = call.uncond["self"]
        delta = call.cond["self"] - uncond
        tau = self._threshold(delta, call)
        shrunk = SHRINKS[self.config.shrink](delta, tau)
        self.changed = shrunk.abs() > tau
        return uncond + call.guidance * shrunk

    def pull(self, call: StepCall) -> Tensor | None:
        """Draw latents to the inverted path where the step changed nothing."""
        if call.step.timestep >= TRAINING_STEPS * self.config.late_steps or self.changed is None:
            return None
        x, path = call.latents["self"], call.reference
        if path is None:
            return None
        free = 1 - _grown(self.changed, self.config.grow).to(x.dtype)
        moved: Tensor = x - self.config.rate * (x - path) * free
        return moved

    def _threshold(self, delta: Tensor, call: GuidanceCall) -> Tensor:
        import torch

        if self.config.threshold is not None:
            return torch.tensor(self.config.threshold, dtype=delta.dtype, device=delta.device)
        if self.config.quantile == 0:
            return torch.zeros((), dtype=delta.dtype, device=delta.device)
        sizes = [delta.abs().flatten()]
        if self.config.scope == "both":
            sizes.append((call.cond["source"] - call.uncond["source"]).abs().flatten())
        wide = torch.promote_types(delta.dtype, torch.float32)  # what torch.quantile takes
        return torch.quantile(torch.cat(sizes).to(wide), self.config.quantile).to(delta.dtype)


def hard(delta: Tensor, tau: Tensor) -> Tensor:
    """Keep what exceeds the threshold as it is: the proximal operator of the l0 norm."""
    return delta * (delta.abs() > tau)


def soft(delta: Tensor, tau: Tensor) -> Tensor:
    """Move everything towards 0 by the threshold: the proximal operator of the l1 norm, in the authors' code ``l0``."""
    return delta - delta.clamp(-tau, tau)


def published_l1(delta: Tensor, tau: Tensor) -> Tensor:
    """Do what the authors' code does under the name ``l1``: it shrinks twice, and negative values may change sign."""
    import torch

    once = soft(delta, tau)
    once = torch.where(once > 0, once - tau, once)
    return torch.where(once < 0, once + tau, once)


SHRINKS = {"hard": hard, "l0": soft, "l1": published_l1}


def _grown(places: Tensor, by: int) -> Tensor:
    """Grow true places (C, h, w) by `by` in every direction, channel by channel."""
    from torch.nn import functional as F

    return F.max_pool2d(places.float(), 2 * by + 1, stride=1, padding=by) > 0


@hookimpl
def attnctl_modifiers() -> list[type[Modifier]]:
    """Register proximal guidance."""
    return [Proximal]
