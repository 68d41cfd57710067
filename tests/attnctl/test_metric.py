"""What every metric promises, whatever it measures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnctl.errors import PluginError
from attnctl.metric import Metric, MetricCard, Sample, Score, finite

CARD = MetricCard("bright", "bright", "Mean level.", "higher", 0.0, 1.0, "none", "a test")


class Brightness(Metric):
    name, needs = "bright", ("mask",)

    def card(self) -> MetricCard:
        return CARD

    def measure(self, sample: Sample) -> Score:
        return finite(float(sample.edited.mean()))


def sample(**fields: object) -> Sample:
    defaults = {"edited": torch.full((3, 4, 6), 0.5), "prompt": "a car", "mask": torch.ones(4, 6, dtype=torch.bool)}
    return Sample(**{**defaults, **fields})


def test_every_sample_gets_a_score_and_what_is_missing_is_said() -> None:
    scores = Brightness().score([sample(), sample(mask=None), sample(edited=torch.full((3, 4, 6), float("nan")))])
    assert scores == [Score(0.5), Score(None, "no mask"), Score(None, "not a finite number")]
    assert Brightness().score([]) == []


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"edited": torch.zeros(4, 6)}, r"\(3, H, W\)"),
        ({"source": torch.zeros(3, 4, 5)}, "source picture has shape"),
        ({"truth": torch.zeros(3, 5, 6)}, "truth picture has shape"),
        ({"mask": torch.zeros(6, 4, dtype=torch.bool)}, "mask has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields: dict, why: str) -> None:
    with pytest.raises(PluginError, match=why):
        Brightness().score([sample(**fields)])


@pytest.mark.parametrize(("value", "reason"), [(None, ""), (float("nan"), ""), (float("inf"), "huge")])
def test_a_score_is_never_silently_undefined(value: float | None, reason: str) -> None:
    with pytest.raises(ValueError, match="score"):
        Score(value, reason)


def test_other_weights_or_settings_are_another_column_and_other_paths_are_not() -> None:
    card = replace(CARD, weights_sha256="aa", settings={"region": "whole", "weights": "/a/file"})
    assert card.id.startswith("bright@")
    assert replace(card, weights_sha256="bb").id != card.id
    assert replace(card, settings={"region": "inside", "weights": "/a/file"}).id != card.id
    assert replace(card, settings={"region": "whole", "weights": "/b/file"}, weights="b").id == card.id
    assert replace(card, packages={"torch": "3"}).id == card.id
    assert card.as_dict()["id"] == card.id
