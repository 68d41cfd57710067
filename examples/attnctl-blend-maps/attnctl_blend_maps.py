"""Blend the source's and the edit's self-attention maps: w A_src v + (1 - w) A_edit v, as an attnctl plugin."""

from __future__ import annotations

from pydantic import Field

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Source
from attnctl.request import PlanRequest
from attnctl.sites import Where
from attnctl.steps import When


class BlendMaps(EditMethod):
    """A weighted sum of two maps is linear, so it is two fused attentions and no map is held in memory."""

    name = "blend-maps"
    summary = "Blend the source's self-attention maps with the edit's own."

    class Config(MethodConfig):
        """Settings."""

        weight: float = Field(0.5, ge=0, le=1, description="Weight of the source's map.")
        until: float = Field(0.8, ge=0, le=1, description="Fraction of the schedule in which maps are blended.")

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Plan one edit lane."""
        w = self.config.weight
        blend = Controller(
            name="blended maps",
            where=Where(kind="self", min_downscale=2),
            when=When(0, self.config.until if w else 0),
            attend=w * Attend(q="source", k="source", v="self") + (1 - w) * Attend(),
        )
        prompt = request.source_prompt or ""
        if not request.real:
            return EditPlan(Source(prompt), (blend,))
        return EditPlan(Source(prompt, pin="start"), (blend,), InversionSpec(request.inversion or "ddim", prompt))


@hookimpl
def attnctl_methods() -> list[type[EditMethod]]:
    """Register the method."""
    return [BlendMaps]
