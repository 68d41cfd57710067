"""What a run is asked to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.errors import InputError
from attnctl.request import Edit, EditRequest

EDIT = Edit("a dog", "fpe")
PICTURE = torch.zeros(3, 64, 64)


def request(**fields: Any) -> EditRequest:
    return EditRequest(**{"edits": (EDIT,), "source_prompt": "a cat", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"edits": ()}, "at least one edit"),
        ({"edits": (EDIT, Edit("  ", "fpe"))}, "target prompt is empty"),
        ({"source_prompt": None}, "needs a source prompt"),
        ({"source_prompt": " \n"}, "needs a source prompt"),
        ({"guidance": 0.99}, "at least 1, found 0.99"),
        ({"guidance": float("nan")}, "at least 1, found nan"),
        ({"guidance": float("inf")}, "at least 1, found inf"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seed": -1}, "seed must lie between"),
        ({"seed": 2**63}, "seed must lie between"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"pixels": PICTURE, "scheduler": "euler"}, "inverted with DDIM.*'euler'"),
        ({"x0": torch.zeros(1, 4, 8, 8), "scheduler": "heun"}, "inverted with DDIM"),
        ({"pixels": PICTURE, "x_T": torch.zeros(1, 4, 8, 8)}, "noise of its own"),
        ({"inversion_settings": {"a": 1}}, "settings for an inversion, but none is named"),
    ],
)
def test_values_out_of_range_are_refused_with_advice(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        request(**fields)
    assert caught.value.hint
    assert "\n" not in f"{caught.value}{caught.value.hint}"


def test_a_real_picture_needs_no_prompt() -> None:
    assert request(source_prompt=None, pixels=PICTURE).real
    assert request(source_prompt=None, x0=torch.zeros(1, 4, 8, 8)).real
    assert not request().real


def test_lanes_are_called_by_place_unless_they_have_names() -> None:
    made = request(edits=(EDIT, Edit("a dog", "none", name="plain"), EDIT))
    assert [made.lane_name(i) for i in range(3)] == ["edit[0]", "plain", "edit[2]"]


def test_a_method_sees_its_own_lane_and_the_shared_settings() -> None:
    mask = torch.ones(8, 8, dtype=torch.bool)
    made = request(edits=(EDIT, Edit("a fish", "none")), steps=7, guidance=2.5, negative_prompt="fog", inversion="ddim")
    seen = made.plan_request(1, mask)
    assert (seen.prompt, seen.source_prompt, seen.negative_prompt) == ("a fish", "a cat", "fog")
    assert (seen.real, seen.steps, seen.guidance, seen.inversion) == (False, 7, 2.5, "ddim")
    assert seen.mask is mask


@pytest.mark.parametrize("value", [1, 1.0, 7.5, 1000])
def test_guidance_of_1_and_more_is_taken(value: float) -> None:
    assert request(guidance=value).guidance == value
