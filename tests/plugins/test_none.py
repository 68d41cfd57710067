"""The uncontrolled lane."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from attnctl.errors import InputError
from attnctl.method import ModelView
from attnctl.request import Edit, EditRequest, PlanRequest
from attnctl.testing import MethodConformance
from attnctl_plugins.none import Uncontrolled


class TestUncontrolled(MethodConformance):
    method = Uncontrolled
    off: ClassVar = {}
    skipped: ClassVar = {"acts": "it is there to do nothing"}

    def test_its_lane_does_not_depend_on_the_source(self) -> None:
        one, other = self.run(), self.run(source_prompt="a boat on the sea")
        assert not torch.equal(one.source.latents, other.source.latents)
        assert torch.equal(one["edit[0]"].latents, other["edit[0]"].latents)


VIEW = ModelView((), (8, 8), 77, None)


def plan(**fields: object):
    defaults = {"prompt": "a dog", "source_prompt": None, "negative_prompt": "", "real": True}
    defaults |= {"steps": 5, "guidance": 7.5}
    return Uncontrolled().plan(PlanRequest(**{**defaults, **fields}), VIEW)


def test_a_real_picture_is_inverted_under_its_own_prompt() -> None:
    assert plan().inversion.prompt == ""
    assert plan(source_prompt="a cat").inversion.prompt == "a cat"
    assert plan().source.pin == "start"
    assert plan(inversion="other").inversion.name == "other"


def test_a_generated_source_needs_a_prompt() -> None:
    assert plan(real=False, source_prompt="a cat").inversion is None
    with pytest.raises(InputError, match="source prompt"):
        plan(real=False)
    with pytest.raises(InputError, match="source prompt"):
        EditRequest((Edit("a dog", "none"),))
