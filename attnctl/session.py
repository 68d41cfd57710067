"""A session owns a model and runs requests: plan, invert, denoise all lanes together, account for every edit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnctl.engine.attach import attached
from attnctl.engine.composing import check_unconditional
from attnctl.engine.inverter import Inverter, SourceInversion
from attnctl.engine.lanes import Lane, make_lanes
from attnctl.engine.loop import Engine
from attnctl.engine.memory import peak_bytes, reset_peak
from attnctl.engine.operation import Bound
from attnctl.engine.owning import alone, owning
from attnctl.engine.planning import PlannedEdit, RunPlan, plan_run
from attnctl.engine.recorder import Recorder
from attnctl.engine.rows import Rows
from attnctl.errors import InputError
from attnctl.events import Event, Inverted, Progress, Warned
from attnctl.registry import Registry
from attnctl.request import GUIDANCE, STEPS
from attnctl.result import CoverageRow, EditResult, InversionReport, LaneResult, NoOpError, check_coverage
from attnctl.sampling import Path, Schedule
from attnctl.steps import Step, steps_of

if TYPE_CHECKING:
    from attnctl.cache import TrajectoryCache
    from attnctl.inversion import InversionSpec
    from attnctl.model import Model
    from attnctl.request import EditRequest

__all__ = ["EditSession", "Event", "Inverted", "Progress", "Warned"]


@dataclass
class _Ledger:
    """What a run costs and what it has to say."""

    on_event: Callable[[Event], None]
    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    reports: list[InversionReport] = field(default_factory=list)
    reconstructions: dict[str, Tensor] = field(default_factory=dict)

    def warn(self, text: str) -> None:
        """Note a warning, and say it unless it was said before."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.on_event(Warned(text))

    def add(self, found: SourceInversion) -> None:
        """Account for an inversion."""
        for stage, rows in found.rows.items():
            self.rows[stage] = self.rows.get(stage, 0) + rows
        for stage, seconds in found.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.reports.append(found.report)
        if found.reconstruction is not None:
            self.reconstructions[found.report.lane] = found.reconstruction

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of a plan: what moves is here, and the plan stays as it is."""

    request: EditRequest
    plan: RunPlan
    schedule: Schedule
    lanes: dict[str, Lane]
    bounds: list[Bound]
    recorders: list[Recorder]

    @cached_property
    def readers(self) -> list[Bound]:
        """The recordings as the engine takes them."""
        return [recorder.bound for recorder in self.recorders]


class EditSession:
    """Runs requests on one model.

    Sessions may be shared by threads, and models by sessions: one run at a time has a model's networks, and the others
    wait. What a run is told by callbacks comes from the thread that started it; a callback cannot start another run.

    Attributes:
        model: The model; left exactly as found after every run, also after a failed one.
        registry: Where methods, inversions and modifiers are looked up.
        cache: Where trajectories of real pictures are kept from run to run; None keeps none.
    """

    def __init__(self, model: Model, registry: Registry | None = None, *, cache: TrajectoryCache | None = None) -> None:
        self.model = model
        self.registry = Registry.load() if registry is None else registry
        self.cache = cache

    def plan(self, request: EditRequest) -> RunPlan:
        """Return what a run would do, without running the denoiser.

        Raises:
            AttnctlError: The request cannot be carried out.
        """
        with owning(self.model, again=True):  # tokenizers are not to be used by two threads at once
            return plan_run(request, self.model, self.registry, self._latent_size(request), self._steps(request))

    def edit_rows(self, request: EditRequest, plan: RunPlan) -> int:
        """Return how many rows (single pictures) the denoiser evaluates to denoise a plan's lanes.

        Inversions come on top; so do rows that are computed twice because `max_rows` separates lanes that read each
        other, and what step actions ask for.
        """
        steps = self._steps(request)
        rows = Rows.of(plan.lanes, plan.bounds, request.keep_source)
        readers = [Recorder.of(reading).bound for reading in plan.readings]
        read = Rows.of(plan.lanes, readers, request.keep_source)
        alone = sum(len(read.beyond(rows.needed(step), step)) for step in steps)
        return (rows.count(steps) + alone) * self._schedule(request).stages

    @alone
    @torch.no_grad()
    def run(
        self,
        request: EditRequest,
        on_event: Callable[[Event], None] = lambda event: None,
        *,
        record: bool = False,
        plan: RunPlan | None = None,
    ) -> EditResult:
        """Edit one source in all the ways that the request asks for.

        Args:
            request: What to do.
            on_event: Told about progress and about every inversion's quality.
            record: Keep every lane's latents after every step.
            plan: What `plan` returned for this very request, as often as you like; None plans now.

        Raises:
            NoOpError: A controller did not act where it said it would, or an edit equals its uncontrolled lane; its
                `result` holds what was computed.
            AttnctlError: Any other fault that the user can mend.
        """
        model, ledger = self.model, _Ledger(on_event)
        reset_peak(model.device)
        model.forget()
        given, plan = plan, self.plan(request) if plan is None else plan
        for text in (*self._text_warnings(plan, request.scheduler), *(n for e in plan.edits for n in e.plan.notes)):
            ledger.warn(text)
        bounds = plan.bounds if given is None else plan.fresh_bounds()  # nobody sees a plan that was made here
        recorders = [Recorder.of(reading) for reading in plan.readings]
        run = _Run(request, plan, self._schedule(request), make_lanes(plan, model), bounds, recorders)
        self._start(run, ledger, on_event)
        histories = {name: [lane.x] for name, lane in run.lanes.items()} if record else {}

        def on_step(step: Step) -> None:
            for name, history in histories.items():
                history.append(run.lanes[name].x)
            on_event(Progress("edit", step.index + 1, step.count))

        with ledger.time("edit"), attached(model.denoiser, [*run.bounds, *run.readers]) as attachment:
            engine = Engine(
                model,
                run.schedule,
                run.lanes,
                run.bounds,
                attachment,
                max_rows=request.max_rows,
                keep_source=request.keep_source,
                readers=run.readers,
            )
            engine.run(on_step)
        ledger.rows["edit"] = engine.rows
        result = self._finish(run, ledger, histories, on_event)
        alike = model.adapter.reads_alike
        same = {e.name: alike(plan.lanes[e.name].prompt, plan.lanes[e.source].prompt) for e in plan.edits}
        fault = check_coverage(result, same)
        if fault and not request.allow_no_op:
            raise NoOpError(fault, hint="`attnctl explain` shows what was to act where", result=result)
        return result

    @alone
    @torch.no_grad()
    def invert(
        self,
        pixels: Tensor,
        spec: InversionSpec,
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        negative_prompt: str = "",
        seed: int = 0,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> SourceInversion:
        """Invert a picture by itself, sample it back, and measure how well that goes.

        Args:
            pixels: The picture (3, H, W) in [-1, 1], float32.
            spec: Which inversion, under which text, with which settings.
            steps: Number of sampling steps T.
            guidance: Guidance scale of a sampling that would follow.
            negative_prompt: Text of its unconditional half.
            seed: Seed for inversions that draw noise.
            on_event: Told about progress, quality and warnings.

        Raises:
            AttnctlError: The inversion refuses, or its settings are wrong.
        """
        model = self.model
        inversion = self.registry.make_inversion(spec)
        if inversion.needs_prompt and not spec.prompt.strip():
            raise InputError(f"{spec.name} needs a prompt that describes the picture", hint="give --source-prompt")
        check_unconditional(inversion, negative_prompt, guidance)
        size = model.latent_size((int(pixels.shape[-2]), int(pixels.shape[-1])))
        grid = model.schedule(model.adapter.schedules[0], steps, size, seed)
        lane = Lane(
            "source",
            spec.prompt,
            model.encode_text(spec.prompt),
            model.encode_text(negative_prompt, unconditional=True),
            model.adapter.guidance(inversion.source_guidance(guidance)),
            inversion.pin,
        )
        x0 = model.encode_picture(pixels)
        inverter = Inverter(model, self.registry, _path(grid), x0, pixels, seed, cache=self.cache, on_event=on_event)
        return inverter.invert(lane, spec)

    def _schedule(self, request: EditRequest) -> Schedule:
        return self.model.schedule(request.scheduler, request.steps, self._latent_size(request), request.seed)

    def _steps(self, request: EditRequest) -> list[Step]:
        return steps_of(self._schedule(request).timesteps)

    def _latent_size(self, request: EditRequest) -> tuple[int, int]:
        """Return latent (h, w), after a look at the tensors that the request brings."""
        size = None if request.size is None else self.model.latent_size(request.size)
        found: dict[str, tuple[int, int]] = {}
        for name, latents in (("x0", request.x0), ("x_T", request.x_T)):
            if latents is None:
                continue
            if latents.ndim != 4 or latents.shape[:2] != (1, self.model.latent_channels):
                raise InputError(
                    f"{name} must have the shape (1, {self.model.latent_channels}, h, w), found {tuple(latents.shape)}",
                    hint="give latents of one picture",
                )
            found[name] = (int(latents.shape[-2]), int(latents.shape[-1]))
        if request.pixels is not None:
            shape = tuple(request.pixels.shape)
            if len(shape) != 3 or shape[0] != 3 or not request.pixels.is_floating_point():
                raise InputError(
                    f"pixels must be floats of shape (3, H, W), found {request.pixels.dtype} of shape {shape}",
                    hint="scale to [-1, 1] and put the channels first",
                )
            found["pixels"] = self.model.latent_size((int(shape[1]), int(shape[2])))
        for name, given in found.items():
            if given != (size or given) or given != next(iter(found.values())):
                raise InputError(f"{name} has latent size {given}, which is not that of the run", hint="leave size out")
        return next(iter(found.values()), size or self.model.latent_size())

    def _text_warnings(self, plan: RunPlan, scheduler: str) -> list[str]:
        """Say what the model does not see of the texts, and how it was loaded and is sampled otherwise than it says."""
        model = self.model
        warnings = [*model.notes, *filter(None, [model.adapter.schedule_note(scheduler)])]
        lanes = plan.lanes
        prompts = {lane.prompt: "the prompt" for lane in lanes.values()}
        for lane in lanes.values():
            if not lane.trivial and "uncond" in lane.halves:
                prompts.setdefault(lane.negative_prompt, "the negative prompt")
        for prompt, what in prompts.items():
            cut = model.cut_text(prompt)
            if cut:
                warnings.append(f"{what} is longer than {model.text_length} tokens; this part is cut off: {cut!r}")
            words = model.unknown_words(prompt)
            if words:
                warnings.append(f"{model.name} has never seen: {', '.join(words)}")
        for edit in plan.edits:
            source, target = lanes[edit.source].prompt, lanes[edit.name].prompt
            if source != target and model.adapter.reads_alike(source, target):
                warnings.append(
                    f"to the model {target!r} is the same text as {source!r}: it sees no difference between them, so "
                    "the words change nothing"
                )
        return warnings

    def _start(self, run: _Run, ledger: _Ledger, on_event: Callable[[Event], None]) -> None:
        """Give every lane its start latents: shared noise, or the end of its source's inversion."""
        model, request, plan = self.model, run.request, run.plan
        if not plan.inversions:
            size = self._latent_size(request)
            noise = model.initial_noise(request.seed, size) if request.x_T is None else request.x_T
            noise = noise.to(model.device, model.dtype) * run.schedule.initial_scale
            for lane in run.lanes.values():
                lane.latents = noise
            return
        x0 = model.encode_picture(request.pixels) if request.x0 is None else request.x0  # type: ignore[arg-type]
        inverter = Inverter(
            model,
            self.registry,
            _path(run.schedule),
            x0.to(model.device, model.dtype),
            request.pixels,
            request.seed,
            request.check_reconstruction,
            self.cache,
            lambda event: ledger.warn(event.text) if isinstance(event, Warned) else on_event(event),
        )
        for name, spec in plan.inversions.items():
            found = inverter.invert(run.lanes[name], spec)
            ledger.add(found)
            trajectory = found.trajectory
            edits = {e.name for e in plan.edits if e.source == name}
            for lane in (run.lanes[name], *(run.lanes[edit] for edit in edits)):
                lane.follow(trajectory)
            for bound in (b for b in (*run.bounds, *run.readers) if b.lane in edits or b.lane == name):
                acted = bool(bound.steps)
                bound.begin(trajectory.start)
                if acted and not bound.steps:
                    ledger.warn(
                        f"{bound.label} does not act: its lane starts at step {trajectory.start}, after its window"
                    )

    def _finish(
        self, run: _Run, ledger: _Ledger, histories: dict[str, list[Tensor]], on_event: Callable[[Event], None]
    ) -> EditResult:
        edits = {e.name: e for e in run.plan.edits}
        lanes: list[LaneResult] = []
        with ledger.time("decode"):
            for name, lane in run.lanes.items():
                lanes.append(self._lane_result(run.request, lane, edits.get(name), histories.get(name)))
                on_event(Progress("decode", len(lanes), len(run.lanes)))
        return EditResult(
            tuple(lanes),
            tuple(CoverageRow.of(b) for b in (*run.bounds, *run.readers)),
            tuple(ledger.reports),
            ledger.rows,
            ledger.seconds,
            peak_bytes(self.model.device),
            tuple(ledger.warnings),
            ledger.reconstructions,
            {recorder.reading.recording.name: recorder.finish() for recorder in run.recorders},
        )

    def _lane_result(
        self, request: EditRequest, lane: Lane, edit: PlannedEdit | None, history: list[Tensor] | None
    ) -> LaneResult:
        return LaneResult(
            lane.name,
            "edit" if edit else "source",
            lane.prompt,
            edit.method.name if edit else "",
            edit.method.config.model_dump(mode="json") if edit else {},
            edit.method.preset if edit else None,
            self.model.decode_latents(lane.x),
            lane.x,
            torch.cat(history) if history else None,
            self._modifiers(request, edit.index) if edit else {},
        )

    def _modifiers(self, request: EditRequest, index: int) -> dict[str, dict[str, Any]]:
        given = request.edits[index].modifiers
        return {n: self.registry.make_modifier(n, s).config.model_dump(mode="json") for n, s in given.items()}


def _path(schedule: Schedule) -> Path:
    """Return a schedule that can be climbed.

    Raises:
        InputError: It cannot.
    """
    if not isinstance(schedule, Path):
        raise InputError(
            f"a picture cannot be inverted with the scheduler {schedule.name}", hint="leave --scheduler out"
        )
    return schedule
