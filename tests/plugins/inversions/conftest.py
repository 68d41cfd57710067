"""What tests of inversions share: a tame model, a picture for it, and an inversion called by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.families.betas import beta_schedule
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl.model import Model
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_model


class Bench:
    """A tiny model in double precision, where what is exact on paper shows as exact, and a picture's latents."""

    source = "a photo of a red cat"
    target = "a photo of a blue dog"

    def __init__(self) -> None:
        self.model: Model = tiny_model(prediction_type="v_prediction", dtype=torch.float64)
        self.session = EditSession(self.model)
        self.x0 = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3)).double()

    def call(self, steps: int = 5, *, prompt: str | None = None, guidance: float = 7.5, **fields: Any) -> InversionCall:
        """What an inversion is given; `fields` replace the rest."""
        text = self.model.encode_text(self.source if prompt is None else prompt)
        given: dict[str, Any] = {
            "model": self.model,
            "grid": beta_schedule("ddim", self.model.pipe.scheduler, steps, 0),
            "x0": self.x0,
            "text": text,
            "source": text,
            "uncond": self.model.encode_text(""),
            "guidance": guidance,
            "seed": 0,
        }
        return InversionCall(**{**given, **fields})

    def invert(self, inversion: Inversion, steps: int = 5, **fields: Any) -> Trajectory:
        """Run an inversion by itself."""
        with torch.no_grad():
            return inversion.invert(self.call(steps, **fields))

    def request(self, inversion: str, *edits: Edit, **fields: Any) -> EditRequest:
        """A request to edit the picture on a path of the given inversion; by default without control."""
        given: dict[str, Any] = {"source_prompt": self.source, "x0": self.x0, "steps": 5, "check_reconstruction": False}
        return EditRequest(edits or (Edit(self.target, "none"),), inversion=inversion, **{**given, **fields})

    def run(self, inversion: str, *edits: Edit, **fields: Any) -> Any:
        """Run such a request, with every lane's history."""
        return self.session.run(self.request(inversion, *edits, **fields), record=True)


@pytest.fixture(scope="session")
def bench() -> Bench:
    """One for all tests: none of them changes it."""
    return Bench()
