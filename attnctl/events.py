"""What a run tells whoever listens while it is under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.result import InversionReport


@dataclass(frozen=True)
class Progress:
    """One tick: `done` of `total` units of a stage (``inversion``, ``reconstruction``, ``edit``, ``decode``)."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Inverted:
    """An inversion is finished and measured, before anything is edited.

    Attributes:
        report: Its quality.
        reconstruction: Picture (3, H, W) in [0, 1] of sampling back without an edit; None if that was not done.
        cached: Whether it was found on disk rather than computed.
    """

    report: InversionReport
    reconstruction: Tensor | None = None
    cached: bool = False


@dataclass(frozen=True)
class Warned:
    """Something that the user should know, said as soon as it is known; also in `EditResult.warnings`."""

    text: str


Event = Progress | Inverted | Warned
