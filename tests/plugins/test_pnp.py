"""Plug-and-Play: the reference code's numbers, what must hold for any of them, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from attnctl.errors import InputError, SelectionError
from attnctl.families.unet import enumerate_sites
from attnctl.method import ModelView
from attnctl.model import Model
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest, PlanRequest
from attnctl.session import EditSession
from attnctl.testing import MethodConformance, tiny_sdxl
from attnctl.testing.conformance import distance
from attnctl_plugins.pnp import NEGATIVE, PlugAndPlay, feature_path, layers_behind

LIMIT = 1e-3  # relative L2; 5e-6 was measured


class TestPlugAndPlay(MethodConformance):
    method = PlugAndPlay
    off: ClassVar = {"feature": 0.0, "attention": 0.0}


# -- the reference code's numbers --------------------------------------------------------------------------------------


def test_real_pictures_are_the_reference_codes(golden: Any) -> None:
    inputs, case = golden.case("pnp")
    request = EditRequest(
        (Edit(inputs["prompts"][0], "pnp", {"negative_prompt": inputs["negative_prompt"]}),),
        x0=case["in.latent0"],
        steps=10,
        guidance=7.5,
        check_reconstruction=False,
    )
    result = golden.session.run(request, record=True)
    for step in range(11):
        assert distance(result["edit[0]"].history[step], case["out.steps"][step, 0]) < LIMIT, step
    assert [(row.sites, row.steps, row.acted) for row in result.coverage] == [(1, 8, 16), (8, 5, 80)]
    assert result.rows == {"inversion": 10, "edit": 8 * 3 + 2 * 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "inversion"),
    [("direct_inversion_pnp", {}, "direct"), ("ddim_pnp", {"misaligned": True}, None)],
)
def test_other_inversions_give_the_reference_codes_numbers(
    golden: Any, name: str, settings: dict, inversion: str | None
) -> None:
    """Only where the cases are there."""
    inputs, case = golden.case(name)
    request = EditRequest(
        (Edit(inputs["prompts"][1], "pnp", {"negative_prompt": NEGATIVE, **settings}),),
        source_prompt=inputs["prompts"][0],
        x0=case["in.latent0"],
        steps=10,
        guidance=7.5,
        inversion=inversion,
        check_reconstruction=False,
    )
    result = golden.session.run(request)
    assert distance(result["edit[0]"].latents[0], case["out.final"][0]) < LIMIT


# -- invariants --------------------------------------------------------------------------------------------------------


def picture(height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1))


def request(*edits: Edit, **changes: Any) -> EditRequest:
    fields = {"x0": picture(), "steps": 5, "check_reconstruction": False, **changes}
    return EditRequest(edits or (Edit("a red dog on the grass", "pnp"),), **fields)


def test_thresholds_of_zero_are_plain_sampling(tiny_session: EditSession) -> None:
    off = Edit("a red dog on the grass", "pnp", {"feature": 0, "attention": 0}, name="off")
    result = tiny_session.run(request(off, Edit("a red dog on the grass", "none", name="plain")))
    assert torch.equal(result["off"].latents, result["plain"].latents)


def test_one_source_row_serves_both_halves_and_is_dropped_when_nobody_reads_it(tiny_session: EditSession) -> None:
    assert tiny_session.run(request()).rows == {"inversion": 5, "edit": 4 * 3 + 1 * 2}


def test_with_everything_injected_the_prompt_still_matters(tiny_session: EditSession) -> None:
    full = {"feature": 1, "attention": 1}
    edits = [Edit(prompt, "pnp", full) for prompt in ("a red dog on the grass", "a blue car in the snow")]
    result = tiny_session.run(request(*edits))
    assert distance(result["edit[0]"].latents, result["edit[1]"].latents) > 1e-3


def test_equal_texts_and_latents_make_all_rows_equal(tiny_session: EditSession) -> None:
    """Negative prompt = target prompt = source prompt: guidance then gives what the source's row gives."""
    prompt = "a red cat on the grass"
    edit = Edit(prompt, "pnp", {"feature": 1, "attention": 1})
    result = tiny_session.run(
        EditRequest((edit,), source_prompt=prompt, negative_prompt=prompt, steps=5, allow_no_op=True)
    )
    assert distance(result["edit[0]"].latents, result.source.latents) < 1e-5


def test_its_own_step_lists(tiny_session: EditSession) -> None:
    lists = Edit("a red dog", "pnp", {"feature_steps": (0, 1, 2, 3), "attention_steps": (0, 1)}, name="lists")
    result = tiny_session.run(request(lists, Edit("a red dog", "pnp", name="fractions")))
    assert torch.equal(result["lists"].latents, result["fractions"].latents)


def test_negative_prompt_of_its_own(tiny_session: EditSession) -> None:
    own = Edit("a red dog", "pnp", {"negative_prompt": "a small car"}, name="own")
    result = tiny_session.run(request(own, Edit("a red dog", "pnp", name="runs")))
    assert distance(result["own"].latents, result["runs"].latents) > 1e-3
    shared = tiny_session.run(request(Edit("a red dog", "pnp"), negative_prompt="a small car"))
    assert distance(shared["edit[0]"].latents, result["own"].latents) < 1e-4


def test_finer_inversion(tiny_session: EditSession) -> None:
    fine = Edit("a red dog", "pnp", {"inversion_steps": 20}, name="fine")
    result = tiny_session.run(request(fine, Edit("a red dog", "pnp", name="coarse")))
    assert result.rows["inversion"] == 25
    assert distance(result["fine"].latents, result["coarse"].latents) > 1e-3


def test_bfloat16_two_lanes_not_square() -> None:
    from attnctl.testing import tiny_model

    session = EditSession(tiny_model(dtype=torch.bfloat16))
    result = session.run(request(Edit("a red dog", "pnp"), Edit("a blue car", "pnp")))
    assert all(row.acted == row.expected for row in result.coverage)
    assert all(torch.isfinite(lane.latents).all() and lane.latents.dtype == torch.bfloat16 for lane in result.lanes)


# -- where it acts -----------------------------------------------------------------------------------------------------


def test_sites_follow_the_structure(shared_tiny_model: Model) -> None:
    sd, sdxl = shared_tiny_model.sites, enumerate_sites(tiny_sdxl().unet)
    assert feature_path(sd) == "up_blocks.1.resnets.1"
    assert layers_behind(sd, "up_blocks.1.resnets.1") == tuple(range(8, 16))
    assert feature_path(sdxl) == "up_blocks.0.resnets.1"
    behind = layers_behind(sdxl, "up_blocks.0.resnets.1")
    decoder = [s.layer for s in sdxl if s.kind == "self" and s.block == "up"]
    assert behind == tuple(decoder[3:])  # but for the three blocks of the transformer before it


def view(model: Model) -> ModelView:
    return ModelView(model.sites, (8, 8), model.text_length, model.pipe.tokenizer)


PLAN = PlanRequest("a red dog", None, real=True)


def test_a_plan_of_fifty_steps_is_the_papers(shared_tiny_model: Model) -> None:
    plan = PlugAndPlay().plan(PLAN, view(shared_tiny_model))
    feature, maps = plan.controllers
    assert (feature.when.indices(50), maps.when.indices(50)) == (tuple(range(40)), tuple(range(25)))
    assert feature.passes == maps.passes == ("uncond", "cond")
    assert str(maps.attend) == "A[source, source] v[self]"
    assert (plan.source.prompt, plan.source.negative_prompt, plan.source.pin) == ("", "", "start")


def test_presets(shared_tiny_model: Model) -> None:
    registry = Registry.load()
    paper = registry.make_method("pnp", {}, "paper").plan(PLAN, view(shared_tiny_model))
    assert paper.inversion is not None
    assert (paper.inversion.name, paper.inversion.options) == ("ddim", (("steps", 999),))
    assert paper.negative_prompt == NEGATIVE
    told = replace(PLAN, source_prompt="a red cat")
    baseline = registry.make_method("pnp", {}, "pie-bench-ddim").plan(told, view(shared_tiny_model))
    assert baseline.inversion is not None
    assert (baseline.inversion.name, baseline.inversion.prompt) == ("ddim-replayed", "a red cat")
    assert baseline.source.prompt == ""  # the source stays unconditional, whatever it was inverted with


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_feature_that_does_not_exist_is_refused(tiny_session: EditSession) -> None:
    with pytest.raises(SelectionError, match=r"up_blocks\.9"):
        tiny_session.plan(request(Edit("a dog", "pnp", {"feature_path": "up_blocks.9.resnets.1"})))


def test_inversion_steps_belong_to_ddim(tiny_session: EditSession) -> None:
    with pytest.raises(InputError, match="inversion_steps"):
        tiny_session.plan(request(Edit("a dog", "pnp", {"inversion_steps": 999}), inversion="direct"))


@pytest.mark.parametrize(
    "settings", [{"feature": 1.2}, {"attention": -0.1}, {"inversion_steps": 0}, {"layers": ()}, {"no_such": 1}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match="pnp"):
        Registry.load().make_method("pnp", settings, None)
