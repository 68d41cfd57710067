"""MasaCtrl: the reference code's numbers, what must hold for any of them, and what it refuses."""

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
from attnctl_plugins.masactrl import MasaCtrl
from attnctl_plugins.regions import meet

LIMIT = 1e-3  # relative L2; 7e-6 was measured
START: dict[str, Any] = {"start": 0.2}  # step 1 of the laws' 5


class TestMasaCtrl(MethodConformance):
    method = MasaCtrl
    settings: ClassVar = START
    off: ClassVar = {"start": 1.0}


@pytest.mark.slow
class TestUnion(MethodConformance):
    method = MasaCtrl
    settings: ClassVar = {**START, "union": True}
    off: ClassVar = {"start": 1.0}


@pytest.mark.slow
class TestByWords(MethodConformance):
    method = MasaCtrl
    settings: ClassVar = {**START, "tokens": ((6,), (6,)), "threshold": 0.5}
    off: ClassVar = {"start": 1.0}
    skipped: ClassVar = {
        "equal_prompts": "regions part the edit's attention, and the source's stays whole",
        "real_picture": "words need a source prompt, which this law does not give",
    }


@pytest.mark.parametrize(
    ("variant", "law"),
    [(TestUnion, "equal_prompts"), (TestUnion, "off"), (TestByWords, "split"), (TestByWords, "bfloat16")],
)
def test_variants_obey_the_laws_that_they_could_break(variant: type[MethodConformance], law: str) -> None:
    """The slow tests hold the others."""
    getattr(variant(), f"test_{law}")()


# -- the reference code's numbers --------------------------------------------------------------------------------------


def test_generated_pictures_are_the_reference_codes(golden: Any) -> None:
    inputs, case = golden.case("masactrl_generated")
    source, target = inputs["prompts"]
    settings = {"start_step": inputs["hyper"]["start_step"], "start_layer": inputs["hyper"]["start_layer"]}
    request = EditRequest(
        (Edit(target, "masactrl", settings),), source_prompt=source, x_T=case["in.x_T"], steps=10, guidance=7.5
    )
    result = golden.session.run(request, record=True)
    for i, lane in enumerate(("source", "edit[0]")):
        for step in range(11):
            assert distance(result[lane].history[step], case["out.steps"][step, i]) < LIMIT, (lane, step)
    (row,) = result.coverage
    assert (row.acted, row.expected, row.sites, row.steps) == (96, 96, 6, 8)


@pytest.mark.slow
def test_direct_inversion_gives_the_reference_codes_numbers(golden: Any) -> None:
    """Only where the case is there; the source is conditioned on the empty text."""
    inputs, case = golden.case("direct_inversion_masactrl")
    request = EditRequest(
        (Edit(inputs["prompts"][1], "masactrl", {"start_step": 2, "start_layer": 10}),),
        x0=case["in.latent0"],
        steps=10,
        guidance=7.5,
        inversion="direct",
    )
    result = golden.session.run(request)
    assert distance(result["edit[0]"].latents[0], case["out.final"][1]) < LIMIT


# -- invariants --------------------------------------------------------------------------------------------------------


def request(*edits: Edit, **changes: Any) -> EditRequest:
    fields = {"source_prompt": "a red cat on the grass", "steps": 5, **changes}
    return EditRequest(edits or (Edit("a red dog on the grass", "masactrl", START),), **fields)


def test_a_mask_of_everything_is_no_mask(tiny_session: EditSession) -> None:
    plain = tiny_session.run(request())
    masked = tiny_session.run(request(mask=torch.ones(8, 8, dtype=torch.bool)))
    assert distance(masked["edit[0]"].latents, plain["edit[0]"].latents) < 1e-5


def test_a_mask_parts_objects_from_backgrounds(tiny_session: EditSession) -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:, :5] = True
    plain = tiny_session.run(request(size=(64, 96)))
    masked = tiny_session.run(request(size=(64, 96), mask=mask))
    inverse = tiny_session.run(request(size=(64, 96), mask=~mask))
    assert distance(masked["edit[0]"].latents, plain["edit[0]"].latents) > 1e-3
    assert torch.equal(masked["edit[0]"].latents, inverse["edit[0]"].latents)  # who may see whom is the same


def test_words_are_found_in_both_prompts(tiny_session: EditSession) -> None:
    by_words = Edit("a red dog on the grass", "masactrl", {**START, "words": "cat > dog"}, name="words")
    by_tokens = Edit("a red dog on the grass", "masactrl", {**START, "tokens": ((3,), (3,))}, name="tokens")
    result = tiny_session.run(request(by_words, by_tokens))
    assert torch.equal(result["words"].latents, result["tokens"].latents)


def test_words_on_a_real_picture(tiny_session: EditSession) -> None:
    x0 = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    edit = Edit("a red dog on the grass", "masactrl", {**START, "words": "cat > dog", "threshold": 0.5})
    result = tiny_session.run(request(edit, x0=x0))
    assert all(row.acted == row.expected for row in result.coverage)
    assert {row.controller for row in result.coverage} >= {"source map of words", "edit map of words"}


def test_an_unconditional_real_source_takes_one_row(tiny_session: EditSession) -> None:
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    result = tiny_session.run(request(source_prompt=None, x0=x0, check_reconstruction=False))
    assert result.rows == {"inversion": 5, "edit": 5 * 3}


def test_start_step_is_exact_where_fractions_are_not() -> None:
    for count in (10, 49, 50):
        for step in range(count + 1):
            when = MasaCtrl(MasaCtrl.Config(start_step=step))._when(count)
            assert when.indices(count) == tuple(range(step, count))


def test_an_empty_region_never_gives_a_softmax_over_nothing() -> None:
    source, edit = torch.zeros(2, 2, dtype=torch.bool), torch.tensor([[True, False], [False, False]])
    allowed = meet(source, edit)
    assert allowed.all()  # the object's query sees all keys, the background's see the background, which is all
    added = meet(source, edit, average_if_empty=True)
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    probs = torch.softmax(logits + added, -1)
    assert torch.equal(probs[0], torch.full((4,), 0.25))
    assert torch.equal(probs[1:], torch.softmax(logits, -1)[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_preset_stays_finite_with_an_empty_region(dtype: torch.dtype) -> None:
    from attnctl.testing import tiny_model

    edit = Edit("a red dog on the grass", "masactrl", {**START, "empty_region": "average", "map_downscale": 1})
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3, 3] = True  # lost where the grid is halved
    run = EditSession(tiny_model(dtype=dtype)).run(request(edit, mask=mask))
    assert torch.isfinite(run["edit[0]"].latents).all()


# -- where it acts -----------------------------------------------------------------------------------------------------


def view(model: Model) -> ModelView:
    return ModelView(model.sites, (8, 8), model.text_length, model.pipe.tokenizer)


PLAN = PlanRequest("a red dog on the grass", "a red cat on the grass", real=False)


def layers(settings: dict, sites: Any) -> tuple[int, ...]:
    return MasaCtrl(MasaCtrl.Config(**settings))._layers(sites)


def test_layers_follow_the_structure(shared_tiny_model: Model) -> None:
    sd, sdxl = shared_tiny_model.sites, enumerate_sites(tiny_sdxl().unet)
    assert layers({}, sd) == tuple(range(10, 16)) == layers({"start_layer": 10}, sd)
    finest = [s.layer for s in sdxl if s.kind == "self" and s.path.startswith("up_blocks.1.")]
    assert layers({}, sdxl) == tuple(finest)
    assert finest


def test_a_plan_of_fifty_steps_is_the_papers(shared_tiny_model: Model) -> None:
    plan = MasaCtrl().plan(PLAN, view(shared_tiny_model))
    (mutual,) = plan.controllers
    assert mutual.when.indices(50) == tuple(range(4, 50))
    assert mutual.passes == ("uncond", "cond")
    assert str(mutual.attend) == "A[self, source] v[source]"
    union = MasaCtrl(MasaCtrl.Config(union=True)).plan(PLAN, view(shared_tiny_model))
    assert str(union.controllers[0].attend) == "A[self, source|self] v[source|self]"


def test_a_real_source_follows_the_inversion_that_is_asked_for(shared_tiny_model: Model) -> None:
    plan = MasaCtrl().plan(replace(PLAN, real=True, source_prompt=None), view(shared_tiny_model))
    assert plan.inversion is not None
    assert (plan.inversion.name, plan.inversion.prompt, plan.source.prompt, plan.source.pin) == ("ddim", "", "", None)
    asked = MasaCtrl().plan(replace(PLAN, real=True, inversion="direct"), view(shared_tiny_model))
    assert asked.inversion is not None
    assert (asked.inversion.name, asked.inversion.prompt) == ("direct", "a red cat on the grass")


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_layers_that_do_not_exist_are_refused(tiny_session: EditSession) -> None:
    with pytest.raises(SelectionError, match="do not exist"):
        tiny_session.plan(request(Edit("a dog", "masactrl", {"start_layer": 16})))


def test_a_word_that_is_not_there_is_answered_with_those_that_are(tiny_session: EditSession) -> None:
    with pytest.raises(InputError, match="its words are"):
        tiny_session.plan(request(Edit("a red dog on the grass", "masactrl", {"words": "cat"})))


def test_words_need_a_source_prompt(tiny_session: EditSession) -> None:
    x0 = torch.zeros(1, 4, 8, 8)
    with pytest.raises(InputError, match="no prompt"):
        tiny_session.plan(request(Edit("a dog", "masactrl", {"words": "dog"}), source_prompt=None, x0=x0))


def test_a_token_behind_the_text_is_refused(tiny_session: EditSession) -> None:
    with pytest.raises(InputError, match="no token 77"):
        tiny_session.plan(request(Edit("a dog", "masactrl", {"tokens": ((77,), (1,))})))


@pytest.mark.parametrize(
    "settings",
    [
        {"words": "cat", "tokens": ((1,), (1,))},
        {"union": True, "words": "cat"},
        {"words": ""},
        {"start": 1.5},
        {"threshold": -1},
        {"layers": ()},
        {"empty_region": "nothing"},
        {"start_step": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match="masactrl"):
        Registry.load().make_method("masactrl", settings, None)


def test_a_mask_that_is_not_used_is_mentioned(tiny_session: EditSession) -> None:
    mask = torch.ones(8, 8, dtype=torch.bool)
    plan = tiny_session.plan(request(Edit("a dog", "masactrl", {"union": True}), mask=mask))
    assert any("does not use the mask" in note for note in plan.edits[0].plan.notes)
