"""Inversions: from a picture's latents to the noise and path that a sampler would take to it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attnctl.plugin import Plugin
from attnctl.text import TOKENS, Text

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.model import Model
    from attnctl.sampling import Path


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What an inversion found.

    Attributes:
        latents: L, shape (T+1, C, h, w): L[0] is clean, L[T] the noisiest; at sampling step i the latents of the
            same noise level are L[T - i].
        prompt: The text that the denoiser was conditioned on.
        uncond: What replaces parts of the unconditional text of every lane on this trajectory, by the names of
            `attnctl.text.Text.parts`: one mapping per sampling step, or a single one for all; empty: none. A bare
            tensor (1, M, C') stands for the token embeddings, a `Text` for all of its parts.
        start: Index of the sampling step that lanes start at, from ``latents[T - start]``.
        noises: Noise added after each sampling step's mean, (T, C, h, w), unit scale; None: deterministic DDIM.
        offsets: What is added to a free source lane after each sampling step, (T, C, h, w); edits get nothing.
        denoiser_rows: Number of single-picture denoiser evaluations that it cost.
        info: Anything else worth recording (plain data).
    """

    latents: Tensor
    prompt: str
    uncond: tuple[Mapping[str, Tensor], ...] = ()
    start: int = 0
    noises: Tensor | None = None
    offsets: Tensor | None = None
    denoiser_rows: int = 0
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = tuple(_parts(text) for text in self.uncond)
        object.__setattr__(self, "uncond", parts)


def _parts(text: Any) -> Mapping[str, Tensor]:
    if isinstance(text, Text):
        return text.parts
    return text if isinstance(text, Mapping) else {TOKENS: text}


@dataclass(frozen=True)
class InversionSpec:
    """Which inversion a plan asks for.

    Attributes:
        name: Registered name, for example ``ddim``.
        prompt: Text to condition on; ``""`` for unconditional.
        options: Settings of the inversion's `Config`.
    """

    name: str
    prompt: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    def with_settings(self, settings: Mapping[str, Any]) -> InversionSpec:
        """Return the same with further options; they win over those of the same name."""
        return replace(self, options=tuple(sorted({**dict(self.options), **_hashable(settings)}.items())))


def _hashable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists into tuples: plans that ask for the same inversion are told by comparing them."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


@dataclass(frozen=True, eq=False)
class InversionCall:
    """What an inversion is given.

    Attributes:
        model: Runs the denoiser (`Model.predict`); gradients are off unless the inversion enables them.
        grid: The schedule of the sampling that will follow.
        x0: Clean latents, (1, C, h, w).
        text: The encoding to condition on.
        source: The encoding that the source lane will be sampled with; most methods' is the same text.
        uncond: The encoding of the source lane's unconditional half.
        guidance: The guidance scale g of the source lane.
        seed: Seed for inversions that draw noise (on the CPU).
        tick: Called with (done, total) for progress.
    """

    model: Model
    grid: Path
    x0: Tensor
    text: Text
    source: Text
    uncond: Text
    guidance: float
    seed: int
    tick: Callable[[int, int], None] = lambda done, total: None


class Inversion(Plugin):
    """A plugin that turns a picture's latents into a `Trajectory`; independent of the method that edits.

    Attributes:
        version: Counts up when the same settings give another trajectory; trajectories kept on disk are then made anew.
        pin: How a source lane follows the trajectory when the method does not say (see `attnctl.method.Source`); an
            instance may set its own.
        needs_prompt: Whether it is of no use without a source prompt.
        replaces_uncond: Whether its trajectories replace the unconditional text, so that no negative prompt can be
            used with it, and guidance 1 (which has no unconditional half) makes no sense.
        reads_lane: Whether its trajectories depend on the source lane's own texts and guidance; if not, source lanes
            that differ in these alone share one. An instance may set its own.
        plain: Whether the denoiser is all that its trajectories come from, so that a source may just as well be put
            back on them before every step (`attnctl.method.Source.pin_plain`).
        paths: Names of the schedules that it can climb; empty: any `attnctl.sampling.Path`.
    """

    version: ClassVar[int] = 1
    pin: Literal["none", "start", "end"] = "none"
    needs_prompt: ClassVar[bool] = False
    replaces_uncond: ClassVar[bool] = False
    reads_lane: bool = True
    plain: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...]] = ()

    def rows(self, steps: int) -> int | None:
        """Return how many denoiser rows `invert` takes for a schedule of so many steps; None if it depends."""
        return None

    def source_guidance(self, guidance: float) -> float:
        """Return the guidance scale of source lanes whose method sets none, given the run's."""
        return guidance

    def edit_guidance(self, guidance: float) -> float:
        """Return the guidance scale of edit lanes whose method sets none, given the run's."""
        return guidance

    @abstractmethod
    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents."""
