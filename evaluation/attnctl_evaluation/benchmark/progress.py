"""How far a run is: a bar with a rate and an estimate on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from attnctl.terminal import one_line, say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PLAIN_EVERY = 60.0
"""Seconds between plain lines where there is no terminal."""

ENOUGH = 2
"""Finished jobs from which on a rate is told; the first one is slower than all others."""


class CompareProgress:
    """Follows a run; a context manager.

    The rate is that of this process since its first finished job: rows that were there before do not count, nor does
    loading the model.

    Args:
        total: Rows of the whole run, or of its shard.
        done: Rows that were there before.
        quiet: Say nothing.

    Attributes:
        done: Rows that are there.
        failed: Rows of this process that failed.
    """

    def __init__(self, total: int, done: int, *, quiet: bool = False) -> None:
        self.total, self.done, self.failed = total, done, 0
        self._quiet = quiet
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._jobs = 0
        self._counted = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}", markup=False),  # the name of a case may hold brackets
                BarColumn(),
                TextColumn("{task.fields[state]}", markup=False),
            )
            self._bars = Progress(*columns, console=Console(file=sys.stderr), redirect_stdout=False)
            self._bars.start()
            self._task = self._bars.add_task("loading", total=self.total, completed=self.done, state=self.state())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def advance(self, rows: int, failed: int, what: str) -> None:
        """Say that a job is finished.

        Args:
            rows: New rows.
            failed: How many of them failed.
            what: The case.
        """
        now = time.monotonic()
        self.done += rows
        self.failed += failed
        self._jobs += 1
        if self._jobs == 1:
            self._began = now
        else:
            self._counted += rows
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self.done, description=one_line(what), state=self.state())
        elif not self._quiet and now - self._said >= PLAIN_EVERY:
            self._said = now
            say("note", self.state())

    def state(self) -> str:
        """Return how far it is, in words."""
        parts = [f"{self.done} of {self.total} rows"]
        rate = self.rate()
        if rate is not None:
            parts.append(f"{rate * 60:.1f} a minute")
            if self.done < self.total:
                parts.append(f"about {duration((self.total - self.done) / rate)} left")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)

    def rate(self) -> float | None:
        """Return rows per second; None before enough is known."""
        spent = time.monotonic() - self._began
        return self._counted / spent if self._jobs >= ENOUGH and self._counted and spent > 0 else None


def duration(seconds: float) -> str:
    """Return a span of time in the two largest units that matter."""
    whole = max(1, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
