"""How a lane is guided: between two halves of the denoiser's outputs, or by a number that the denoiser is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnctl.branches import HALVES, Half

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """How a lane is guided.

    Attributes:
        scale: Scale g between the halves, at least 1; 1 takes the conditional prediction alone, so that there is one
            half.
        told: Number that a guidance-distilled denoiser is told in the lane's rows; None where it takes none.
    """

    scale: float = 1.0
    told: float | None = None

    @property
    def halves(self) -> tuple[Half, ...]:
        """The halves that are evaluated."""
        return HALVES if self.scale != 1 else ("cond",)

    def combine(self, outputs: Mapping[Half, Tensor]) -> Tensor:
        """Return the guided output, e_u + g (e_c - e_u), or e_c of a lane with one half; Ho & Salimans, 2207.12598."""
        cond = outputs["cond"]
        if self.scale == 1:
            return cond
        uncond = outputs["uncond"]
        return uncond + self.scale * (cond - uncond)
