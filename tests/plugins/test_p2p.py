"""Prompt-to-Prompt: the reference code's numbers, and what must hold for any of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import pytest
import torch

from attnctl.config import build_config, shown
from attnctl.controller import Controller
from attnctl.errors import InputError
from attnctl.method import EditPlan, ModelView
from attnctl.request import Edit, EditRequest, PlanRequest
from attnctl.session import EditSession
from attnctl.steps import Step
from attnctl.testing import MethodConformance, tiny_model
from attnctl.testing.conformance import distance
from attnctl_plugins.blend import WordPlaces
from attnctl_plugins.p2p import P2P

LIMIT = 1e-3  # relative L2; 7e-6 was measured
OFF = {"cross_replace": 0, "self_replace": 0}


class TestP2P(MethodConformance):
    method = P2P
    off: ClassVar = OFF


@pytest.mark.slow
class TestP2PWithEverything(MethodConformance):
    method = P2P
    settings: ClassVar = {
        "mode": "refine",
        "cross_replace": {"default_": 0.8, "photo": (0.2, 0.9)},
        "equalizer": {"photo": 2.0},
        "blend_words": "photo",
        "start_blend": 0.4,
        "blend_threshold": 0.99,
        "blend_downscale": 2,
    }
    skipped: ClassVar = {"equal_prompts": "a word is reweighted"}


# -- the reference code's numbers --------------------------------------------------------------------------------------


class StopError(Exception):
    """Ends a run early, with what there was."""


class FirstStep(P2P):
    """Prompt-to-Prompt for one step: both edits act in it, and a whole case takes ten times as long."""

    name = "p2p-first-step"
    seen: ClassVar[list[torch.Tensor]] = []

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        def record(call: Any) -> None:
            self.seen.append(torch.stack([call.latents["source"], call.latents["self"]]))
            raise StopError

        plan = super().plan(request, model)
        return replace(plan, controllers=(*plan.controllers, Controller("record", on_step_end=record)))


def golden_request(inputs: dict[str, Any], case: dict[str, torch.Tensor], method: str, **fields: Any) -> EditRequest:
    hyper = inputs["hyper"]
    settings = {
        "mode": hyper["edit"],
        "cross_replace": hyper["cross_replace_steps"],
        "self_replace": hyper["self_replace_steps"],
        "max_tokens": hyper["self_attention_max_keys"],
    }
    source, target = inputs["prompts"]
    start = {"x_T": case["in.x_T"]} if "in.x_T" in case else {"x0": case["in.latent0"]}
    return EditRequest(
        (Edit(target, method, settings, preset="reference"),),
        source_prompt=source,
        steps=10,
        guidance=7.5,
        check_reconstruction=False,
        **start,
        **fields,
    )


def test_the_first_step_is_the_reference_codes(golden: Any) -> None:
    inputs, case = golden.case("p2p_replace")
    FirstStep.seen.clear()
    registry = golden.session.registry
    registry.classes["method"][FirstStep.name] = FirstStep
    with pytest.raises(StopError):
        golden.session.run(golden_request(inputs, case, FirstStep.name))
    (found,) = FirstStep.seen
    before, after = case["out.steps"][:2]
    assert distance(found - before, after - before) < LIMIT
    assert distance(after[1], after[0]) > 2 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [("p2p_replace", 16 * 8 + 6 * 4), ("p2p_refine", 16 * 5 + 6 * 2)])
def test_generated_pictures_are_the_reference_codes(golden: Any, name: str, settings: int) -> None:
    inputs, case = golden.case(name)
    result = golden.session.run(golden_request(inputs, case, "p2p"), record=True)
    for row, lane in enumerate(("source", "edit[0]")):
        for step in range(11):
            assert distance(result[lane].history[step], case["out.steps"][step, row]) < LIMIT, (lane, step)
    assert sum(row.acted for row in result.coverage) == settings


@pytest.mark.slow
def test_real_pictures_are_the_reference_codes(golden: Any) -> None:
    inputs, case = golden.case("direct_inversion_p2p")
    result = golden.session.run(golden_request(inputs, case, "p2p"), record=True)
    for row, lane in enumerate(("source", "edit[0]")):
        for step in range(11):
            assert distance(result[lane].history[step], case["out.steps"][step, row]) < LIMIT, (lane, step)
    # The source is read while the edit takes its maps (cross 4 steps, self 6), and its halves are never both needed.
    assert result.rows == {"inversion": 10, "edit": 6 * 3 + 4 * 2}


# -- invariants --------------------------------------------------------------------------------------------------------

SOURCE, TARGET, LONGER = "a red cat on the grass", "a red dog on the grass", "a big red cat on the grass"
MASK = torch.zeros(16, 24, dtype=torch.bool)
MASK[4:12, 4:16] = True


@cache
def session() -> EditSession:
    return EditSession(tiny_model())


def run(*edits: Edit, **fields: Any) -> Any:
    defaults = {"source_prompt": SOURCE, "steps": 4, "guidance": 5.0, "size": (128, 192)}
    return session().run(EditRequest(edits, **{**defaults, **fields}), record=True)


def edit(prompt: str = TARGET, **settings: Any) -> Edit:
    return Edit(prompt, "p2p", settings)


@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_equal_prompts_with_everything_replaced_are_the_source(mode: str) -> None:
    result = run(edit(SOURCE, mode=mode, cross_replace=1, self_replace=1), allow_no_op=True)
    assert distance(result["edit[0]"].latents, result.source.latents) < 1e-5


def test_factors_of_one_change_nothing_and_reweight_with_ones_copies_the_source() -> None:
    result = run(
        edit(), edit(equalizer={"dog": 1}), edit(SOURCE, mode="reweight", equalizer="cat:1", cross_replace=1.0)
    )
    assert torch.equal(result["edit[0]"].latents, result["edit[1]"].latents)
    assert distance(result["edit[2]"].latents, result.source.latents) < 1e-5


def test_blending_puts_the_source_back_outside_a_mask_and_nowhere_inside() -> None:
    whole = torch.ones(16, 24)
    plain, masked = run(edit()), run(edit(), mask=MASK)
    everywhere = run(edit(), mask=whole)
    assert torch.equal(everywhere["edit[0]"].latents, plain["edit[0]"].latents)
    found, source = masked["edit[0]"].latents[0], masked.source.latents[0]
    assert torch.equal(found[:, ~MASK], source[:, ~MASK])
    assert distance(found[:, MASK], source[:, MASK]) > 0.01
    assert torch.equal(masked.source.history, plain.source.history)


def test_words_that_are_nowhere_leave_the_source_and_late_blending_is_none() -> None:
    """A threshold of nearly 1 with everything subtracted keeps nothing; a start of 1 never blends."""
    nothing = run(edit(blend_words="cat > dog", subtract_words="the", subtract_threshold=0.0), allow_no_op=True)
    assert torch.equal(nothing["edit[0]"].latents, nothing.source.latents)
    never = run(edit(blend_words="cat > dog", start_blend=1.0), edit())
    assert distance(never["edit[0]"].latents, never["edit[1]"].latents) < 1e-6


def test_a_mask_in_picture_pixels_is_the_same_mask() -> None:
    large = MASK.repeat_interleave(8, 0).repeat_interleave(8, 1)
    one, other = run(edit(), mask=MASK), run(edit(), mask=large)
    assert torch.equal(one["edit[0]"].latents, other["edit[0]"].latents)


def test_a_word_without_positive_attention_marks_nothing_and_is_never_nan() -> None:
    places = WordPlaces({})
    call = type("Call", (), {"step": Step(0, 4, 1), "grid": (2, 3), "site": type("S", (), {"path": "x"})})
    places.see("self", call, torch.zeros(4, 6, 1))
    assert not places.region(0, (4, 6), 0.3, widen=True).any()
    places.see("source", call, torch.arange(6.0).reshape(1, 6, 1).expand(4, 6, 1))
    assert places.region(0, (4, 6), 0.7, widen=False).sum() == 8  # places 4 and 5 of 0..5, four latents each


def test_a_layer_that_runs_twice_in_a_step_counts_once() -> None:
    """Lanes that do not fit into one call let the source run again; that must not weigh its maps."""
    places = WordPlaces({})
    for step in range(3):
        for _ in range(1 + step):
            call = type("Call", (), {"step": Step(step, 4, 1), "grid": (1, 2), "site": type("S", (), {"path": "x"})})
            places.see("source", call, torch.full((4, 2, 1), 1.0 + step))
    assert places.total("source").flatten().tolist() == [6.0, 6.0]


def test_source_rows_are_spent_only_where_they_are_read() -> None:
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    result = run(edit(cross_replace=0.4, self_replace=0.6), x0=x0, size=None, steps=10, check_reconstruction=False)
    assert result.rows == {"inversion": 10, "edit": 6 * 3 + 4 * 2}


# -- settings and plans ------------------------------------------------------------------------------------------------


def plan(settings: dict[str, Any] | None = None, **fields: Any) -> EditPlan:
    model = session().model
    defaults = {"prompt": TARGET, "source_prompt": SOURCE, "negative_prompt": "", "real": False}
    request = PlanRequest(**{**defaults, "steps": 50, "guidance": 7.5, **fields})
    view = ModelView(model.sites, (64, 64), 77, model.pipe.tokenizer)
    return P2P(P2P.Config(**(settings or {}))).plan(request, view)


def steps_of(plan: EditPlan, count: int) -> list[int]:
    expression = plan.controllers[0].attend
    return [i for i in range(count) if expression(Step(i, count, 1)) is not None]


@pytest.mark.parametrize(
    ("prompt", "mode"), [(TARGET, "replace"), (LONGER, "refine"), ("a cat", "refine"), (SOURCE, "replace")]
)
def test_the_mode_is_chosen_by_the_number_of_words(prompt: str, mode: str) -> None:
    assert plan(prompt=prompt).controllers[0].name == f"cross-attention ({mode})"


@pytest.mark.parametrize(
    ("fraction", "count", "steps"),
    [(0.4, 50, 20), (0.8, 50, 40), (1.0, 50, 50), (1.0, 51, 51), (0.8, 51, 40), (0.8, 99, 80), ((0.2, 0.6), 50, 20)],
)
def test_cross_attention_acts_in_the_published_steps(fraction: Any, count: int, steps: int) -> None:
    """51: the step that PLMS has more than it was asked for. 99: a schedule of its own length, as Heun's."""
    found = steps_of(plan({"cross_replace": fraction}), count)
    assert len(found) == steps
    assert found[0] == (10 if isinstance(fraction, tuple) else 0)


def test_presets_and_the_default_select_their_layers() -> None:
    sites = session().model.sites

    def layers(settings: dict[str, Any], side: int = 64) -> list[int]:
        where = plan(settings).controllers[1].where
        return [s.layer for s in where.select(sites, (side, side))]

    assert layers(dict(P2P.presets["paper"].settings)) == list(range(4, 10))
    for name in ("reference", "pie-bench"):
        assert layers(dict(P2P.presets[name].settings)) == list(range(2, 13))
    for side in (16, 64, 96):
        assert layers({}, side) == list(range(2, 13))


def test_an_expression_says_what_it_does_and_drops_what_is_zero() -> None:
    expression = plan({"cross_replace": {"default_": 1.0, "dog": 0.4}}).controllers[0].attend
    early, late = expression(Step(0, 50, 1)), expression(Step(49, 50, 1))
    assert str(early) == "A[source, source] v[self]"  # one token each: nothing to map
    assert str(late) == "A[source, source] T v[self] + A[self, self] T v[self]"
    assert expression(Step(1, 50, 1)) is early
    assert "alpha" in plan().controllers[0].describe()


def test_a_real_picture_is_inverted_with_its_prompt() -> None:
    made = plan(real=True)
    assert made.inversion is not None
    assert (made.inversion.name, made.inversion.prompt, made.source.pin) == ("direct", SOURCE, None)
    made = plan(real=True, inversion="null-text")
    assert made.inversion is not None
    assert made.inversion.name == "null-text"
    with pytest.raises(InputError, match="needs a prompt"):
        plan(real=True, source_prompt=None)


def test_skipped_words_and_misaligned_reweighting_are_told() -> None:
    made = plan({"equalizer": "tiger:2", "missing_words": "skip", "blend_words": "cat"})
    assert made.notes == (
        "p2p: 'tiger' is in no place of its prompt and was skipped",
        "p2p: 'cat' is in no place of its prompt and was skipped",
    )
    (note,) = plan({"mode": "reweight", "equalizer": "dog:2"}).notes
    assert "different tokens" in note


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "swap"}, "mode=swap is not allowed"),
        ({"mode": "reweight"}, "reweight needs an equalizer"),
        ({"mode": "replace"}, "as many words"),
        ({"cross_replace": 1.5}, "cross_replace=1.5 is not allowed"),
        ({"cross_replace": "often"}, "cross_replace=often is not allowed"),
        ({"cross_replace": (0.8, 0.2)}, "0 <= start <= stop <= 1, found 0.8 to 0.2"),
        ({"cross_replace": "dog:0.8,0.2"}, "0 <= start <= stop <= 1"),
        ({"self_replace": (0.8, 0.2)}, "0 <= start <= stop <= 1"),
        ({"equalizer": "dog:nan"}, "equalizer=dog:nan is not allowed"),
        ({"equalizer": "tiger:2"}, "has no word 'tiger': its words are big, the, "),
        ({"cross_replace": "tiger:0.4"}, "has no word 'tiger'"),
        ({"blend_words": "cat > tiger"}, "has no word 'tiger'"),
        ({"blend_words": "tiger > cat"}, "'a red cat on the grass' has no word 'tiger'"),
        ({"blend_words": " "}, "no words are given"),
        ({"subtract_words": "sky"}, "has no word 'sky'"),
        ({"blend_threshold": 1}, "blend_threshold=1"),
        ({"blend_words": "red", "blend_downscale": 3}, "selects no site"),
        ({"layers": ()}, "layers="),
        ({"cross": 1}, "unknown setting of p2p 'cross'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        run(Edit(LONGER, "p2p", settings))
    assert getattr(caught.value, "exit_code", None) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"cross_replace": "default_:1.0 dog:0.2,0.6", "equalizer": "dog:2.0", "blend_words": "cat > dog"},
        {"cross_replace": (0.2, 0.8), "self_replace": 0.5, "subtract_words": "grass"},
    ],
)
def test_settings_are_shown_as_they_can_be_written(settings: dict[str, Any]) -> None:
    made = build_config(P2P.Config, settings, owner="p2p")
    text = {name: shown(getattr(made, name)) for name in settings}
    assert build_config(P2P.Config, text, owner="p2p") == made
