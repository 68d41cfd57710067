"""Inversions: from a picture's latents to the noise and path that a sampler would take to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attnctl.method import MethodConfig

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.model import Model, TextEncoding
    from attnctl.sampling import DDIMGrid


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What an inversion found.

    Attributes:
        latents: L, shape (T+1, C, h, w): L[0] is clean, L[T] the noisiest; at sampling step i the latents of the
            same noise level are L[T - i].
        prompt: The text that the denoiser was conditioned on.
        uncond: Embeddings (1, M, C') that replace the unconditional text of every lane on this trajectory: one per
            sampling step, or a single one for all; empty: none.
        start: Index of the sampling step that lanes start at, from ``latents[T - start]``.
        noises: Noise added after each sampling step's mean, (T, C, h, w), unit scale; None: deterministic DDIM.
        denoiser_rows: Number of single-picture denoiser evaluations that it cost.
        info: Anything else worth recording (plain data).
    """

    latents: Tensor
    prompt: str
    uncond: tuple[Tensor, ...] = ()
    start: int = 0
    noises: Tensor | None = None
    denoiser_rows: int = 0
    info: dict[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, eq=False)
class InversionCall:
    """What an inversion is given.

    Attributes:
        model: Runs the denoiser (`Model.predict`); gradients are off unless the inversion enables them.
        grid: The schedule of the sampling that will follow.
        x0: Clean latents, (1, C, h, w).
        text: The encoding to condition on.
        uncond: The encoding of the unconditional half.
        guidance: The guidance scale g that the edit will use.
        seed: Seed for inversions that draw noise (on the CPU).
        tick: Called with (done, total) for progress.
    """

    model: Model
    grid: DDIMGrid
    x0: Tensor
    text: TextEncoding
    uncond: TextEncoding
    guidance: float
    seed: int
    tick: Callable[[int, int], None] = lambda done, total: None


class Inversion(ABC):
    """A plugin that turns a picture's latents into a `Trajectory`; independent of the method that edits.

    Attributes:
        name: Registered name.
        summary: One sentence for tables.
        paper: Where it comes from.
        bibtex: Citation entry, if there is one.
        pin: How a source lane follows the trajectory when the method does not say (see `attnctl.method.Source`).
        needs_prompt: Whether it is of no use without a source prompt.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""
    pin: ClassVar[Literal["none", "start", "end"]] = "none"
    needs_prompt: ClassVar[bool] = False

    class Config(MethodConfig):
        """Settings; empty unless the inversion has some."""

    def __init__(self, config: MethodConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def rows(self, steps: int) -> int | None:
        """Return how many denoiser rows `invert` takes for a schedule of so many steps; None if it depends."""
        return None

    @abstractmethod
    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents."""
