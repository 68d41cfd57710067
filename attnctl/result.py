"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from attnctl.engine.operation import Bound
from attnctl.errors import CoverageError, SelectionError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.recording import Recorded


@dataclass(frozen=True)
class CoverageRow:
    """Where one controller was to act and where it did.

    Attributes:
        lane: The edit lane.
        controller: The controller's name.
        sites: Number of sites it selected.
        steps: Number of steps it was to act on.
        expected: Number of (site, step, half) triples, or of steps for step actions.
        acted: How many of them it acted on.
        changed: Whether it was seen to change something; None for observers.
    """

    lane: str
    controller: str
    sites: int
    steps: int
    expected: int
    acted: int
    changed: bool | None

    @classmethod
    def of(cls, bound: Bound) -> CoverageRow:
        """Read the counters of a bound controller."""
        changed = None if bound.controller.observe is not None else bound.differs
        return cls(
            bound.lane,
            bound.controller.name,
            len(bound.sites),
            len(bound.steps),
            bound.expected,
            len(bound.acted),
            changed,
        )


@dataclass(frozen=True, eq=False)
class LaneResult:
    """One finished picture.

    Attributes:
        name: Lane name.
        role: ``source`` or ``edit``.
        prompt: Its text.
        method: Method name; empty for sources.
        settings: The method's full settings.
        preset: The preset that was asked for.
        pixels: (3, H, W) in [0, 1], float32, CPU.
        latents: Final latents, (1, C, h, w).
        history: Latents after every step, (T+1, C, h, w), start first, if they were recorded.
        modifiers: The full settings of its modifiers by name.
    """

    name: str
    role: Literal["source", "edit"]
    prompt: str
    method: str
    settings: dict[str, Any]
    preset: str | None
    pixels: Tensor
    latents: Tensor
    history: Tensor | None = None
    modifiers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InversionReport:
    """How well a real picture was inverted.

    Attributes:
        lane: The source lane.
        name: The inversion's name.
        prompt: Text it was conditioned on.
        psnr: Peak signal-to-noise ratio in dB of sampling back without an edit, against the given picture; None if
            it was not measured.
        vae_psnr: The same for the autoencoder alone: the best that any inversion could reach.
        settings: The inversion's full settings.
    """

    lane: str
    name: str
    prompt: str
    psnr: float | None
    vae_psnr: float | None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EditResult:
    """A finished run.

    Attributes:
        lanes: Sources first, then edits in the request's order.
        coverage: One row per controller.
        inversions: One report per inverted source.
        rows: Single-picture denoiser evaluations by stage (``inversion``, ``reconstruction``, ``edit``); for an
            inversion that was kept on disk, those that it once took.
        seconds: Wall-clock seconds by stage.
        peak_memory: Bytes: of the device's allocator on CUDA, the process's high-water mark elsewhere.
        warnings: Sentences for the user.
        reconstructions: Pictures of sampling back without an edit, by source lane: (3, H, W) in [0, 1].
        recordings: What the request's recordings read, by name.
    """

    lanes: tuple[LaneResult, ...]
    coverage: tuple[CoverageRow, ...]
    inversions: tuple[InversionReport, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    warnings: tuple[str, ...] = ()
    reconstructions: dict[str, Tensor] = field(default_factory=dict)
    recordings: dict[str, Recorded] = field(default_factory=dict)

    @property
    def source(self) -> LaneResult:
        """The first source lane."""
        return self.lanes[0]

    @property
    def edits(self) -> tuple[LaneResult, ...]:
        """The edit lanes."""
        return tuple(lane for lane in self.lanes if lane.role == "edit")

    def __getitem__(self, name: str) -> LaneResult:
        """Return a lane by name.

        Raises:
            SelectionError: There is no such lane; the message lists those there are.
        """
        for lane in self.lanes:
            if lane.name == name:
                return lane
        raise unknown("lane", name, [lane.name for lane in self.lanes], cls=SelectionError)


class NoOpError(CoverageError):
    """An edit did not act as planned; `result` holds what was computed all the same."""

    def __init__(self, message: str, *, hint: str, result: EditResult) -> None:
        super().__init__(message, hint=hint)
        self.result = result


def check_coverage(result: EditResult, same_prompt: dict[str, bool]) -> str | None:
    """Return why an edit is not what it claims to be, or None when every edit acted as planned.

    A controller that its settings give nothing to do (0 % of the steps) is not held against it.

    Args:
        result: The finished run.
        same_prompt: Per edit lane, whether its prompt equals its source's.
    """
    for row in result.coverage:
        if row.acted < row.expected:
            places = f"{row.expected} places ({row.sites} sites, {row.steps} steps)"
            return f"controller {row.controller!r} of {row.lane} acted at {row.acted} of {places}"
    for lane in result.edits:
        mine = [r for r in result.coverage if r.lane == lane.name]
        if any(r.steps for r in mine) and not any(r.expected for r in mine):
            return f"{lane.name} ({lane.method}) edits the unconditional half only, which guidance 1 leaves out"
        rows = [r for r in result.coverage if r.lane == lane.name and r.expected and r.changed is not None]
        if rows and not any(r.changed for r in rows):
            names = ", ".join(r.controller for r in rows)
            reason = "its prompt equals the source's" if same_prompt.get(lane.name) else f"{names} changed no number"
            return f"the edit {lane.name!r} ({lane.method}) is identical to its uncontrolled lane: {reason}"
    return None
