"""No control: the target prompt alone, from the same start as the source. The baseline of every comparison."""

from __future__ import annotations

from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, ModelView, Source
from attnctl.request import PlanRequest


class Uncontrolled(EditMethod):
    """Plain generation with the target prompt from the source's start latents; a real picture is inverted first."""

    name = "none"
    summary = "No control: the target prompt alone, from the source's noise."
    no_op = True

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Plan one uncontrolled lane."""
        prompt = request.source_prompt or ""
        if request.real:
            return EditPlan(Source(prompt, pin="start"), inversion=InversionSpec(request.inversion or "ddim", prompt))
        if not prompt:
            raise InputError("a generated source needs a source prompt", hint="give --source-prompt")
        return EditPlan(Source(prompt))


@hookimpl
def attnctl_methods() -> list[type[EditMethod]]:
    """Register the uncontrolled lane."""
    return [Uncontrolled]
