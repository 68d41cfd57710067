"""From a request to lanes and bound controllers: every decision of a run before the first denoiser call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from attnctl.engine.composing import compose
from attnctl.engine.operation import Bound
from attnctl.engine.recorder import PlannedReading, plan_readings
from attnctl.errors import InputError, PluginError, SelectionError, unknown
from attnctl.masks import check_users, fit_mask
from attnctl.method import EditMethod, EditPlan, ModelView, Source
from attnctl.steps import Step

if TYPE_CHECKING:
    from attnctl.branches import Half
    from attnctl.guidance import Guidance
    from attnctl.inversion import InversionSpec
    from attnctl.model import Model
    from attnctl.registry import Registry
    from attnctl.request import EditRequest


@dataclass(frozen=True, eq=False)
class PlannedLane:
    """One picture that will denoise, before anything is encoded.

    Attributes:
        name: ``source``, ``source[1]``, ... or an edit's name.
        prompt: Its text.
        negative_prompt: Text of its unconditional half.
        guidance: How it is guided.
        pin: As in `Source.pin`; edits are never pinned.
        edit: Index of the edit in the request; None for sources.
        text: Its conditional text as a weighted sum of prompts; empty means its prompt.
        trivial: Whether both halves have the same text, so that one row serves both.
    """

    name: str
    prompt: str
    negative_prompt: str
    guidance: Guidance
    pin: str = "none"
    edit: int | None = None
    text: tuple[tuple[str, float], ...] = ()
    trivial: bool = False
    start: int = 0

    @property
    def halves(self) -> tuple[Half, ...]:
        """The halves that its own guidance needs."""
        return self.guidance.halves


@dataclass(eq=False)
class PlannedEdit:
    """One edit with its method, plan, source lane and bound controllers."""

    index: int
    name: str
    method: EditMethod
    plan: EditPlan
    source: str
    bounds: list[Bound] = field(default_factory=list)


@dataclass(eq=False)
class RunPlan:
    """Everything that a run will do; nothing in it changes when it is run, so that it can be run again.

    Attributes:
        lanes: Lanes by name, sources first.
        edits: Edits in the request's order.
        inversions: Distinct inversions that the lanes need, by source lane name.
        readings: What will be recorded, and the bytes that it takes.
        again: Makes the same plan anew.
    """

    lanes: dict[str, PlannedLane]
    edits: list[PlannedEdit]
    inversions: dict[str, InversionSpec]
    again: Callable[[], RunPlan]
    readings: tuple[PlannedReading, ...] = ()

    @property
    def bounds(self) -> list[Bound]:
        """All bound controllers."""
        return [b for e in self.edits for b in e.bounds]

    def fresh_bounds(self) -> list[Bound]:
        """Return the bound controllers for one run, which count there where they acted.

        Every method is asked again: its callbacks may remember something from step to step, and a run must not find
        what another one left.
        """
        return self.again().bounds


def model_view(model: Model, latent_size: tuple[int, int]) -> ModelView:
    """Return what methods may know of a model at a latent size (h, w)."""
    return ModelView(
        model.sites,
        latent_size,
        model.text_length,
        model.pipe.tokenizer,
        str(model.device),
        model.tokens,
        model.family,
        model.adapter.inversion,
    )


def plan_run(
    request: EditRequest,
    model: Model,
    registry: Registry,
    latent_size: tuple[int, int],
    steps: Sequence[Step],
) -> RunPlan:
    """Ask every method for its plan and bind it; runs no denoiser.

    Raises:
        AttnctlError: A method refuses the request, or a selector selects nothing.
    """
    view = model_view(model, latent_size)
    run = RunPlan({}, [], {}, partial(plan_run, request, model, registry, latent_size, steps))
    sources: dict[Any, str] = {}
    mask = None if request.mask is None else fit_mask(request.mask, latent_size, model.vae_scale)
    if mask is not None:
        check_users({edit.method_name: registry.method(edit.method).uses_mask for edit in request.edits})
    for i, edit in enumerate(request.edits):
        method = registry.make_method(edit.method, edit.settings, edit.preset)
        seen = request.plan_request(i, mask)
        plan = compose(method.plan(seen, view), method, edit, request, seen, registry, view)
        if mask is not None and not method.uses_mask:
            plan = replace(plan, notes=(*plan.notes, f"{method.name} makes no use of the mask"))
        _check_needs(method, plan, request, registry)
        plan = replace(plan, source=_settled(plan, request))
        key = (plan.source, plan.inversion)
        if key not in sources:
            name = "source" if not sources else f"source[{len(sources)}]"
            if sources:
                first = next(iter(sources))
                why = _why_apart(plan, *first)
                plan = replace(plan, notes=(*plan.notes, f"{method.name} has a source lane of its own: {why}"))
            sources[key] = name
            run.lanes[name] = _source_lane(name, plan, model)
            if plan.inversion is not None:
                run.inversions[name] = plan.inversion
        planned = PlannedEdit(i, request.lane_name(i), method, plan, sources[key])
        planned.bounds = [_bind(c, planned, view, steps, request, model) for c in plan.controllers]
        planned.plan = replace(plan, notes=(*plan.notes, *_notes(planned, len(steps))))
        run.edits.append(planned)
    _add_edit_lanes(run, request, model)
    _check_lanes(run, steps)
    asked = (request.recordings, run.lanes, model, latent_size, steps, request.max_recorded)
    run.readings = plan_readings(*asked) if request.recordings else ()
    return run


def _add_edit_lanes(run: RunPlan, request: EditRequest, model: Model) -> None:
    """Add a lane for every edit, behind the sources."""
    for planned in run.edits:
        if planned.name in run.lanes:
            raise SelectionError(f"two lanes are called {planned.name!r}", hint="give every edit its own name")
        if planned.name == "self":
            raise SelectionError("a lane cannot be called 'self', which stands for the lane itself", hint="rename it")
        edit = request.edits[planned.index]
        negative = request.negative_prompt if planned.plan.negative_prompt is None else planned.plan.negative_prompt
        scale = request.guidance if planned.plan.guidance is None else planned.plan.guidance
        run.lanes[planned.name] = PlannedLane(
            planned.name,
            edit.prompt,
            negative,
            model.adapter.guidance(scale),
            edit=planned.index,
            text=planned.plan.text,
        )


def _check_needs(method: EditMethod, plan: EditPlan, request: EditRequest, registry: Registry) -> None:
    """Refuse pairs of picture, method and inversion that cannot work."""
    if request.real and plan.inversion is None:
        raise PluginError(
            f"{method.name} plans no inversion, so it cannot edit a real picture", hint="use another method"
        )
    if not request.real and plan.inversion is not None:
        raise PluginError(f"{method.name} plans an inversion, but there is no picture to invert", hint="give --image")
    needs = {method.name: method.needs_source_prompt}
    if plan.inversion is not None:
        needs[plan.inversion.name] = registry.inversion(plan.inversion.name).needs_prompt
    for name, prompt_needed in needs.items():
        if prompt_needed and request.real and not (request.source_prompt or "").strip():
            raise InputError(f"{name} needs a prompt that describes the picture", hint="give --source-prompt")


def _check_lanes(run: RunPlan, steps: Sequence[Step]) -> None:
    """Refuse controllers that read lanes which do not exist, before a denoiser call runs into it."""
    for bound in run.bounds:
        if bound.controller.is_step_action and not bound.controller.predicts:
            continue  # what they read, they ask for by name when they run
        read = {name for s in steps if bound.active(s) for name in bound.controller.reads(s)}
        for name in sorted(read):
            if bound.lane_of(name) not in run.lanes:
                raise unknown(f"lane in controller {bound.label!r}:", name, ["self", *run.lanes], cls=SelectionError)


def _notes(planned: PlannedEdit, count: int) -> list[str]:
    """Say what a plan leaves undone although nobody asked for that."""
    notes = []
    plan = planned.plan
    if not (plan.controllers or planned.method.no_op or plan.negative_prompt is not None or plan.guidance is not None):
        notes.append(f"{planned.name} ({planned.method.name}) has nothing to control with these settings")
    for bound in planned.bounds:
        when = bound.controller.when
        if when.steps is None and when.stop > when.start and not when.indices(count):
            notes.append(f"{bound.label} does not act: its window {when} of {count} steps holds no whole step")
        elif bound.steps and not bound.expected:
            notes.append(f"{bound.label} does not act: it edits the unconditional half, which guidance 1 leaves out")
    return notes


def _settled(plan: EditPlan, request: EditRequest) -> Source:
    """Return the plan's source with nothing left open, so that equal ones are one lane."""
    source = plan.source
    pin = "none" if plan.inversion is None else source.pin or "none"  # a generated source has no path to follow
    if pin == "start" and not request.keep_source:
        pin = "end"  # the same latents at every denoiser call; only a source that is run as well tells them apart
    return replace(
        source,
        pin=pin,
        pin_plain=None,
        guidance=request.guidance if source.guidance is None else source.guidance,
        negative_prompt=request.negative_prompt if source.negative_prompt is None else source.negative_prompt,
    )


def _why_apart(plan: EditPlan, source: Source, inversion: InversionSpec | None) -> str:
    """Say why a plan cannot use the first source lane."""
    mine = plan.source
    if plan.inversion != inversion:
        return "it inverts the picture in another way"
    if mine.prompt != source.prompt:
        return f"its text is {mine.prompt!r}, not {source.prompt!r}"
    if mine.pin != source.pin:
        return "it runs free" if mine.pin == "none" else "it is kept on the inverted path"
    return "its guidance or unconditional text differs"


def _source_lane(name: str, plan: EditPlan, model: Model) -> PlannedLane:
    """Make the lane of a settled source."""
    source = plan.source
    assert source.guidance is not None
    assert source.negative_prompt is not None
    assert source.pin is not None
    guidance = model.adapter.guidance(source.guidance)
    alike = model.same_text(source.prompt, source.negative_prompt)
    return PlannedLane(name, source.prompt, source.negative_prompt, guidance, source.pin, trivial=alike)


def _bind(
    controller: Any, planned: PlannedEdit, view: ModelView, steps: Sequence[Step], request: EditRequest, model: Model
) -> Bound:
    sites = () if controller.where is None else controller.where.select(view.sites, view.latent_size)
    window = [s for s in steps if s in controller.when]
    if controller.when.steps and not window:
        raise SelectionError(
            f"controller {controller.name!r} of {planned.name} acts in {controller.when}, but the schedule has steps "
            f"0-{len(steps) - 1}",
            hint="count steps from 0, or give fractions of the schedule",
        )
    acting = [s for s in window if controller.attend is None or controller.expression(s) is not None]
    scale = request.guidance if planned.plan.guidance is None else planned.plan.guidance
    guided = model.adapter.guidance(scale)
    halves = 1 if controller.is_step_action else sum(h in guided.halves for h in controller.passes)
    expected = len(acting) * halves * (1 if controller.is_step_action else len(sites))
    return Bound(controller, planned.name, planned.source, sites, tuple(s.index for s in acting), expected)
