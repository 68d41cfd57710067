"""Methods, inversions and modifiers put together: who decides what, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from attnctl.controller import Controller, GuidanceCall
from attnctl.errors import InputError, PluginError
from attnctl.inversion import Inversion, InversionCall, InversionSpec, Trajectory
from attnctl.method import EditMethod, EditPlan, MethodConfig, ModelView, Preset, Source
from attnctl.model import Model
from attnctl.modifier import Modifier
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest, PlanRequest
from attnctl.session import EditSession

X0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Still(Inversion):
    """Every level is the picture."""

    name = "still"
    pin = "end"
    presets: ClassVar = {"loud": Preset({"source": 4.0, "edit": 9.0}, "For this test.")}

    class Config(MethodConfig):
        source: float | None = None
        edit: float | None = None

    def source_guidance(self, guidance: float) -> float:
        return self.config.source or guidance

    def edit_guidance(self, guidance: float) -> float:
        return self.config.edit or guidance

    def invert(self, call: InversionCall) -> Trajectory:
        return Trajectory(call.x0.expand(len(call.grid.timesteps) + 1, -1, -1, -1), call.text.prompt)


class Taking(Still):
    name = "taking"
    replaces_uncond = True


class Follows(EditMethod):
    name = "follows"
    no_op = True

    class Config(MethodConfig):
        guidance: float | None = None
        negative: str | None = None
        only: bool = False

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        name = "still" if self.config.only else request.inversion or "still"
        return EditPlan(
            Source(""),
            inversion=InversionSpec(name),
            guidance=self.config.guidance,
            negative_prompt=self.config.negative,
        )


class Added(Modifier):
    """Guides by a scale of its own, and notes which lanes it saw."""

    name = "added"

    class Config(MethodConfig):
        scale: float = 1.0
        shape: bool = True
        reads: str = "source"

    seen: ClassVar[list[Any]] = []

    def modify(self, plan: EditPlan, request: PlanRequest, model: ModelView) -> EditPlan:
        def guide(call: GuidanceCall) -> torch.Tensor:
            uncond, cond = call.uncond["self"], call.cond["self"]
            self.seen.append((call.step.index, call.guidance, call.cond[self.config.reads], call.plain))
            return uncond + self.config.scale * (cond - uncond) if self.config.shape else cond[:1]

        return replace(plan, controllers=(Controller("added", on_guidance=guide), *plan.controllers))


@pytest.fixture
def session(shared_tiny_model: Model) -> EditSession:
    registry = Registry.load()
    registry.classes["inversion"] |= {"still": Still, "taking": Taking}
    registry.classes["method"]["follows"] = Follows
    registry.classes["modifier"] |= {"added": Added}
    Added.seen.clear()
    return EditSession(shared_tiny_model, registry)


def request(*, method: dict[str, Any] | None = None, modifiers: Any = None, **fields: Any) -> EditRequest:
    edit = Edit("a dog", "follows", method or {}, modifiers=modifiers or {})
    return EditRequest((edit,), **{"x0": X0, "steps": 2, "check_reconstruction": False, **fields})


def scales(session: EditSession, **fields: Any) -> tuple[float, float]:
    plan = session.plan(request(**fields))
    return plan.lanes["source"].guidance.scale, plan.lanes["edit[0]"].guidance.scale


def test_who_decides_guidance(session: EditSession) -> None:
    """The method, else the inversion, else the run."""
    own = {"inversion": "still", "inversion_settings": {"source": 3, "edit": 11}}
    assert scales(session) == (7.5, 7.5)
    assert scales(session, **own) == (3, 11)
    assert scales(session, method={"guidance": 2}, **own) == (3, 2)
    assert scales(session, inversion="still", inversion_settings={"preset": "loud", "edit": 5}) == (4, 5)
    notes = session.plan(request(**own)).edits[0].plan.notes
    assert "still guides sources with 3 and edits with 11, not with 7.5" in notes


def test_settings_are_part_of_the_plan_and_of_the_report(session: EditSession) -> None:
    run = session.run(request(inversion="still", inversion_settings={"edit": "11"}))
    assert run.inversions[0].settings == {"source": None, "edit": 11.0}
    spec = InversionSpec("still", options=(("b", 2),)).with_settings({"a": [1, 2], "b": 3})
    assert spec.options == (("a", (1, 2)), ("b", 3))
    assert hash(spec) == hash(InversionSpec("still", options=(("a", (1, 2)), ("b", 3))))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inversion_settings": {"edit": 2}}, "settings for an inversion, but none is named"),
        (
            {"inversion": "taking", "method": {"only": True}},
            "follows works with the inversion still alone, not with taking",
        ),
        ({"inversion": "taking", "negative_prompt": "ugly"}, "so --negative-prompt would have no effect"),
        (
            {"inversion": "taking", "method": {"negative": "ugly"}},
            "the negative prompt of follows would have no effect",
        ),
        ({"inversion": "taking", "guidance": 1.0}, "which guidance 1 never reads"),
        ({"inversion": "taking", "method": {"guidance": 1.0}}, "which guidance 1 never reads"),
        ({"modifiers": {"addet": {}}}, "unknown modifier 'addet': known are added"),
        ({"modifiers": {"added": {"scal": 1}}}, "unknown setting of added 'scal': known are scale"),
    ],
)
def test_what_cannot_work_is_refused(session: EditSession, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        session.plan(request(**fields))


def test_a_method_that_keeps_its_inversion_does_not_hold_up_the_others(session: EditSession) -> None:
    keeps, takes = Edit("a dog", "follows", {"only": True}, name="keeps"), Edit("a dog", "none", name="takes")
    given = request(inversion="ddim", inversion_settings={"steps": 2})
    plan = session.plan(replace(given, edits=(keeps, takes)))
    assert {spec.name for spec in plan.inversions.values()} == {"still", "ddim"}
    assert plan.edits[0].plan.notes == ("follows works with the inversion still alone, not with ddim",)
    assert not any("alone" in note for note in plan.edits[1].plan.notes)


def test_a_modifier_may_guide_and_read_other_lanes(session: EditSession) -> None:
    own = session.run(request(modifiers={"added": {"scale": 3.0}}), record=True)
    plain = session.run(request(guidance=3.0), record=True)
    assert torch.allclose(own["edit[0]"].latents, plain["edit[0]"].latents, atol=1e-5)
    assert [(step, g) for step, g, _, _ in Added.seen] == [(0, 7.5), (1, 7.5)]
    assert own.rows["edit"] == plain.rows["edit"] + 2  # the pinned source, one row for both of its equal halves
    (row,) = own.coverage
    assert (row.controller, row.acted, row.expected, row.changed) == ("added", 2, 2, True)
    assert own["edit[0]"].modifiers == {"added": {"scale": 3.0, "shape": True, "reads": "source"}}


def test_what_a_modifier_does_wrong_is_named(session: EditSession) -> None:
    with pytest.raises(PluginError, match=r"'edit\[0\]: added' gave a prediction of shape \(1, 8, 8\) in step 0"):
        session.run(request(modifiers={"added": {"shape": False}}))
