"""Names for batch rows."""

from __future__ import annotations

import pytest
import torch

from attnctl.branches import Branches, LaneTensors, Row, resolve_lane
from attnctl.errors import SelectionError

SOURCE_U, SOURCE, EDIT_U, EDIT = (
    Row("source", "uncond"),
    Row("source", "cond"),
    Row("edit[0]", "uncond"),
    Row("edit[0]", "cond"),
)


def test_rows_are_found_by_lane_and_half() -> None:
    branches = Branches((EDIT_U, SOURCE, EDIT))
    assert len(branches) == 3
    assert branches.index("edit[0]", "uncond") == 0
    assert branches.index("source", "cond") == 1
    assert EDIT in branches
    assert SOURCE_U not in branches


def test_a_row_that_is_served_by_another_counts_as_there() -> None:
    branches = Branches((EDIT_U, SOURCE, EDIT), {SOURCE_U: SOURCE})
    assert branches.index("source", "uncond") == branches.index("source", "cond") == 1
    assert SOURCE_U in branches
    assert len(branches) == 3


def test_a_row_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(SelectionError, match=r"'source/uncond'.*source/cond.*edit"):
        Branches((SOURCE, EDIT)).index("source", "uncond")


def test_self_and_source_stand_for_real_lanes() -> None:
    assert resolve_lane("self", "edit[1]", "source[2]") == "edit[1]"
    assert resolve_lane("source", "edit[1]", "source[2]") == "source[2]"
    assert resolve_lane("edit[0]", "edit[1]", "source[2]") == "edit[0]"


def test_only_what_is_asked_for_is_fetched() -> None:
    fetched: list[str] = []

    def get(lane: str) -> torch.Tensor:
        fetched.append(lane)
        return torch.zeros(1)

    views = LaneTensors("edit[0]", "source", get)
    assert fetched == []
    views["self"], views["source"], views["edit[7]"]
    assert fetched == ["edit[0]", "source", "edit[7]"]
