"""Inversions: from a picture's latents to the noise and path that a sampler would take to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

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
        uncond: Per sampling step, an embedding (1, M, C') that replaces the unconditional text; empty: none.
        denoiser_rows: Number of single-picture denoiser evaluations that it cost.
        info: Anything else worth recording (plain data).
    """

    latents: Tensor
    prompt: str
    uncond: tuple[Tensor, ...] = ()
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


class Inversion(ABC):
    """A plugin that turns a picture's latents into a `Trajectory`; independent of the method that edits.

    Attributes:
        name: Registered name.
        summary: One sentence for tables.
        paper: Where it comes from.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    class Config(MethodConfig):
        """Settings; empty unless the inversion has some."""

    def __init__(self, config: MethodConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @abstractmethod
    def invert(
        self, model: Model, grid: DDIMGrid, x0: Tensor, text: TextEncoding, tick: Callable[[int, int], None]
    ) -> Trajectory:
        """Invert clean latents.

        Args:
            model: Runs the denoiser.
            grid: The schedule of the sampling that will follow.
            x0: Clean latents, (1, C, h, w).
            text: The encoding to condition on.
            tick: Called with (done, total) for progress.
        """
