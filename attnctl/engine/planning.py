"""From a request to lanes and bound controllers: every decision of a run before the first denoiser call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from attnctl.branches import Half
from attnctl.engine.composing import compose
from attnctl.engine.operation import Bound
from attnctl.errors import InputError, PluginError, SelectionError, unknown
from attnctl.masks import check_users, fit_mask
from attnctl.method import EditMethod, EditPlan, ModelView, Source
from attnctl.steps import Step

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.inversion import InversionSpec, Trajectory
    from attnctl.model import Model, TextEncoding
    from attnctl.registry import Registry
    from attnctl.request import EditRequest


@dataclass(eq=False)
class Lane:
    """One picture that denoises.

    Attributes:
        name: ``source``, ``source[1]``, ... or an edit's name.
        prompt: Its text.
        cond: Encoding of the text.
        uncond: Encoding of the unconditional half's text.
        guidance: Its guidance scale.
        pin: As in `Source.pin`; edits are never pinned.
        edit: Index of the edit in the request; None for sources.
        trajectory: What its inversion found; an edit has its source's.
        latents: Current latents, (1, C, h, w).
    """

    name: str
    prompt: str
    cond: TextEncoding
    uncond: TextEncoding
    guidance: float
    pin: str = "none"
    edit: int | None = None
    trajectory: Trajectory | None = None
    latents: Tensor | None = None

    @property
    def halves(self) -> tuple[Half, ...]:
        """The halves that its own guidance needs."""
        return ("cond",) if self.guidance == 1 else ("uncond", "cond")

    @property
    def trivial(self) -> bool:
        """Whether both halves have the same text in every step, so that one row serves both."""
        if self.edit is not None:
            return False
        return self.uncond.same_as(self.cond) and (self.trajectory is None or len(self.trajectory.uncond) == 0)

    @property
    def start(self) -> int:
        """The step that it starts at."""
        return 0 if self.trajectory is None else self.trajectory.start

    def follow(self, trajectory: Trajectory) -> None:
        """Take start latents and unconditional texts from an inversion."""
        if len(trajectory.uncond) == 1:  # the same in all steps: an ordinary text
            self.uncond = _replaced(self.uncond, trajectory, 0)
            trajectory = replace(trajectory, uncond=())
        self.trajectory = trajectory
        self.latents = trajectory.latents[-1 - trajectory.start][None].to(self.cond.embeds)

    def text(self, half: Half, step: Step) -> TextEncoding:
        """Return the encoding of one half at a step."""
        if half == "cond":
            return self.cond
        if self.trajectory is not None and self.trajectory.uncond:
            return _replaced(self.uncond, self.trajectory, step.index)
        return self.uncond


def _replaced(text: TextEncoding, trajectory: Trajectory, index: int) -> TextEncoding:
    """Return a trajectory's own unconditional text in the type and on the device of the one that it replaces."""
    pooled = text.pooled if trajectory.uncond_pooled is None else trajectory.uncond_pooled
    return replace(
        text,
        prompt="",
        embeds=trajectory.uncond[index].to(text.embeds),
        pooled=None if pooled is None else pooled.to(text.embeds),
    )


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
    """Everything that a run will do.

    Attributes:
        lanes: Lanes by name, sources first.
        edits: Edits in the request's order.
        inversions: Distinct inversions that the lanes need, by source lane name.
    """

    lanes: dict[str, Lane]
    edits: list[PlannedEdit]
    inversions: dict[str, InversionSpec]

    @property
    def bounds(self) -> list[Bound]:
        """All bound controllers."""
        return [b for e in self.edits for b in e.bounds]


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
    view = ModelView(model.sites, latent_size, model.text_length, model.pipe.tokenizer, str(model.device))
    run = RunPlan({}, [], {})
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
        planned.bounds = [_bind(c, planned, view, steps, request) for c in plan.controllers]
        planned.plan = replace(plan, notes=(*plan.notes, *_notes(planned, len(steps))))
        run.edits.append(planned)
    for planned in run.edits:
        if planned.name in run.lanes:
            raise SelectionError(f"two lanes are called {planned.name!r}", hint="give every edit its own name")
        if planned.name == "self":
            raise SelectionError("a lane cannot be called 'self', which stands for the lane itself", hint="rename it")
        edit = request.edits[planned.index]
        negative = request.negative_prompt if planned.plan.negative_prompt is None else planned.plan.negative_prompt
        run.lanes[planned.name] = Lane(
            planned.name,
            edit.prompt,
            _edit_text(edit.prompt, planned.plan, model),
            model.encode_text(negative, unconditional=True),
            request.guidance if planned.plan.guidance is None else planned.plan.guidance,
            edit=planned.index,
        )
    _check_lanes(run, steps)
    return run


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
        if bound.controller.is_step_action and bound.controller.on_guidance is None:
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


def _edit_text(prompt: str, plan: EditPlan, model: Model) -> TextEncoding:
    """Encode an edit's text: its prompt, or the weighted sum that its method planned."""
    if not plan.text:
        return model.encode_text(prompt)
    parts = [(model.encode_text(text), weight) for text, weight in plan.text]
    if parts[0][0].pooled is None:
        pooled = None
    else:
        pooled = sum((w * p.pooled for p, w in parts[1:] if p.pooled is not None), parts[0][1] * parts[0][0].pooled)
    embeds = sum((w * p.embeds for p, w in parts[1:]), parts[0][1] * parts[0][0].embeds)
    return replace(parts[0][0], prompt=prompt, embeds=embeds, pooled=pooled)


def _source_lane(name: str, plan: EditPlan, model: Model) -> Lane:
    """Make the lane of a settled source."""
    source = plan.source
    assert source.guidance is not None
    assert source.negative_prompt is not None
    assert source.pin is not None
    return Lane(
        name,
        source.prompt,
        model.encode_text(source.prompt),
        model.encode_text(source.negative_prompt, unconditional=True),
        source.guidance,
        source.pin,
    )


def _bind(controller: Any, planned: PlannedEdit, view: ModelView, steps: Sequence[Step], request: EditRequest) -> Bound:
    sites = () if controller.where is None else controller.where.select(view.sites, view.latent_size)
    window = [s for s in steps if s in controller.when]
    if controller.when.steps and not window:
        raise SelectionError(
            f"controller {controller.name!r} of {planned.name} acts in {controller.when}, but the schedule has steps "
            f"0-{len(steps) - 1}",
            hint="count steps from 0, or give fractions of the schedule",
        )
    acting = [s for s in window if controller.attend is None or controller.expression(s) is not None]
    guidance = request.guidance if planned.plan.guidance is None else planned.plan.guidance
    halves = 1 if controller.is_step_action else sum(h == "cond" or guidance != 1 for h in controller.passes)
    expected = len(acting) * halves * (1 if controller.is_step_action else len(sites))
    return Bound(controller, planned.name, planned.source, sites, tuple(s.index for s in acting), expected)
