"""Free-Prompt-Editing: the reference code's numbers, and what must hold for any of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from attnctl.errors import InputError, SelectionError
from attnctl.families.betas import beta_schedule
from attnctl.inversion import InversionCall
from attnctl.method import ModelView
from attnctl.model import Model
from attnctl.request import Edit, EditRequest, PlanRequest
from attnctl.session import EditSession
from attnctl.testing import MethodConformance
from attnctl.testing.conformance import distance
from attnctl_plugins.fpe import FPE

LIMIT = 1e-3  # relative L2; 8e-6 (generated) and 1e-5 (real) were measured


class TestFPE(MethodConformance):
    method = FPE
    off: ClassVar = {"self_replace": 0.0}


class TestFPEInNamedLayers(MethodConformance):
    method = FPE
    settings: ClassVar = {"min_downscale": None, "layers": tuple(range(4, 15)), "self_replace": 1.0}
    off: ClassVar = {"self_replace": 0.0}


# -- the reference code's numbers --------------------------------------------------------------------------------------


def test_generated_pictures_and_the_plain_lanes_are_the_reference_codes(golden: Any) -> None:
    """One run holds three reference cases: source, edit, and the same prompt without control."""
    inputs, case = golden.case("fpe_generated_08")
    plain_inputs, plain = golden.case("plain_two_prompt")
    source, target = inputs["prompts"]
    assert plain_inputs["prompts"] == [source, target]
    assert torch.equal(case["in.x_T"], plain["in.x_T"])
    request = EditRequest(
        (Edit(target, "fpe", preset="paper"), Edit(target, "none")),
        source_prompt=source,
        x_T=case["in.x_T"],
        steps=10,
        guidance=7.5,
    )
    result = golden.session.run(request, record=True)
    expected = {
        "source": (case["out.steps"][:, 0], plain["out.steps"][:, 0]),
        "edit[0]": (case["out.steps"][:, 1],),
        "edit[1]": (plain["out.steps"][:, 1], case["plain.final"][None, 1]),
    }
    for lane, references in expected.items():
        for reference in references:
            history = result[lane].history[-len(reference) :]
            assert max(distance(a, b) for a, b in zip(history, reference, strict=True)) < LIMIT
    (row,) = result.coverage
    assert (row.acted, row.expected, row.sites, row.steps) == (88, 88, 11, 8)


@pytest.mark.slow
def test_real_pictures_are_the_reference_codes(golden: Any) -> None:
    inputs, case = golden.case("fpe_real")
    request = EditRequest(
        (Edit(inputs["prompts"][1], "fpe", preset="paper"), Edit(inputs["prompts"][1], "none")),
        x0=case["in.latent0"],
        steps=10,
        guidance=inputs["guidance_scale"],
        keep_source=True,
        check_reconstruction=False,
    )
    result = golden.session.run(request, record=True)
    for i, lane in enumerate(("source", "edit[0]")):
        for step in range(11):
            assert distance(result[lane].history[step], case["out.steps"][step, i]) < LIMIT, (lane, step)
    assert distance(result["edit[1]"].latents[0], case["plain.final"][1]) < LIMIT
    assert result.rows == {"inversion": 10, "edit": 10 * (1 + 2 + 2)}


@pytest.mark.slow
def test_rows_that_cannot_matter_are_not_spent_and_change_nothing(golden: Any) -> None:
    """The reference runs 4 rows in every step, after an inversion of 2: 60 rows where 38 do."""
    inputs, case = golden.case("fpe_real")
    request = EditRequest(
        (Edit(inputs["prompts"][1], "fpe", preset="paper"),),
        x0=case["in.latent0"],
        steps=10,
        guidance=7.5,
        check_reconstruction=False,
    )
    result = golden.session.run(request)
    assert result.rows == {"inversion": 10, "edit": 8 * 3 + 2 * 2}
    assert distance(result["edit[0]"].latents[0], case["out.final"][1]) < LIMIT
    assert torch.equal(result.source.latents, case["in.latent0"])


# -- invariants --------------------------------------------------------------------------------------------------------

SOURCE, TARGET, OTHER = "a red cat on the grass", "a blue dog on the grass", "a red cat on the snow"


def run(session: EditSession, *edits: Edit, **fields: Any) -> Any:
    defaults = {"source_prompt": SOURCE, "steps": 5, "guidance": 7.5}
    return session.run(EditRequest(edits, **{**defaults, **fields}), record=True)


def edit(prompt: str = TARGET, **settings: Any) -> Edit:
    return Edit(prompt, "fpe", settings)


def test_no_step_means_plain_generation(tiny_session: EditSession) -> None:
    result = run(tiny_session, edit(self_replace=0.0), Edit(TARGET, "none"))
    assert torch.equal(result["edit[0]"].latents, result["edit[1]"].latents)
    assert result.coverage[0].expected == 0


@pytest.mark.parametrize("fraction", [0.2, 0.8, 1.0])
def test_the_source_is_its_own_plain_generation_for_any_fraction(tiny_session: EditSession, fraction: float) -> None:
    edited = run(tiny_session, edit(self_replace=fraction))
    plain = run(tiny_session, Edit(TARGET, "none"))
    assert torch.equal(edited.source.history, plain.source.history)


def test_equal_prompts_give_equal_pictures_and_are_called_a_no_op(tiny_session: EditSession) -> None:
    result = run(tiny_session, edit(SOURCE, self_replace=1.0), allow_no_op=True)
    assert distance(result["edit[0]"].latents, result.source.latents) < 1e-5
    with pytest.raises(Exception, match="its prompt equals the source's"):
        run(tiny_session, edit(SOURCE))


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize(("settings", "layers"), [({}, 11), ({"min_downscale": None, "layers": (6,)}, 1)])
def test_it_covers_its_layers_times_its_steps(
    tiny_session: EditSession, steps: int, settings: dict[str, Any], layers: int
) -> None:
    """METHODS 1f: 11 layers times 40 of 50 steps."""
    plan = tiny_session.plan(EditRequest((edit(**settings),), source_prompt=SOURCE, steps=steps))
    (bound,) = plan.bounds
    assert len(bound.sites) == layers
    assert bound.expected == layers * int(steps * 0.8)


def test_a_pinned_source_lies_on_the_inverted_path_bit_for_bit(tiny_session: EditSession) -> None:
    model = tiny_session.model
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    history = run(tiny_session, edit(), x0=x0, source_prompt=None).source.history
    grid = beta_schedule("ddim", model.pipe.scheduler, 5, 0)
    empty = model.encode_text("")
    call = InversionCall(model=model, grid=grid, x0=x0, text=empty, source=empty, uncond=empty, guidance=7.5, seed=0)
    path = tiny_session.registry.inversion("ddim")().invert(call).latents
    assert torch.equal(history, path.flip(0))


def test_guidance_of_the_inversion_has_no_effect(tiny_session: EditSession) -> None:
    """The source row is the same at any guidance: both of its halves have the empty text."""
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    one, other = (run(tiny_session, edit(), x0=x0, source_prompt=None, guidance=g) for g in (2.0, 15.0))
    assert torch.equal(one.source.history, other.source.history)


def test_a_real_picture_at_50_steps_takes_190_rows(tiny_session: EditSession) -> None:
    """METHODS 15: the reference spends 300."""
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    result = run(tiny_session, edit(), x0=x0, source_prompt=None, steps=50, check_reconstruction=False)
    assert result.rows == {"inversion": 50, "edit": 40 * 3 + 10 * 2}


# -- settings and plans ------------------------------------------------------------------------------------------------


def plan(settings: dict[str, Any] | None = None, model: Model | None = None, **fields: Any) -> Any:
    sites = () if model is None else model.sites
    defaults = {"prompt": TARGET, "source_prompt": SOURCE, "negative_prompt": "", "real": False}
    request = PlanRequest(**{**defaults, "steps": 50, "guidance": 7.5, **fields})
    return FPE(FPE.Config(**(settings or {}))).plan(request, ModelView(sites, (64, 64), 77, None))


def selected(preset: str, model: Model, side: int = 64) -> list[int]:
    (controller,) = plan(dict(FPE.presets[preset].settings), model).controllers
    return [s.layer for s in controller.where.select(model.sites, (side, side))]


def test_presets_select_the_layers_that_they_are_named_after(shared_tiny_model: Model) -> None:
    assert selected("paper", shared_tiny_model) == list(range(2, 13))
    assert selected("paper", shared_tiny_model, side=96) == list(range(4, 10))
    assert selected("layers-4-14", shared_tiny_model) == selected("layers-4-14", shared_tiny_model, side=96)
    assert selected("layers-4-14", shared_tiny_model) == list(range(4, 15))


def test_the_default_is_the_paper_preset_at_its_own_size_and_the_same_layers_at_any_other(
    shared_tiny_model: Model,
) -> None:
    (controller,) = plan().controllers
    for side in (16, 32, 64, 96):
        found = controller.where.select(shared_tiny_model.sites, (side, side))
        assert [s.layer for s in found] == list(range(2, 13))


def test_only_the_conditional_half_is_edited() -> None:
    (controller,) = plan().controllers
    assert controller.passes == ("cond",)
    assert str(controller.attend) == "A[source, source] v[self]"


def test_a_real_picture_needs_no_prompt_and_follows_its_path() -> None:
    made = plan(real=True, source_prompt=None)
    assert (made.source.prompt, made.source.pin, made.source.pin_plain) == ("", None, "start")
    assert (made.inversion.name, made.inversion.prompt) == ("ddim", "")
    made = plan(real=True, inversion="other")
    assert (made.source.prompt, made.source.pin, made.inversion.name) == (SOURCE, None, "other")


def test_a_generated_source_needs_a_prompt() -> None:
    with pytest.raises(InputError, match="source prompt"):
        plan(source_prompt=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"self_replace": 1.5}, "self_replace=1.5 is not allowed"),
        ({"self_replace": "often"}, "self_replace=often is not allowed"),
        ({"min_downscale": 0}, "min_downscale=0"),
        ({"layers": ()}, "layers is empty"),
        ({"self_replaces": 0.8}, "known are self_replace"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_session: EditSession, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(tiny_session, Edit(TARGET, "fpe", settings))


def test_layers_that_do_not_exist_or_none_at_all_are_refused(tiny_session: EditSession) -> None:
    with pytest.raises(SelectionError, match="layers 16-17 do not exist"):
        run(tiny_session, edit(layers=(16, 17)))
    with pytest.raises(SelectionError, match="selects no site"):
        run(tiny_session, edit(min_downscale=16))


def test_several_edits_side_by_side_are_what_they_are_alone(tiny_session: EditSession) -> None:
    edits = (edit(), edit(OTHER), edit(TARGET, self_replace=0.4), Edit(TARGET, "none"))
    together = run(tiny_session, *edits)
    for i, one in enumerate(edits):
        alone = run(tiny_session, replace(one, name=f"edit[{i}]"))
        assert distance(together[f"edit[{i}]"].latents, alone[f"edit[{i}]"].latents) < 1e-5
