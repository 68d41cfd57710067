"""Direct inversion: overwriting the source lane, and the published offsets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.controller import Controller, StepCall
from attnctl.errors import InputError
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, ModelView, Source
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest, PlanRequest
from attnctl.session import EditSession
from attnctl.testing.conformance import distance
from attnctl_plugins.inversions.ddim import DDIMInversion
from attnctl_plugins.inversions.direct import Direct

OFFSETS = {"offsets": True}


def edits(bench: Any) -> tuple[Edit, ...]:
    return (Edit(bench.target, "fpe"), Edit("a photo of a red car", "fpe", {"self_replace": 0.4}))


@pytest.mark.slow
def test_offsets_and_the_edit_are_the_reference_codes(golden: Any) -> None:
    inputs, case = golden.case("direct_inversion_p2p")
    source, target = inputs["prompts"]
    request = {"source_prompt": source, "x0": case["in.latent0"], "steps": 10, "inversion": "direct"}
    settings = {
        "mode": inputs["hyper"]["edit"],
        "cross_replace": inputs["hyper"]["cross_replace_steps"],
        "self_replace": inputs["hyper"]["self_replace_steps"],
        "max_tokens": inputs["hyper"]["self_attention_max_keys"],
        "min_downscale": None,
        "alignment": "reference",
    }
    edit = Edit(target, "p2p", settings)
    plain = EditRequest((edit,), inversion_settings=OFFSETS, check_reconstruction=False, **request)
    result = golden.session.run(plain, record=True)
    for lane, row in (("source", 0), ("edit[0]", 1)):
        for k, x in enumerate(result[lane].history):
            assert distance(x, case["out.steps"][k, row]) < 1e-3, (lane, k)


def test_the_source_is_on_the_path_at_every_step_to_the_bit(bench: Any) -> None:
    path = bench.invert(DDIMInversion()).latents
    result = bench.run("direct", *edits(bench))
    assert torch.equal(result.source.history, path.flip(0))
    assert torch.equal(result.source.latents, bench.x0)
    assert result.rows["inversion"] == 5


def test_offsets_give_the_same_pictures_as_overwriting(bench: Any) -> None:
    """METHODS 10: edits read nothing of the source but its activations on the path."""
    one = bench.run("direct", *edits(bench))
    other = bench.run("direct", *edits(bench), inversion_settings=OFFSETS)
    for lane in one.lanes:
        assert distance(other[lane.name].latents, lane.latents) < 1e-9
    assert not torch.equal(one["edit[0]"].latents, one["edit[1]"].latents)
    assert other.rows["inversion"] == 5 + 2 * 5
    free = bench.run("ddim", Edit(bench.target, "p2p"))
    assert distance(free.source.latents, bench.x0) > 0.05  # what the offsets are there to mend


def test_the_named_preset_is_the_published_form(bench: Any) -> None:
    named = bench.session.registry.make_inversion(InversionSpec("direct").with_settings({"preset": "reference"}))
    assert named.config.offsets
    assert (named.pin, Direct().pin) == ("none", "end")
    with pytest.raises(InputError, match="unknown preset of direct 'papr': known are reference"):
        bench.session.registry.make_inversion(InversionSpec("direct").with_settings({"preset": "papr"}))


def test_offsets_vanish_where_nothing_needs_mending(bench: Any) -> None:
    """METHODS 10f: with guidance 1 they are what DDIM inversion itself is wrong by; with more steps they shrink."""
    few, many = (
        bench.invert(Direct(Direct.Config(offsets=True)), steps, guidance=1.0).offsets.square().mean()
        for steps in (5, 20)
    )
    guided = bench.invert(Direct(Direct.Config(offsets=True)), guidance=7.5).offsets.square().mean()
    assert many < few / 3
    assert guided > few


def test_reconstruction_is_exact_because_the_source_is_the_path(bench: Any) -> None:
    for settings, rows in (({}, 0), (OFFSETS, 10)):
        result = bench.run("direct", inversion_settings=settings, check_reconstruction=True)
        assert result.rows["reconstruction"] == rows
        assert result.inversions[0].psnr > 80
        assert not result.warnings


class LooksAround(EditMethod):
    """Notes what a step action sees of the source and of the path."""

    name = "looks-around"
    seen: list[tuple[torch.Tensor, torch.Tensor | None]]

    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        type(self).seen = []

        def look(call: StepCall) -> None:
            self.seen.append((call.latents["source"], call.reference))

        return EditPlan(
            Source(request.source_prompt or ""),
            (Controller("look", on_step_start=look), Controller("look again", on_step_end=look)),
            InversionSpec(request.inversion or "direct", request.source_prompt or "") if request.real else None,
        )


@pytest.mark.parametrize("settings", [{}, OFFSETS])
def test_step_actions_see_the_source_already_mended(bench: Any, settings: dict[str, bool]) -> None:
    """METHODS 10: a blend of source and edit happens after the source is put back."""
    registry = Registry.load()
    registry.classes["method"]["looks-around"] = LooksAround
    session = EditSession(bench.model, registry)
    request = bench.request("direct", Edit(bench.target, "looks-around"), inversion_settings=settings, allow_no_op=True)
    session.run(request)
    path = bench.invert(DDIMInversion()).latents
    levels = [k for step in range(5) for k in (5 - step, 4 - step)]  # start and end of every step
    assert len(LooksAround.seen) == len(levels)
    for k, (source, reference) in zip(levels, LooksAround.seen, strict=True):
        assert torch.equal(reference, path[k])
        assert distance(source, path[k]) < 1e-9
