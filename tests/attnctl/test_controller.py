"""Controllers: one selector, one window, one action."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.attend import Attend
from attnctl.controller import Controller, Observation
from attnctl.errors import PluginError
from attnctl.sites import Where
from attnctl.steps import Step

SELF, FEATURE = Where(kind="self"), Where(kind="feature")
FIRST, SECOND = Step(0, 2, 501), Step(1, 2, 1)


def act(*_: Any) -> Any:
    raise AssertionError("building a controller runs no callback")


OBSERVATION = Observation(torch.ones(4, 1), act, "source")


@pytest.mark.parametrize(
    ("fields", "action"),
    [
        ({"where": SELF, "attend": Attend()}, "attend"),
        ({"where": SELF, "on_qkv": act}, "on_qkv"),
        ({"where": SELF, "on_probs": act}, "on_probs"),
        ({"where": FEATURE, "on_feature": act}, "on_feature"),
        ({"on_step_start": act}, "on_step_start"),
        ({"on_guidance": act}, "on_guidance"),
        ({"on_step_end": act}, "on_step_end"),
        ({"where": SELF, "observe": OBSERVATION}, "observe"),
    ],
)
def test_every_action_alone_is_allowed(fields: dict[str, Any], action: str) -> None:
    controller = Controller("c", **fields)
    assert controller.action == action
    assert controller.is_step_action == ("where" not in fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has 0 actions"),
        ({"where": SELF}, "has 0 actions"),
        ({"where": SELF, "attend": Attend(), "on_qkv": act}, "has 2 actions.*attend, on_qkv"),
        ({"attend": Attend()}, "`where`"),
        ({"where": SELF, "on_step_end": act}, "`where`"),
        ({"where": SELF, "on_feature": act}, "self sites"),
        ({"where": FEATURE, "attend": Attend()}, "feature sites"),
        ({"where": FEATURE, "observe": OBSERVATION}, "feature sites"),
        ({"where": SELF, "attend": Attend(), "passes": ()}, "halves"),
        ({"where": SELF, "attend": Attend(), "passes": ("both",)}, "halves"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        Controller("mine", **fields)
    assert "'mine'" in str(caught.value)
    assert caught.value.hint


def test_an_expression_may_depend_on_the_step() -> None:
    def early(step: Step) -> Attend | None:
        """Source maps in the first step."""
        return Attend(q="source", k="source") if step.index == 0 else None

    controller = Controller("c", where=SELF, attend=early)
    assert str(controller.expression(FIRST)) == "A[source, source] v[self]"
    assert controller.expression(SECOND) is None
    assert controller.reads(FIRST) == {"self", "source"}
    assert controller.reads(SECOND) == frozenset()
    assert controller.describe() == "per step: Source maps in the first step."


def test_it_says_which_lanes_it_reads() -> None:
    assert Controller("c", where=SELF, attend=Attend()).reads(FIRST) == {"self"}
    assert Controller("c", where=SELF, on_qkv=act).reads(FIRST) == {"self", "source"}
    assert Controller("c", where=SELF, on_qkv=act, lanes=()).reads(FIRST) == {"self"}
    assert Controller("c", where=SELF, observe=OBSERVATION).reads(FIRST) == {"self", "source"}
    assert Controller("c", where=SELF, observe=Observation(torch.ones(4, 1), act)).reads(FIRST) == {"self"}


def test_it_describes_itself_in_one_line() -> None:
    assert Controller("c", where=SELF, attend=Attend()).describe() == "out = A[self, self] v[self]"
    assert Controller("c", where=SELF, on_qkv=act).describe() == "on_qkv"
