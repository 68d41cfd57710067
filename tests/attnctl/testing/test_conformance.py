"""The laws catch methods that break them: each is tried on a culprit."""

from __future__ import annotations

import itertools
import unittest
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.errors import AttnctlError
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, Source
from attnctl.result import CoverageRow, NoOpError
from attnctl.sites import Where
from attnctl.testing import MethodConformance
from attnctl.testing.conformance import distance, fingerprint

SELF = Where(kind="self", min_downscale=2)


def culprit(make: Callable[[], list[Controller]], **source: Any) -> MethodConformance:
    class Culprit(EditMethod):
        name = "culprit"

        def plan(self, request: Any, model: Any) -> EditPlan:
            inversion = InversionSpec("ddim") if request.real else None
            return EditPlan(Source(request.source_prompt or "", **source), tuple(make()), inversion)

    class Case(MethodConformance):
        method = Culprit
        steps: ClassVar = 3

    return Case()


def fpe(**fields: Any) -> Controller:
    return Controller(**{"name": "maps", "where": SELF, "attend": Attend(q="source", k="source"), **fields})


def square(call: Any, q: Any, k: Any, v: Any) -> Any:
    side = int(q["self"].shape[1] ** 0.5)
    picture = q["source"].unflatten(1, (side, side))
    return picture.flatten(1, 2), k["source"], v["self"]


def in_float32(call: Any, q: Any, k: Any, v: Any) -> Any:
    return q["source"] @ torch.eye(q["self"].shape[-1]), k["source"], v["self"]


counter = itertools.count(1)

CULPRITS: dict[str, tuple[str, Callable[[], list[Controller]], type[BaseException]]] = {
    "does nothing": ("acts", lambda: [fpe(attend=0.5 * Attend() + 0.5 * Attend())], NoOpError),
    "rolls dice": (
        "repeatable",
        lambda: [Controller("dice", on_step_end=lambda c: c.latents["self"] + torch.randn(4, 8, 8) * 0.01)],
        AssertionError,
    ),
    "counts its runs": (
        "repeatable",
        lambda: [Controller("drift", on_step_end=lambda call: call.latents["self"] * (1 + 0.01 * next(counter)))],
        AssertionError,
    ),
    "thinks pictures are square": ("not_square", lambda: [fpe(attend=None, on_qkv=square)], RuntimeError),
    "looks at its neighbour": (
        "order_of_edits",
        lambda: [fpe(attend=Attend(q="edit[0]", k="source", v="source"))],
        AssertionError,
    ),
    "needs the other half": (
        "without_guidance",
        lambda: [fpe(passes=("uncond",))],
        NoOpError,
    ),
    "makes something of nothing": (
        "equal_prompts",
        lambda: [fpe(attend=Attend(value_map=lambda call: torch.full((call.keys,), 1.1)))],
        AssertionError,
    ),
    "works in float32 only": (
        "bfloat16",
        lambda: [fpe(attend=None, on_qkv=in_float32)],
        RuntimeError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CULPRITS))
def test_a_law_catches_its_culprit(name: str) -> None:
    law, make, fault = CULPRITS[name]
    with pytest.raises(fault):
        getattr(culprit(make), f"test_{law}")()


def test_a_law_abiding_method_passes_the_same_laws() -> None:
    case = culprit(lambda: [fpe()])
    for law in sorted({law for law, _, _ in CULPRITS.values()}):
        getattr(case, f"test_{law}")()


def test_incomplete_coverage_is_caught() -> None:
    case = culprit(lambda: [fpe()])
    result = case.run()
    object.__setattr__(result, "coverage", (CoverageRow("edit[0]", "maps", 11, 2, 22, 21, True),))
    with pytest.raises(AssertionError, match=r"maps of edit\[0\] acted 21/22 times"):
        case.assert_complete(result)


def test_a_law_can_be_switched_off_by_name_with_a_reason() -> None:
    class Case(MethodConformance):
        method = EditMethod
        skipped: ClassVar = {"acts": "for a reason"}

    with pytest.raises(unittest.SkipTest, match="for a reason"):
        Case().test_acts()
    with pytest.raises(TypeError, match="law 'actss' that does not exist; laws are acts, bfloat16"):

        class Wrong(MethodConformance):
            skipped: ClassVar = {"actss": "no such law"}


def test_what_is_left_behind_is_seen(own_tiny_model: Any) -> None:
    before = fingerprint(own_tiny_model.unet)
    handle = own_tiny_model.unet.mid_block.register_forward_hook(lambda *_: None)
    assert fingerprint(own_tiny_model.unet) != before
    handle.remove()
    assert fingerprint(own_tiny_model.unet) == before
    own_tiny_model.unet.set_default_attn_processor()
    assert fingerprint(own_tiny_model.unet) != before


def test_distance_is_relative() -> None:
    assert distance(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])) == 0
    assert distance(torch.tensor([6.0, 8.0]), torch.tensor([3.0, 4.0])) == pytest.approx(1.0)


def test_faults_of_a_method_are_errors_with_advice() -> None:
    with pytest.raises(AttnctlError):
        culprit(lambda: [fpe(where=Where(kind="self", layers=(99,)))]).test_coverage()
