"""Putting together what a method plans, the inversion that the user wants, and modifiers; refusing what cannot work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from attnctl.errors import InputError

if TYPE_CHECKING:
    from attnctl.inversion import Inversion
    from attnctl.method import EditMethod, EditPlan, ModelView
    from attnctl.registry import Registry
    from attnctl.request import Edit, EditRequest, PlanRequest


def compose(
    plan: EditPlan,
    method: EditMethod,
    edit: Edit,
    request: EditRequest,
    seen: PlanRequest,
    registry: Registry,
    view: ModelView,
) -> EditPlan:
    """Complete a method's plan: settings and wishes of its inversion, then the edit's modifiers, in their order.

    Args:
        plan: What the method planned.
        method: The method.
        edit: The edit that it was planned for.
        request: The whole request.
        seen: What the method saw of it.
        registry: Where inversions and modifiers are looked up.
        view: The model's structure.

    Raises:
        AttnctlError: The parts cannot work together; the message says why.
    """
    if plan.inversion is not None:
        plan = _with_inversion(plan, method, request, registry)
    for name, settings in edit.modifiers.items():
        plan = registry.make_modifier(name, settings).modify(plan, seen, view)
    return plan


def _with_inversion(plan: EditPlan, method: EditMethod, request: EditRequest, registry: Registry) -> EditPlan:
    """Take over how an inversion wants lanes to be pinned and guided, where the method does not say."""
    assert plan.inversion is not None
    spec = plan.inversion
    notes = plan.notes
    if request.inversion is not None and spec.name != request.inversion:
        refusal = f"{method.name} works with the inversion {spec.name} alone, not with {request.inversion}"
        if all(edit.method_name == method.name for edit in request.edits):
            raise InputError(refusal, hint="leave --inversion out")
        notes = (*notes, refusal)  # other methods of the run take the one that is asked for
    elif request.inversion is not None:
        spec = spec.with_settings(request.inversion_settings)
    inversion = registry.make_inversion(spec)
    guidance = request.guidance
    source, edits = inversion.source_guidance(guidance), inversion.edit_guidance(guidance)
    if plan.source.pin is None:
        pin = plan.source.pin_plain if plan.source.pin_plain and inversion.plain else inversion.pin
        plan = replace(plan, source=replace(plan.source, pin=pin))
    if plan.source.guidance is None and source != guidance:
        plan = replace(plan, source=replace(plan.source, guidance=source))
    if plan.guidance is None and edits != guidance:
        plan = replace(plan, guidance=edits)
    if (source, edits) != (guidance, guidance):
        notes = (*notes, f"{spec.name} guides sources with {source:g} and edits with {edits:g}, not with {guidance:g}")
    own = plan.negative_prompt or plan.source.negative_prompt
    whose = f"the negative prompt of {method.name}" if own else "--negative-prompt"
    check_unconditional(
        inversion, own or request.negative_prompt, guidance if plan.guidance is None else plan.guidance, whose
    )
    return replace(plan, inversion=spec, notes=notes)


def check_unconditional(
    inversion: Inversion, negative_prompt: str, guidance: float, whose: str = "--negative-prompt"
) -> None:
    """Refuse texts that an inversion would overwrite, and guidance that would never read what it writes.

    Args:
        inversion: The inversion.
        negative_prompt: Text of the unconditional half.
        guidance: Guidance scale of the lane.
        whose: What to call the negative prompt.

    Raises:
        InputError: The inversion replaces the unconditional text, and something else wants it or nothing reads it.
    """
    if not inversion.replaces_uncond:
        return
    if guidance == 1:
        raise InputError(
            f"{inversion.name} replaces the unconditional text, which guidance 1 never reads",
            hint="give --guidance above 1, or another --inversion",
        )
    if negative_prompt:
        raise InputError(
            f"{inversion.name} replaces the unconditional text, so {whose} would have no effect",
            hint="leave the negative prompt empty, or use another --inversion",
        )
