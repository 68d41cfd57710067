"""The loop: the one place that runs the denoiser and owns the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnctl.branches import HALVES, Branches, Half, LaneTensors, Row
from attnctl.controller import Controller, GuidanceCall, StepCall
from attnctl.engine.attach import Attachment, attached
from attnctl.engine.memory import MemoryShortageError, is_shortage
from attnctl.engine.operation import Bound
from attnctl.errors import InputError, NumericsError, PluginError, SelectionError, unknown
from attnctl.sampling import DDIMGrid
from attnctl.steps import Step

if TYPE_CHECKING:
    from attnctl.engine.planning import Lane
    from attnctl.model import Model, TextEncoding
    from attnctl.sampling import Sampler


class Engine:
    """Denoises all lanes of a run together.

    Attributes:
        rows: Single-picture denoiser evaluations so far.
        max_rows: Largest number of rows in one call; lowered by itself when memory runs out.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        steps: Sequence[Step],
        lanes: dict[str, Lane],
        bounds: Sequence[Bound],
        attachment: Attachment,
        *,
        max_rows: int | None = None,
        keep_source: bool = False,
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.steps = steps
        self.lanes = lanes
        self.bounds = bounds
        self.attachment = attachment
        self.max_rows = max_rows
        self.keep_source = keep_source
        self.rows = 0
        self._trivial = {name for name, lane in lanes.items() if lane.trivial}

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
                lane.latents = self._on_path(lane, step.index)
        self._step_actions("on_step_start", step)
        needed = self.needed_rows(step)
        outputs = self._predict(step, needed)
        self._move(step, outputs)
        for lane in self.lanes.values():
            if step.index >= lane.start and (lane.pin == "end" or (lane.pin == "start" and not self.keep_source)):
                lane.latents = self._on_path(lane, step.index + 1)
        self._step_actions("on_step_end", step)
        self._check_finite(step)

    def needed_rows(self, step: Step) -> list[Row]:
        """List the rows that matter in a step: all of a free lane's; of a pinned one's only those that are read."""
        needed: set[Row] = set()
        for lane in self.lanes.values():
            if self._moves(lane, step):
                needed.update(Row(lane.name, half) for half in lane.halves)
        for bound in self.bounds:
            if self._acts_inside(bound, step):
                for half in bound.controller.passes:
                    if half in self.lanes[bound.lane].halves:
                        needed.update(Row(bound.lane_of(n), half) for n in bound.controller.reads(step))
            elif self._guides(bound, step):
                needed.update(Row(bound.lane_of(n), half) for n in bound.controller.reads(step) for half in HALVES)
        aliases = self._aliases(needed)
        rows = {aliases.get(r, r) for r in needed}
        order = list(self.lanes)
        return sorted(rows, key=lambda r: (r.half == "cond", order.index(r.lane)))

    def _moves(self, lane: Lane, step: Step) -> bool:
        return step.index >= lane.start and (lane.pin == "none" or self.keep_source)

    def _acts_inside(self, bound: Bound, step: Step) -> bool:
        """Whether a controller acts inside the denoiser's call, where it reads other rows."""
        inside = not bound.controller.is_step_action
        return inside and bound.active(step) and step.index >= self.lanes[bound.lane].start

    def _guides(self, bound: Bound, step: Step) -> bool:
        """Whether a controller takes over its lane's guidance in a step."""
        lane = self.lanes[bound.lane]
        wanted = bound.controller.on_guidance is not None and lane.guidance != 1
        return wanted and bound.active(step) and self._moves(lane, step)

    def _move(self, step: Step, outputs: dict[Row, Tensor]) -> None:
        """Guide and take the scheduler's step, all lanes at once; lanes with kept noises use those."""
        plain: list[Lane] = []
        for lane in self.lanes.values():
            if not self._moves(lane, step):
                continue
            if lane.trajectory is None or lane.trajectory.noises is None:
                plain.append(lane)
                continue
            noise = lane.trajectory.noises[step.index][None].to(_latents(lane))
            assert isinstance(self.sampler, DDIMGrid)  # only inversions keep noises, and they run on the grid
            lane.latents = self.sampler.denoise_with(
                step.index, self._guide(step, lane, outputs), _latents(lane), noise
            )
        if plain:
            guided = torch.cat([self._guide(step, lane, outputs) for lane in plain])
            moved = self.sampler.denoise(step.index, guided, torch.cat([_latents(lane) for lane in plain]))
            for i, lane in enumerate(plain):
                lane.latents = moved[i : i + 1]
        for lane in self.lanes.values():
            if self._moves(lane, step) and lane.edit is None and lane.trajectory is not None:
                offsets = lane.trajectory.offsets
                if offsets is not None:
                    lane.latents = _latents(lane) + offsets[step.index][None].to(_latents(lane))

    def _guide(self, step: Step, lane: Lane, outputs: dict[Row, Tensor]) -> Tensor:
        """Classifier-free guidance, e = e_u + g (e_c - e_u), by name; Ho & Salimans, arXiv 2207.12598."""
        cond = outputs[Row(lane.name, "cond")]
        if lane.guidance == 1:
            return cond
        uncond = outputs[Row(lane.name, "uncond")]
        plain = uncond + lane.guidance * (cond - uncond)
        for bound in self.bounds:
            if bound.lane == lane.name and bound.controller.on_guidance is not None and self._guides(bound, step):
                views = (_outputs(bound, outputs, half) for half in HALVES)
                made = bound.controller.on_guidance(GuidanceCall(step, lane.name, lane.guidance, *views))[None]
                if made.shape != plain.shape:
                    raise PluginError(
                        f"controller {bound.label!r} gave guidance of shape {tuple(made.shape[1:])} in step "
                        f"{step.index}, expected {tuple(plain.shape[1:])}",
                        hint="return a tensor (C, h, w) like call.plain",
                    )
                bound.acted.add(("on_guidance", step.index, None))
                bound.differs = bound.differs or not torch.equal(made, plain)
                return made
        return plain

    def _aliases(self, rows: set[Row] | Sequence[Row]) -> dict[Row, Row]:
        return {Row(r.lane, "uncond"): Row(r.lane, "cond") for r in rows if r.lane in self._trivial}

    def _predict(self, step: Step, needed: list[Row]) -> dict[Row, Tensor]:
        """Run the denoiser on the needed rows, in as few calls as memory allows; (1, C, h, w) per row."""
        outputs: dict[Row, Tensor] = {}
        while True:
            try:
                for rows in self._chunks(step, needed):
                    if all(r in outputs for r in rows):
                        continue
                    made = self._call(step, rows)
                    for i, row in enumerate(rows):
                        outputs.setdefault(row, made[i : i + 1])
                break
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                self._shrink(step, needed, error)
        for row, target in self._aliases(needed).items():
            outputs[row] = outputs[target]
        return outputs

    def _shrink(self, step: Step, needed: list[Row], error: BaseException) -> None:
        largest = max(len(c) for c in self._chunks(step, needed))
        self.max_rows = largest // 2
        if max(len(c) for c in self._chunks(step, needed)) >= largest:
            raise MemoryShortageError(
                f"out of memory with {largest} rows at once in step {step.index}",
                hint="use a smaller --size, --dtype float16 or bfloat16, or another --device",
            ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _chunks(self, step: Step, needed: list[Row]) -> list[list[Row]]:
        """Pack rows into calls of at most `max_rows`, each row together with every row that it reads."""
        if self.max_rows is None or len(needed) <= self.max_rows:
            return [needed] if needed else []
        chunks: list[set[Row]] = []
        for row in needed:
            closure = self._closure(row, step)
            if chunks and len(chunks[-1] | closure) <= self.max_rows:
                chunks[-1] |= closure
            elif not any(closure <= c for c in chunks):
                chunks.append(closure)
        return [[r for r in needed if r in chunk] for chunk in chunks]

    def _closure(self, row: Row, step: Step) -> set[Row]:
        found: set[Row] = set()
        todo = [row]
        aliases = self._aliases([Row(name, "cond") for name in self.lanes])
        while todo:
            row = todo.pop()
            row = aliases.get(row, row)
            if row in found:
                continue
            found.add(row)
            for bound in self.bounds:
                if bound.lane == row.lane and row.half in bound.controller.passes and self._acts_inside(bound, step):
                    todo += [Row(bound.lane_of(n), row.half) for n in bound.controller.reads(step)]
                    if bound.controller.both_halves:
                        todo += [Row(row.lane, half) for half in self.lanes[row.lane].halves]
        return found

    def _call(self, step: Step, rows: list[Row]) -> Tensor:
        x = torch.cat([_latents(self.lanes[r.lane]) for r in rows])
        texts = [self._text(r, step) for r in rows]
        aliases = self._aliases(rows)
        branches = Branches(tuple(rows), {a: t for a, t in aliases.items() if t in rows and a not in rows})
        size = (int(x.shape[-2]), int(x.shape[-1]))
        self.attachment.aim(step, branches, size, int(texts[0].embeds.shape[1]), x.device)
        try:
            out = self.model.predict(self.sampler.scale(step.index, x), self.sampler.timesteps[step.index], texts)
        finally:
            self.attachment.rest()
        self.rows += len(rows)
        return out

    def _text(self, row: Row, step: Step) -> TextEncoding:
        return self.lanes[row.lane].text(row.half, step)

    def _on_path(self, lane: Lane, index: int) -> Tensor:
        """Return the lane's trajectory at the level before step `index`, (1, C, h, w)."""
        if lane.trajectory is None:
            raise PluginError(f"{lane.name} is pinned but has no trajectory", hint="plan an inversion for it")
        found = lane.trajectory.latents[len(self.steps) - index]
        return found[None].to(_latents(lane))

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
            old = _latents(self.lanes[bound.lane])
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
            scaled, row = self.sampler.scale(step.index, x[None]), Row(named(lane).name, half)
            text = self._text(row, step)
            with self._observed(observers, row, bound.source, scaled, step):
                return self.model.predict(scaled, self.sampler.timesteps[step.index], [text])[0]

        views = LaneTensors(bound.lane, bound.source, lambda name: _latents(named(name))[0].clone())
        index = step.index + (bound.controller.action == "on_step_end")
        lane = self.lanes[bound.lane]
        reference = None if lane.trajectory is None else self._on_path(lane, index)[0]
        return StepCall(step, bound.lane, views, predict, lane.guidance, reference)

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
        with attached(self.model.unet, bounds) as attachment:
            attachment.aim(step, Branches((row,)), size, self.model.text_length, x.device)
            yield

    def _check_finite(self, step: Step) -> None:
        for lane in self.lanes.values():
            if not bool(torch.isfinite(_latents(lane)).all()):
                low = self.model.dtype == torch.float16
                raise NumericsError(
                    f"the latents of {lane.name} became NaN or infinite in step {step.index}",
                    hint="float16 overflowed: use --dtype bfloat16 or float32"
                    if low
                    else "lower --guidance, or check the model",
                )


def _outputs(bound: Bound, outputs: dict[Row, Tensor], half: Half) -> LaneTensors:
    return LaneTensors(bound.lane, bound.source, lambda name: outputs[Row(name, half)][0].clone())


def _latents(lane: Lane) -> Tensor:
    if lane.latents is None:
        raise InputError(f"{lane.name} has no start latents", hint="this is a fault of the session")
    return lane.latents
