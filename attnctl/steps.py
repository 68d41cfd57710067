"""The clock: which step a run is at, and which steps a controller is bound to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnctl.errors import SelectionError


@dataclass(frozen=True)
class Step:
    """One denoising step.

    Attributes:
        index: 0-based position in the schedule; 0 is the noisiest step.
        count: Number of steps T in the whole schedule.
        timestep: What the denoiser is told of the time at the step's start; training timestep t, whole or not.
        stage: Which of the step's evaluations of the denoiser, from 0; most schedules have one.
    """

    index: int
    count: int
    timestep: int | float
    stage: int = 0


def steps_of(timesteps: Sequence[int | float]) -> list[Step]:
    """Number a schedule's timesteps, noisiest first."""
    return [Step(i, len(timesteps), t) for i, t in enumerate(timesteps)]


@dataclass(frozen=True)
class When:
    """The steps a controller acts on: a half-open fraction ``[start, stop)`` of the schedule, or explicit indices.

    The rounding rule is the papers' own, ``int(T * fraction)`` in double arithmetic: with 50 steps 0.8 gives
    steps 0..39, and ``int(100 * 0.29)`` is 28, not 29.

    Attributes:
        start: First fraction, between 0 and 1.
        stop: Fraction at which acting ends (exclusive), between 0 and 1.
        steps: Explicit step indices; when given, `start` and `stop` are not used.

    Raises:
        SelectionError: A fraction lies outside [0, 1], start lies behind stop, or an index is negative.
    """

    start: float = 0.0
    stop: float = 1.0
    steps: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            if any(i < 0 for i in self.steps):
                raise SelectionError(
                    f"step indices must be 0 or more, found {sorted(self.steps)}", hint="count steps from 0"
                )
            return
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise SelectionError(
                f"a step window must satisfy 0 <= start <= stop <= 1, found [{self.start}, {self.stop})",
                hint="give fractions of the schedule, for example When(0, 0.8)",
            )

    def indices(self, count: int) -> tuple[int, ...]:
        """Return the step indices of a schedule of `count` steps that lie in the window, ascending."""
        if self.steps is not None:
            return tuple(sorted(i for i in self.steps if i < count))
        return tuple(range(int(count * self.start), int(count * self.stop)))

    def __contains__(self, step: Step) -> bool:
        return step.index in self.indices(step.count)

    def __str__(self) -> str:
        if self.steps is not None:
            return "steps " + compact_range(sorted(self.steps))
        return f"[{self.start:g}, {self.stop:g})"


def compact_range(numbers: list[int] | tuple[int, ...]) -> str:
    """Write ascending integers as ranges: ``(2, 3, 4, 9)`` becomes ``"2-4, 9"``; nothing becomes ``"none"``."""
    parts: list[str] = []
    run: list[int] = []
    for n in [*numbers, None]:
        if run and n != run[-1] + 1:
            parts.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
            run = []
        if n is not None:
            run.append(n)
    return ", ".join(parts) or "none"
