"""Lanes of a run: what each is told, where its latents are, and which path it follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnctl.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.branches import Half
    from attnctl.engine.planning import PlannedLane, RunPlan
    from attnctl.guidance import Guidance
    from attnctl.inversion import Trajectory
    from attnctl.model import Model
    from attnctl.steps import Step
    from attnctl.text import Text


@dataclass(eq=False)
class Lane:
    """One picture that denoises.

    Attributes:
        name: ``source``, ``source[1]``, ... or an edit's name.
        prompt: Its text.
        cond: Encoding of the text.
        uncond: Encoding of the unconditional half's text.
        guidance: How it is guided.
        pin: As in `attnctl.method.Source.pin`; edits are never pinned.
        edit: Index of the edit in the request; None for sources.
        trajectory: What its inversion found; an edit has its source's.
        latents: Current latents, (1, C, h, w).
    """

    name: str
    prompt: str
    cond: Text
    uncond: Text
    guidance: Guidance
    pin: str = "none"
    edit: int | None = None
    trajectory: Trajectory | None = None
    latents: Tensor | None = None

    @property
    def halves(self) -> tuple[Half, ...]:
        """The halves that its own guidance needs."""
        return self.guidance.halves

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

    @property
    def x(self) -> Tensor:
        """Current latents, (1, C, h, w).

        Raises:
            PluginError: It was never given any.
        """
        if self.latents is None:
            raise PluginError(f"{self.name} has no start latents", hint="this is a fault of the session")
        return self.latents

    def follow(self, trajectory: Trajectory) -> None:
        """Take start latents and unconditional texts from an inversion."""
        if len(trajectory.uncond) == 1:  # the same in all steps: an ordinary text
            self.uncond = self.uncond.reworded(trajectory.uncond[0])
            trajectory = replace(trajectory, uncond=())
        self.trajectory = trajectory
        self.latents = trajectory.latents[-1 - trajectory.start][None].to(self.cond.embeds)

    def text(self, half: Half, step: Step) -> Text:
        """Return the encoding of one half at a step."""
        if half == "cond":
            return self.cond
        if self.trajectory is not None and self.trajectory.uncond:
            return self.uncond.reworded(self.trajectory.uncond[step.index])
        return self.uncond

    def on_path(self, index: int) -> Tensor:
        """Return its trajectory at the level before step `index`, (1, C, h, w).

        Raises:
            PluginError: It has none.
        """
        if self.trajectory is None:
            raise PluginError(f"{self.name} is pinned but has no trajectory", hint="plan an inversion for it")
        return self.trajectory.latents[-1 - index][None].to(self.x)


def make_lanes(plan: RunPlan, model: Model) -> dict[str, Lane]:
    """Make the lanes of one run of a plan, without latents yet; encodes every text."""
    return {
        name: Lane(
            name,
            lane.prompt,
            _words(lane, model),
            model.encode_text(lane.negative_prompt, unconditional=True),
            lane.guidance,
            lane.pin,
            lane.edit,
        )
        for name, lane in plan.lanes.items()
    }


def _words(lane: PlannedLane, model: Model) -> Text:
    """Encode a lane's text: its prompt, or the weighted sum that its method planned."""
    if not lane.text:
        return model.encode_text(lane.prompt)
    (first, *others), weights = [model.encode_text(text) for text, _ in lane.text], [w for _, w in lane.text]

    def total(part: Tensor, *more: Tensor) -> Tensor:
        return sum((w * p for p, w in zip(more, weights[1:], strict=True)), weights[0] * part)

    return replace(first.map(total, *others), prompt=lane.prompt)
