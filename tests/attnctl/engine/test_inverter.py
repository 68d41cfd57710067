"""How good an inversion is, and what is said of it."""

from __future__ import annotations

import math

import pytest
import torch

from attnctl.engine.inverter import Inverter, _poor, psnr
from attnctl.engine.lanes import Lane
from attnctl.events import Inverted, Warned
from attnctl.families.betas import beta_schedule
from attnctl.guidance import Guidance
from attnctl.inversion import InversionSpec
from attnctl.session import EditSession


@pytest.mark.parametrize(
    ("quality", "best", "words"),
    [
        (30.0, 33.0, ""),
        (19.9, 33.0, "the inversion reconstructs the picture at only 19.9 dB"),
        (19.9, None, "the inversion reconstructs the picture at only 19.9 dB"),
        (19.0, 19.5, "the model's autoencoder reconstructs the picture at only 19.5 dB"),
        (None, None, ""),
    ],
)
def test_who_is_to_blame_for_a_poor_reconstruction(quality: float | None, best: float | None, words: str) -> None:
    said = _poor(quality, best)
    assert said.startswith(words)
    assert bool(said) == bool(words)


def test_psnr() -> None:
    a = torch.zeros(3, 4, 4)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 0.1) == pytest.approx(20.0)


def test_a_second_lane_that_wants_the_same_costs_nothing(tiny_session: EditSession) -> None:
    model, events = tiny_session.model, []
    grid = beta_schedule("ddim", model.pipe.scheduler, 3, 0)
    inverter = Inverter(model, tiny_session.registry, grid, torch.randn(1, 4, 8, 8), None, on_event=events.append)
    cat, empty = model.encode_text("a cat"), model.encode_text("")
    with torch.no_grad():
        one = inverter.invert(Lane("source", "a cat", cat, empty, Guidance(7.5)), InversionSpec("ddim", "a cat"))
        other = inverter.invert(Lane("source[1]", "a cat", cat, empty, Guidance(7.5)), InversionSpec("ddim", "a cat"))
    assert one.rows == {"inversion": 3, "reconstruction": 3}
    assert other.rows == {}
    assert other.trajectory is one.trajectory
    assert [e.report.lane for e in events if isinstance(e, Inverted)] == ["source", "source[1]"]
    assert one.report.vae_psnr is None
    assert not [e for e in events if isinstance(e, Warned) and "autoencoder" in e.text]
