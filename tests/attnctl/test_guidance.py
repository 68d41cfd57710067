"""Guidance as a value."""

from __future__ import annotations

import torch

from attnctl.guidance import Guidance


def test_two_halves_are_combined_as_the_formula_says() -> None:
    uncond, cond = torch.randn(2, 1, 4, 3, 3).unbind()
    guided = Guidance(3.0)
    assert guided.halves == ("uncond", "cond")
    assert torch.equal(guided.combine({"uncond": uncond, "cond": cond}), uncond + 3.0 * (cond - uncond))


def test_scale_one_has_the_conditional_half_alone() -> None:
    cond = torch.randn(1, 4, 3, 3)
    told = Guidance(told=3.5)
    assert told.halves == ("cond",)
    assert told.combine({"cond": cond}) is cond
