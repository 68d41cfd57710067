"""Which rows a denoiser call needs: functions of lanes, bound controllers and a step. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from attnctl.branches import HALVES, Half, Row
from attnctl.engine.operation import Bound
from attnctl.steps import Step


class LaneRows(Protocol):
    """What of a lane decides its rows; a planned lane and a running one alike."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def halves(self) -> tuple[Half, ...]:
        """The halves that its own guidance needs."""

    @property
    def pin(self) -> str:
        """Whether it is kept on a path."""

    @property
    def start(self) -> int:
        """The step that it starts at."""

    @property
    def trivial(self) -> bool:
        """Whether one row serves both halves."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a run, step by step.

    Attributes:
        lanes: The lanes in batch order.
        bounds: The bound controllers.
        keep_source: Whether pinned lanes are run too.
        trivial: Names of lanes whose one row serves both halves.
    """

    lanes: Mapping[str, LaneRows]
    bounds: Sequence[Bound]
    keep_source: bool
    trivial: frozenset[str]

    @classmethod
    def of(cls, lanes: Mapping[str, LaneRows], bounds: Sequence[Bound], keep_source: bool) -> Rows:
        """Look at every lane once; whether its texts agree does not change during a run."""
        return cls(lanes, bounds, keep_source, frozenset(name for name, lane in lanes.items() if lane.trivial))

    def moves(self, name: str, step: Step) -> bool:
        """Whether a lane is denoised in a step, rather than put on its path."""
        lane = self.lanes[name]
        return step.index >= lane.start and (lane.pin == "none" or self.keep_source)

    def acts_inside(self, bound: Bound, step: Step) -> bool:
        """Whether a controller acts inside the denoiser's call, where it reads other rows."""
        inside = not bound.controller.is_step_action
        return inside and bound.active(step) and step.index >= self.lanes[bound.lane].start

    def predicts(self, bound: Bound, step: Step) -> bool:
        """Whether a controller decides in a step what its lane's prediction is."""
        return bound.controller.predicts and bound.active(step) and self.moves(bound.lane, step)

    def needed(self, step: Step) -> list[Row]:
        """List the rows that matter in a step: all of a free lane's; of a pinned one's only those that are read."""
        needed: set[Row] = set()
        for name, lane in self.lanes.items():
            if self.moves(name, step):
                needed.update(Row(name, half) for half in lane.halves)
        for bound in self.bounds:
            if self.acts_inside(bound, step):
                for half in bound.controller.passes:
                    if half in self.lanes[bound.lane].halves:
                        needed.update(Row(bound.lane_of(n), half) for n in bound.controller.reads(step))
            elif self.predicts(bound, step):
                halves = self.lanes[bound.lane].halves
                needed.update(Row(bound.lane_of(n), half) for n in bound.controller.reads(step) for half in halves)
        aliases = self.aliases(needed)
        rows = {aliases.get(r, r) for r in needed}
        order = list(self.lanes)
        return sorted(rows, key=lambda r: (r.half == "cond", order.index(r.lane)))

    def beyond(self, needed: Collection[Row], step: Step) -> list[Row]:
        """List the rows that these controllers alone read in a step: rows of lanes that nothing moves then."""
        read: set[Row] = set()
        for bound in self.bounds:
            if self.acts_inside(bound, step):
                read.update(Row(bound.lane, half) for half in bound.controller.passes)
        aliases = self.aliases(read)
        return sorted({aliases.get(row, row) for row in read} - set(needed))

    def count(self, steps: Iterable[Step]) -> int:
        """Return how many rows the denoiser evaluates in these steps."""
        return sum(len(self.needed(step)) for step in steps)

    def aliases(self, rows: Collection[Row]) -> dict[Row, Row]:
        """Map the unconditional rows that a conditional row serves."""
        return {Row(r.lane, "uncond"): Row(r.lane, "cond") for r in rows if r.lane in self.trivial}

    def chunks(self, step: Step, needed: Sequence[Row], max_rows: int | None) -> list[list[Row]]:
        """Pack rows into calls of at most `max_rows`, each row together with every row that it reads."""
        if max_rows is None or len(needed) <= max_rows:
            return [list(needed)] if needed else []
        chunks: list[set[Row]] = []
        for row in needed:
            closure = self.closure(row, step)
            if chunks and len(chunks[-1] | closure) <= max_rows:
                chunks[-1] |= closure
            elif not any(closure <= c for c in chunks):
                chunks.append(closure)
        return [[r for r in needed if r in chunk] for chunk in chunks]

    def closure(self, row: Row, step: Step) -> set[Row]:
        """Return a row with every row that it reads, directly or through others."""
        found: set[Row] = set()
        todo = [row]
        aliases = self.aliases([Row(name, half) for name in self.lanes for half in HALVES])
        while todo:
            row = todo.pop()
            row = aliases.get(row, row)
            if row in found:
                continue
            found.add(row)
            for bound in self.bounds:
                if bound.lane == row.lane and row.half in bound.controller.passes and self.acts_inside(bound, step):
                    todo += [Row(bound.lane_of(n), row.half) for n in bound.controller.reads(step)]
                    if bound.controller.both_halves:
                        todo += [Row(row.lane, half) for half in self.lanes[row.lane].halves]
        return found
