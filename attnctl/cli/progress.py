"""What a run is doing: a bar for each stage on a terminal's stderr, silence elsewhere, and words for an interrupt."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from attnctl.terminal import say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from attnctl.events import Event
    from attnctl.result import InversionReport

STAGES = {
    "inversion": "inverting the picture",
    "reconstruction": "reconstructing it",
    "edit": "denoising",
    "decode": "decoding",
}
"""The session's stages in words."""


class RunProgress:
    """Follows a run; a context manager around everything that may take long.

    The time that a stage still needs is told from the steps that it has done, once it has done two.

    Attributes:
        where: What is going on, for messages: ``loading the model``, ``denoising, step 3 of 30``.
    """

    def __init__(self) -> None:
        self.where = "starting"
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._pulse: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(file=sys.stderr),
                redirect_stdout=False,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Put the bars away, so that results can be written; does nothing the second time."""
        if self._bars is not None:
            self._end_pulse()
            self._bars.stop()
            self._bars = None

    def doing(self, what: str) -> None:
        """Say that something of unknown length begins, for example ``loading the model``."""
        self.where = what
        if self._bars is not None:
            self._end_pulse()
            self._pulse = self._bars.add_task(what, total=None, count="")

    def __call__(self, event: Event) -> None:
        """Take one of the session's events."""
        from attnctl.events import Inverted, Progress, Warned

        if isinstance(event, Warned):
            say("warning", event.text)
        elif isinstance(event, Inverted):
            kept = "; kept from an earlier run" if event.cached else ""
            say("note", inversion_line(event.report) + kept)
        elif isinstance(event, Progress):
            name = STAGES.get(event.stage, event.stage)
            self.where = f"{name}, {event.done} of {event.total} done"
            if self._bars is not None:
                self._end_pulse()
                if event.stage not in self._tasks:
                    self._tasks[event.stage] = self._bars.add_task(name, total=event.total, count="")
                count = f"{event.done}/{event.total}"
                self._bars.update(self._tasks[event.stage], completed=event.done, total=event.total, count=count)

    def _end_pulse(self) -> None:
        if self._bars is not None and self._pulse is not None:
            self._bars.remove_task(self._pulse)
            self._pulse = None


def inversion_line(report: InversionReport) -> str:
    """Say in one line how well a picture was inverted."""
    line = f"inversion {report.name}"
    line += f" under {report.prompt!r}" if report.prompt else " without a prompt"
    if report.psnr is None:
        return f"{line}; its reconstruction was not measured"
    line += f" reconstructs the picture at {report.psnr:.1f} dB PSNR"
    if report.vae_psnr is not None:
        line += f" (the autoencoder alone: {report.vae_psnr:.1f} dB)"
    return line
