"""The loop: the one place that runs the denoiser and owns the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnctl.branches import Branches, Half, LaneTensors, Row
from attnctl.controller import Controller, PredictionCall, StepCall
from attnctl.engine.attach import Attachment, attached
from attnctl.engine.lanes import Lane
from attnctl.engine.memory import MemoryShortageError, is_shortage
from attnctl.engine.operation import Bound
from attnctl.engine.rows import Rows
from attnctl.errors import NumericsError, PluginError, SelectionError, unknown
from attnctl.sampling import DDIMGrid
from attnctl.steps import Step, steps_of

if TYPE_CHECKING:
    from attnctl.model import Model
    from attnctl.sampling import Schedule


class Engine:
    """Denoises all lanes of a run together.

    Attributes:
        rows: Single-picture denoiser evaluations so far.
        max_rows: Largest number of rows in one call; lowered by itself when memory runs out.
    """

    def __init__(
        self,
        model: Model,
        schedule: Schedule,
        lanes: Mapping[str, Lane],
        bounds: Sequence[Bound] = (),
        attachment: Attachment | None = None,
        *,
        max_rows: int | None = None,
        keep_source: bool = False,
        readers: Sequence[Bound] = (),
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.steps = steps_of(schedule.timesteps)
        self.lanes = lanes
        self.bounds = bounds
        self.attachment = attachment or Attachment()
        self.max_rows = max_rows
        self.keep_source = keep_source
        self.rows = 0
        self._rows = Rows.of(lanes, bounds, keep_source)
        self._read = Rows.of(lanes, readers, keep_source) if readers else None

    def run(self, on_step: Callable[[Step], None]) -> None:
        """Take every lane from its start latents to clean ones, in place in `Lane.latents`."""
        for step in self.steps:
            self.advance(step)
            on_step(step)

    def advance(self, step: Step) -> None:
        """Run one step for all lanes.

        Raises:
            NumericsError: A lane's latents became NaN or infinite.
            MemoryShortageError: Not even the smallest call fits.
        """
        for lane in self.lanes.values():
            if lane.pin == "start" and step.index >= lane.start:
                lane.latents = lane.on_path(step.index)
        self._step_actions("on_step_start", step)
        self._move(step)
        for lane in self.lanes.values():
            if step.index >= lane.start and (lane.pin == "end" or (lane.pin == "start" and not self.keep_source)):
                lane.latents = lane.on_path(step.index + 1)
        self._step_actions("on_step_end", step)
        self._check_finite(step)

    def _move(self, step: Step) -> None:
        """Evaluate, guide, and take the schedule's step, all lanes at once; lanes with kept noises use those."""
        needed = self._rows.needed(step)
        alone = [] if self._read is None else self._read.beyond(needed, step)
        moving = [lane for lane in self.lanes.values() if self._rows.moves(lane.name, step)]
        read = {row.lane for row in (*needed, *alone)}
        begin = {name: lane.x for name, lane in self.lanes.items() if name in read or lane in moving}
        guided: dict[str, list[Tensor]] = {name: [] for name in begin}
        for s in range(self.schedule.stages):
            at = replace(step, stage=s)
            seen = {name: self.schedule.stage(step.index, s, x, guided[name]) for name, x in begin.items()}
            outputs = self._predict(at, needed, seen)
            if alone:  # in calls of their own: a row more in a call would round the others' otherwise
                self._predict(at, alone, seen)
            for name in begin:
                lane = self.lanes[name]
                if lane in moving or self.schedule.stages > 1:
                    guided[name].append(self._guide(at, lane, outputs, moving=lane in moving))
        self._finish(step, moving, guided)

    def _finish(self, step: Step, moving: Sequence[Lane], guided: Mapping[str, Sequence[Tensor]]) -> None:
        plain: list[Lane] = []
        for lane in moving:
            if lane.trajectory is None or lane.trajectory.noises is None:
                plain.append(lane)
                continue
            noise = lane.trajectory.noises[step.index][None].to(lane.x)
            if not isinstance(self.schedule, DDIMGrid):
                raise PluginError(
                    f"{lane.name} has kept noises, which a sampling by {self.schedule.name} cannot use",
                    hint="use another inversion",
                )
            lane.latents = self.schedule.denoise_with(step.index, guided[lane.name][-1], lane.x, noise)
        if plain:
            outs = [torch.cat([guided[lane.name][s] for lane in plain]) for s in range(self.schedule.stages)]
            moved = self.schedule.advance(step.index, outs, torch.cat([lane.x for lane in plain]))
            for i, lane in enumerate(plain):
                lane.latents = moved[i : i + 1]
        for lane in moving:
            if lane.edit is None and lane.trajectory is not None and lane.trajectory.offsets is not None:
                lane.latents = lane.x + lane.trajectory.offsets[step.index][None].to(lane.x)

    def _guide(self, step: Step, lane: Lane, outputs: Mapping[Row, Tensor], *, moving: bool) -> Tensor:
        """Return a lane's guided output (1, C, h, w): what its guidance gives, or what a controller makes of it."""
        halves = [half for half in lane.halves if Row(lane.name, half) in outputs]
        if not moving and len(halves) < len(lane.halves):  # a pinned lane, read in some halves: nothing moves it
            return outputs[Row(lane.name, halves[0])]
        plain = lane.guidance.combine({half: outputs[Row(lane.name, half)] for half in halves})
        for bound in self.bounds:
            if bound.lane != lane.name or not self._rows.predicts(bound, step):
                continue
            made = bound.controller.decide(self._prediction_call(bound, step, lane, outputs))[None]
            if made.shape != plain.shape:
                raise PluginError(
                    f"controller {bound.label!r} gave a prediction of shape {tuple(made.shape[1:])} in step "
                    f"{step.index}, expected {tuple(plain.shape[1:])}",
                    hint="return a tensor (C, h, w) like call.plain",
                )
            bound.acted.add((bound.controller.action, step.index, None))
            bound.differs = bound.differs or not torch.equal(made, plain)
            return made
        return plain

    def _prediction_call(self, bound: Bound, step: Step, lane: Lane, outputs: Mapping[Row, Tensor]) -> PredictionCall:
        def view(half: Half) -> LaneTensors:
            def get(name: str) -> Tensor:
                if Row(name, half) not in outputs:
                    raise PluginError(
                        f"controller {bound.label!r} asks for the {half} half of {name}, which is not evaluated",
                        hint="guidance 1 has the conditional half alone; other lanes must be named in `lanes`",
                    )
                return outputs[Row(name, half)][0].clone()

            return LaneTensors(bound.lane, bound.source, get)

        return PredictionCall(step, lane.name, lane.guidance.scale, view("uncond"), view("cond"))

    def _predict(
        self, step: Step, needed: Sequence[Row], seen: Mapping[str, tuple[Tensor, int | float]]
    ) -> dict[Row, Tensor]:
        """Run the denoiser on the needed rows, in as few calls as memory allows; (1, C, h, w) per row."""
        outputs: dict[Row, Tensor] = {}
        while True:
            try:
                for rows in self._rows.chunks(step, needed, self.max_rows):
                    if all(r in outputs for r in rows):
                        continue
                    made = self._call(step, rows, seen)
                    for i, row in enumerate(rows):
                        outputs.setdefault(row, made[i : i + 1])
                break
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                self._shrink(step, needed, error)
        for row, target in self._rows.aliases(needed).items():
            outputs[row] = outputs[target]
        return outputs

    def _shrink(self, step: Step, needed: Sequence[Row], error: BaseException) -> None:
        largest = max(len(c) for c in self._rows.chunks(step, needed, self.max_rows))
        self.max_rows = largest // 2
        if max(len(c) for c in self._rows.chunks(step, needed, self.max_rows)) >= largest:
            raise MemoryShortageError(
                f"out of memory with {largest} rows at once in step {step.index}",
                hint="use a smaller --size, --dtype float16 or bfloat16, or another --device",
            ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _call(self, step: Step, rows: list[Row], seen: Mapping[str, tuple[Tensor, int | float]]) -> Tensor:
        x = torch.cat([seen[r.lane][0] for r in rows])
        texts = [self.lanes[r.lane].text(r.half, step) for r in rows]
        aliases = self._rows.aliases(rows)
        branches = Branches(tuple(rows), {a: t for a, t in aliases.items() if t in rows and a not in rows})
        size = (int(x.shape[-2]), int(x.shape[-1]))
        self.attachment.aim(step, branches, size, texts[0].length, x.device)
        guides = [self.lanes[r.lane].guidance.told for r in rows]
        try:
            scaled = self.schedule.scale(step.index, x)
            out = self.model.predict(scaled, [seen[r.lane][1] for r in rows], texts, guides)
        finally:
            self.attachment.rest()
        self.rows += len(rows)
        return out

    def _step_actions(self, action: str, step: Step) -> None:
        for bound in self.bounds:
            if bound.controller.action != action or not bound.active(step) or step.index < self.lanes[bound.lane].start:
                continue
            call = self._step_call(bound, step)
            with torch.enable_grad():
                made: Tensor | None = getattr(bound.controller, action)(call)
            bound.acted.add((action, step.index, None))
            if made is None:
                continue
            old = self.lanes[bound.lane].x
            if made.shape != old[0].shape:
                raise PluginError(
                    f"controller {bound.label!r} gave latents of shape {tuple(made.shape)} in step {step.index}, "
                    f"expected {tuple(old[0].shape)}",
                    hint="return a tensor (C, h, w) like call.latents['self']",
                )
            new = made.detach()[None].to(old)
            bound.differs = bound.differs or not torch.equal(new, old)
            self.lanes[bound.lane].latents = new

    def _step_call(self, bound: Bound, step: Step) -> StepCall:
        """Make the context of a step action: copies of latents, so that changing them in place changes no lane."""

        def named(name: str) -> Lane:
            real = bound.lane_of(name)
            if real not in self.lanes:
                raise unknown("lane", name, self.lanes, cls=SelectionError)
            return self.lanes[real]

        def predict(x: Tensor, lane: str, half: Half, observers: Sequence[Controller] = ()) -> Tensor:
            self.rows += 1
            asked = named(lane)
            scaled, row = self.schedule.scale(step.index, x[None]), Row(asked.name, half)
            told = [self.schedule.timesteps[step.index]]
            with self._observed(observers, row, bound.source, scaled, step):
                return self.model.predict(scaled, told, [asked.text(half, step)], [asked.guidance.told])[0]

        views = LaneTensors(bound.lane, bound.source, lambda name: named(name).x[0].clone())
        index = step.index + (bound.controller.action == "on_step_end")
        lane = self.lanes[bound.lane]
        reference = None if lane.trajectory is None else lane.on_path(index)[0]
        return StepCall(step, bound.lane, views, predict, lane.guidance.scale, reference)

    @contextmanager
    def _observed(
        self, observers: Sequence[Controller], row: Row, source: str, x: Tensor, step: Step
    ) -> Iterator[None]:
        """Let observers read the maps of one call on one row, (1, C, h, w)."""
        if not observers:
            yield
            return
        size, halves = (int(x.shape[-2]), int(x.shape[-1])), (row.half,)
        bounds = []
        for observer in observers:
            if observer.observe is None or observer.where is None:
                raise PluginError(
                    f"controller {observer.name!r} observes nothing", hint="give predict() controllers with `observe`"
                )
            sites = observer.where.select(self.model.sites, size)
            bounds.append(Bound(replace(observer, passes=halves), row.lane, source, sites, (step.index,), 0))
        with attached(self.model.denoiser, bounds) as attachment:
            attachment.aim(step, Branches((row,)), size, self.model.text_length, x.device)
            yield

    def _check_finite(self, step: Step) -> None:
        for lane in self.lanes.values():
            if not bool(torch.isfinite(lane.x).all()):
                low = self.model.dtype == torch.float16
                raise NumericsError(
                    f"the latents of {lane.name} became NaN or infinite in step {step.index}",
                    hint="float16 overflowed: use --dtype bfloat16 or float32"
                    if low
                    else "lower --guidance, or check the model",
                )
