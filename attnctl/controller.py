"""What a lane does at its sites and steps: one selector, one window, one action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from attnctl.attend import AttentionCall, Expression
from attnctl.branches import HALVES, Half, LaneTensors
from attnctl.errors import PluginError
from attnctl.sites import Where
from attnctl.steps import Step, When

if TYPE_CHECKING:
    from torch import Tensor

ACTIONS = (
    "attend",
    "on_qkv",
    "on_probs",
    "on_feature",
    "on_step_start",
    "on_prediction",
    "on_guidance",
    "on_step_end",
    "observe",
)
STEP_ACTIONS = ("on_step_start", "on_prediction", "on_guidance", "on_step_end")
PREDICTION_ACTIONS = ("on_prediction", "on_guidance")


class Predict(Protocol):
    """How step actions run the denoiser."""

    def __call__(self, x: Tensor, lane: str, half: Half, observers: Sequence[Controller] = ()) -> Tensor:
        """Run the denoiser on one row, uncontrolled; keeps gradients when they are enabled.

        Args:
            x: Latents (C, h, w).
            lane: The lane whose text is used.
            half: The half whose text is used.
            observers: Controllers with an `Observation`: they read this call's maps, gradients included. `when` and
                `passes` do not matter.

        Returns:
            The denoiser's output (C, h, w).
        """


@dataclass(frozen=True)
class StepCall:
    """All context of a step action.

    Attributes:
        step: The step that starts or ends.
        lane: The lane being edited.
        latents: Latents by lane, each (C, h, w), noise level of the step's start or end.
        reference: The inverted picture's latents (C, h, w) at the same noise level; None for generated sources.
        predict: Runs the denoiser on one row.
        guidance: The lane's guidance scale; 1 means that it has no unconditional half.
    """

    step: Step
    lane: str
    latents: LaneTensors
    predict: Predict
    guidance: float
    reference: Tensor | None = None


@dataclass(frozen=True)
class PredictionCall:
    """All context of one lane's prediction in one evaluation of the denoiser.

    Attributes:
        step: The step, with its stage.
        lane: The lane being edited.
        guidance: Its scale g between the halves; 1 means that it has the conditional half alone.
        uncond: The denoiser's outputs under the unconditional text by lane, each (C, h, w).
        cond: The same under the lanes' own texts.
    """

    step: Step
    lane: str
    guidance: float
    uncond: LaneTensors
    cond: LaneTensors

    @property
    def plain(self) -> Tensor:
        """What ordinary guidance gives, e_u + g (e_c - e_u), or e_c of a lane with one half, (C, h, w)."""
        if self.guidance == 1:
            return self.cond["self"]
        uncond = self.uncond["self"]
        return uncond + self.guidance * (self.cond["self"] - uncond)


GuidanceCall = PredictionCall
"""What `PredictionCall` is called where guidance is what a controller changes."""


@dataclass(frozen=True)
class Observation:
    """Reads attention maps without storing them: the lane's own (edited) map times a few columns, A U.

    Attributes:
        columns: U, shape (M, K), or a function of the `AttentionCall` that returns it; a word's map is the indicator
            of its tokens. Asked for where `of` is ``columns``.
        sink: Receives the call and what is read: A U, float32 (H, N, K), or what `of` says.
        lane: Whose map is read: ``"self"``, ``"source"`` or a lane's name.
        of: ``columns``; or the lane's own ``q``, ``k``, ``v`` as attention meets them, ``out`` of the attention, or a
            ``feature`` (C, h, w), in the model's type.
    """

    columns: Tensor | Callable[[AttentionCall], Tensor]
    sink: Callable[[AttentionCall, Tensor], None]
    lane: str = "self"
    of: Literal["columns", "q", "k", "v", "out", "feature"] = "columns"


@dataclass(frozen=True, eq=False)
class Controller:
    """One edit of one lane: acts where `where` and `when` meet, in the guidance halves `passes`, by ONE action.

    Attributes:
        name: Short name for tables and errors, unique within a plan.
        where: Selector over sites; None for step actions, which belong to no site.
        when: Step window.
        passes: Guidance halves that are edited.
        attend: An expression of the attention algebra, or a function of the step that returns one (None: leave that
            step alone). The cheap, fused way; prefer it.
        on_qkv: ``(call, q, k, v) -> (q, k, v)``: own projections (H, N, D), (H, M, D), (H, M, D) from any lanes'.
        on_probs: ``(call, probs) -> A``: own explicit map (H, N, M) float32 from any lanes'; costs memory N x M.
        on_feature: ``(call, feature) -> own feature (C, h, w)``, at sites of kind ``feature``.
        on_step_start: ``(step_call) -> latents (C, h, w) or None`` before the denoiser; gradients may be enabled.
        on_prediction: ``(prediction_call) -> prediction`` (C, h, w), in place of ``prediction_call.plain``; called in
            every evaluation, also of a lane with one half. It may read the lanes in `lanes`, in the halves that its
            own lane has.
        on_guidance: The same, under the name that suits what changes guidance.
        on_step_end: as on_step_start, after the scheduler's step.
        observe: Reads word maps, changes nothing.
        lanes: Lanes other than ``self`` that a callback reads, so that they are kept running; expressions say it
            themselves.
        both_halves: Whether what it does in one half depends on the other one, so that a call must not part them.

    Raises:
        PluginError: Not exactly one action is given, or the selector does not fit the action.
    """

    name: str
    where: Where | None = None
    when: When = When()  # noqa: RUF009  (frozen)
    passes: tuple[Half, ...] = ("cond",)
    attend: Expression | Callable[[Step], Expression | None] | None = None
    on_qkv: Callable[[AttentionCall, LaneTensors, LaneTensors, LaneTensors], tuple[Tensor, Tensor, Tensor]] | None = (
        None
    )
    on_probs: Callable[[AttentionCall, LaneTensors], Tensor] | None = None
    on_feature: Callable[[AttentionCall, LaneTensors], Tensor] | None = None
    on_step_start: Callable[[StepCall], Tensor | None] | None = None
    on_prediction: Callable[[PredictionCall], Tensor] | None = None
    on_guidance: Callable[[PredictionCall], Tensor] | None = None
    on_step_end: Callable[[StepCall], Tensor | None] | None = None
    observe: Observation | None = None
    lanes: tuple[str, ...] = ("source",)
    both_halves: bool = False

    def __post_init__(self) -> None:
        given = [a for a in ACTIONS if getattr(self, a) is not None]
        if len(given) != 1:
            raise PluginError(
                f"controller {self.name!r} has {len(given)} actions ({', '.join(given) or 'none'}), expected one",
                hint=f"give one of {', '.join(ACTIONS)}; use several controllers for several actions",
            )
        if not self.passes or any(p not in HALVES for p in self.passes):
            raise PluginError(
                f"controller {self.name!r} names the guidance halves {self.passes!r}",
                hint=f"known are {HALVES}",
            )
        if self.is_step_action == (self.where is not None):
            raise PluginError(
                f"controller {self.name!r}: `where` and the action {self.action!r} do not fit together",
                hint="step actions take no `where`; all other actions need one",
            )
        at_features = self.action == "on_feature" or (self.observe is not None and self.observe.of == "feature")
        if self.where is not None and (self.where.kind == "feature") != at_features:
            raise PluginError(
                f"controller {self.name!r} binds {self.action!r} to {self.where.what} sites",
                hint="on_feature goes with kind 'feature', every other action with sites that attend",
            )

    @property
    def action(self) -> str:
        """The name of the one action that is given."""
        return next(a for a in ACTIONS if getattr(self, a) is not None)

    @property
    def is_step_action(self) -> bool:
        """Whether the action works on latents between denoiser calls."""
        return self.action in STEP_ACTIONS

    @property
    def predicts(self) -> bool:
        """Whether the action decides what its lane's prediction is."""
        return self.action in PREDICTION_ACTIONS

    def decide(self, call: PredictionCall) -> Tensor:
        """Return what the action makes of a prediction, (C, h, w)."""
        act = self.on_prediction or self.on_guidance
        assert act is not None  # `predicts` says whether there is one
        return act(call)

    def expression(self, step: Step) -> Expression | None:
        """Return the attention expression of a step, or None when there is none at that step."""
        return self.attend(step) if callable(self.attend) else self.attend

    def reads(self, step: Step) -> frozenset[str]:
        """Return the lane names (``self``, ``source``, ...) that the controller reads at a step."""
        if self.attend is not None:
            expression = self.expression(step)
            return frozenset() if expression is None else expression.lanes
        return frozenset({"self", *(self.lanes if self.observe is None else (self.observe.lane,))})

    def describe(self) -> str:
        """Say the action in one line for tables."""
        if self.attend is None:
            return self.action
        if callable(self.attend):
            return "per step: " + (getattr(self.attend, "__doc__", None) or "an expression").strip().splitlines()[0]
        return f"out = {self.attend}"
