"""Which rows a denoiser call needs: functions of lanes, controllers and a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attnctl.attend import Attend
from attnctl.branches import Row
from attnctl.controller import Controller
from attnctl.engine.operation import Bound
from attnctl.engine.planning import PlannedLane
from attnctl.engine.rows import Rows
from attnctl.guidance import Guidance
from attnctl.sites import Site, Where
from attnctl.steps import Step

SITE = Site("up_blocks.1.attentions.0.transformer_blocks.0.attn1", "self", "up", 3, 2, 4)
STEP = Step(0, 4, 901)
SOURCE = PlannedLane("source", "a cat", "", Guidance(7.5))
EDIT = PlannedLane("edit", "a dog", "", Guidance(7.5), edit=0)


def swap(**more: Any) -> Bound:
    controller = Controller("maps", Where("self"), attend=Attend("source", "source", "self"), **more)
    return Bound(controller, "edit", "source", (SITE,), (0, 1, 2, 3), 4)


def rows(*lanes: PlannedLane, bounds: Any = (), keep: bool = False) -> Rows:
    return Rows.of({lane.name: lane for lane in lanes}, list(bounds), keep)


def names(found: list[Row]) -> list[str]:
    return [f"{row.lane}/{row.half}" for row in found]


def test_free_lanes_need_all_their_halves() -> None:
    assert names(rows(SOURCE, EDIT).needed(STEP)) == ["source/uncond", "edit/uncond", "source/cond", "edit/cond"]
    one_half = replace(EDIT, guidance=Guidance(told=3.5))
    assert names(rows(SOURCE, one_half).needed(STEP)) == ["source/uncond", "source/cond", "edit/cond"]


def test_a_pinned_source_is_run_where_it_is_read_and_nowhere_else() -> None:
    pinned = replace(SOURCE, pin="start")
    assert names(rows(pinned, EDIT).needed(STEP)) == ["edit/uncond", "edit/cond"]
    assert names(rows(pinned, EDIT, bounds=[swap()]).needed(STEP)) == ["edit/uncond", "source/cond", "edit/cond"]
    assert len(rows(pinned, EDIT, keep=True).needed(STEP)) == 4


def test_one_row_serves_two_halves_of_one_text() -> None:
    both = swap(passes=("uncond", "cond"))
    made = rows(replace(SOURCE, trivial=True), EDIT, bounds=[both])
    assert names(made.needed(STEP)) == ["edit/uncond", "source/cond", "edit/cond"]
    assert made.count([STEP, replace(STEP, index=1)]) == 6


def test_a_prediction_of_one_half_reads_other_lanes_in_that_half() -> None:
    bound = Bound(Controller("own", on_prediction=lambda call: call.plain), "edit", "source", (), (0,), 1)
    pinned, one_half = replace(SOURCE, pin="start"), replace(EDIT, guidance=Guidance())
    assert names(rows(pinned, one_half, bounds=[bound]).needed(STEP)) == ["source/cond", "edit/cond"]
    assert names(rows(pinned, EDIT, bounds=[bound]).needed(STEP)) == [
        "source/uncond", "edit/uncond", "source/cond", "edit/cond"
    ]  # fmt: skip


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_chunks_keep_rows_with_what_they_read(most: int) -> None:
    made = rows(SOURCE, EDIT, bounds=[swap()])
    needed = made.needed(STEP)
    chunks = made.chunks(STEP, needed, most)
    assert {row for chunk in chunks for row in chunk} == set(needed)
    for chunk in chunks:
        assert len(chunk) <= max(most, 2)
        assert Row("edit", "cond") not in chunk or Row("source", "cond") in chunk
    assert made.chunks(STEP, needed, None) == [needed]
