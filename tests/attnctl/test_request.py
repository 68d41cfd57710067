"""What a run is asked to do."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import model_validator

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.errors import InputError
from attnctl.example import Example
from attnctl.hookspecs import hookimpl
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Source
from attnctl.model import Model
from attnctl.modifier import Modifier
from attnctl.plugin import Preset
from attnctl.registry import Registry
from attnctl.request import GUIDANCE, STEPS, Edit, EditRequest, PlanRequest, Sampling
from attnctl.session import EditSession
from attnctl.sites import Where
from attnctl.steps import When

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
        ({"scheduler": "eular"}, "unknown scheduler 'eular'"),
        ({"size": (0, 64)}, r"size \(0, 64\) is not allowed"),
        ({"negative_prompt": "\udcff"}, "not UTF-8"),
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


def test_a_request_is_a_sampling_and_gives_it_alone() -> None:
    made = request(steps=4, guidance=3.0, seed=1, size=(64, 32), scheduler="euler", negative_prompt="fog", max_rows=2)
    alone = Sampling(steps=4, guidance=3.0, seed=1, size=(64, 32), scheduler="euler", negative_prompt="fog", max_rows=2)
    assert made.sampling == alone
    assert made.plan_request(0).sampling == alone
    assert replace(made, steps=5).sampling == replace(alone, steps=5)
    with pytest.raises(FrozenInstanceError):
        alone.steps = 5  # type: ignore[misc]


def test_requests_with_the_same_sampling_are_not_equal() -> None:
    """They hold tensors, which have no one truth."""
    made = request(x_T=torch.zeros(1, 4, 8, 8))
    assert made == made
    assert made != request(x_T=torch.zeros(1, 4, 8, 8))
    assert len({made, replace(made)}) == 2
    assert made.plan_request(0) != made.plan_request(0)


def test_what_nobody_chose_is_told_from_the_same_number_chosen() -> None:
    assert (STEPS, GUIDANCE) == (50, 7.5)
    assert request().open == ("steps", "guidance")
    assert request(steps=50, guidance=7.5).open == ()
    left = replace(request(guidance=2.0), seed=3)
    assert pickle.loads(pickle.dumps(left.sampling)).open == left.plan_request(0).open == ("steps",)
    assert f"{request().steps} {request().guidance}" == "50 7.5"


def test_a_model_fills_in_what_nobody_chose() -> None:
    suits = Example(seed=9, steps=12, guidance=3.0)
    filled = suits.fill(request(guidance=2.0))
    assert isinstance(filled, EditRequest)
    assert (filled.steps, filled.guidance, filled.seed, filled.open) == (12, 2.0, 0, ())
    assert suits.fill(Sampling(steps=50)).steps == 50
    plain = Example().fill(Sampling())
    assert (plain.steps, plain.guidance, plain.open) == (50, 7.5, ())
    assert type(plain.steps) is int
    assert type(plain.guidance) is float


def test_sampling_is_read_off_options() -> None:
    """What they lack, or leave open with None, stays open."""
    options = SimpleNamespace(steps=None, guidance=1.0, seed=None, size=(8, 8), scheduler="lms", model="micro")
    found = Sampling.of(options, seed=4)
    assert found == Sampling(guidance=1.0, seed=4, size=(8, 8), scheduler="lms")
    assert found.open == ("steps",)
    with pytest.raises(InputError, match="steps must be at least 1"):
        Sampling.of(SimpleNamespace(steps=0))


def counting_registry(seen: list[str]) -> Registry:
    class Config(MethodConfig):
        share: float = 0.5

        @model_validator(mode="after")
        def _count(self) -> Config:
            seen.append("method")
            return self

    class Counting(EditMethod):
        name = "counting"
        presets: ClassVar = {"half": Preset({"share": 0.5}, "half of it")}

        def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
            keep = Controller(
                "maps",
                where=Where(kind="self"),
                when=When(0, self.config.share),
                attend=Attend("source", "source", "self"),
            )
            return EditPlan(Source(request.source_prompt or ""), (keep,))

    Counting.Config = Config  # type: ignore[misc, assignment]

    class Same(Modifier):
        name = "same"

        def modify(self, plan: EditPlan, request: PlanRequest, model: ModelView) -> EditPlan:
            return plan

    class SameConfig(MethodConfig):
        strength: float = 1.0

        @model_validator(mode="after")
        def _count(self) -> SameConfig:
            seen.append("modifier")
            return self

    Same.Config = SameConfig  # type: ignore[misc, assignment]
    registry = Registry()
    brought = SimpleNamespace(attnctl_methods=hookimpl(lambda: [Counting]), attnctl_modifiers=hookimpl(lambda: [Same]))
    brought.attnctl_methods.__name__, brought.attnctl_modifiers.__name__ = "attnctl_methods", "attnctl_modifiers"
    assert not registry.register(brought, "counting").error
    return registry


def test_settings_of_what_is_built_are_not_validated_again(shared_tiny_model: Model) -> None:
    """A run by names and one with built parts draw and record the same; only the first validates on the way."""
    seen: list[str] = []
    registry = counting_registry(seen)
    by_name = Edit("a dog", "counting", {"share": "0.6"}, "half", modifiers={"same": {"strength": 2}})
    method = registry.make_method("counting", {"share": "0.6"}, "half")
    built = Edit("a dog", method, modifiers={"same": registry.make_modifier("same", {"strength": 2})})
    assert sorted(seen) == ["method", "modifier"]
    session, few = EditSession(shared_tiny_model, registry), {"steps": 2, "size": (64, 64)}
    after = session.run(request(edits=(built, replace(built, method=method.again(), name="second")), **few))
    assert sorted(seen) == ["method", "modifier"]
    before = session.run(request(edits=(by_name, replace(by_name, name="second")), **few))
    assert len(seen) > 2
    for one, other in zip(before.lanes, after.lanes, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert (one.method, one.settings, one.preset, one.modifiers) == (
            other.method, other.settings, other.preset, other.modifiers,
        )  # fmt: skip
    assert (after.lanes[1].preset, after.lanes[1].settings) == ("half", {"share": 0.6})
    assert after.lanes[1].modifiers == {"same": {"strength": 2.0}}


def test_a_built_method_takes_no_settings_beside_its_own() -> None:
    method = counting_registry([]).make_method("counting")
    assert Edit("a dog", method).method_name == "counting"
    for late in ({"settings": {"share": 0.1}}, {"preset": "half"}):
        with pytest.raises(InputError, match="counting is built already"):
            Edit("a dog", method, **late)


def test_what_is_built_must_be_of_its_kind() -> None:
    registry = counting_registry([])
    modifier = registry.make_modifier("same", {})
    for wrong in (modifier, type(registry.make_method("counting"))):
        with pytest.raises(InputError, match="instance of EditMethod"):
            registry.make_method(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="instance of Modifier"):
        registry.make_modifier("same", registry.make_method("counting"))
