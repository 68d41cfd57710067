"""Edit-friendly inversion: independent noise at every level, and the noise maps between levels."""

from __future__ import annotations

from typing import Any

import pytest

from attnctl.request import Edit
from attnctl.testing.conformance import distance
from attnctl_plugins.inversions.edit_friendly import EditFriendly

STEPS = 5


def found(bench: Any, seed: int = 0, **settings: Any) -> Any:
    return bench.invert(EditFriendly(EditFriendly.Config(**settings)), STEPS, seed=seed, guidance=3.5)


@pytest.mark.parametrize("skip", [0.0, 0.4])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_source_passes_through_every_level_from_any_start(bench: Any, skip: float, seed: int) -> None:
    """METHODS 11f: X_k for all k >= 1, whatever the noise; the last step is its mean alone."""
    levels = found(bench, seed, skip=skip).latents.flip(0)
    result = bench.run(
        "edit-friendly", Edit(bench.target, "fpe"), seed=seed, inversion_settings={"skip": skip}, keep_source=True
    )
    start = int(STEPS * skip)
    for k in range(start, STEPS):
        assert distance(result.source.history[k], levels[k]) < 1e-10
    assert 0 < distance(result.source.latents[0], levels[STEPS]) < 0.2


def test_the_maps_follow_from_the_levels(bench: Any) -> None:
    one, other = found(bench, 0), found(bench, 1)
    assert one.latents.shape == (STEPS + 1, 4, 8, 12)
    assert one.noises.shape == (STEPS, 4, 8, 12)
    assert not one.noises[-1].any()
    assert distance(one.latents[:1], bench.x0) < 1e-12
    assert distance(one.latents[1:], other.latents[1:]) > 0.1
    assert one.start == int(STEPS * 0.36) == 1
    # Neighbouring levels carry noise of their own, so that the maps are larger than the sampler's own unit noise.
    assert float(one.noises[:-1].std()) > 1.05


def test_lanes_have_the_scales_of_the_inversion(bench: Any) -> None:
    plan = bench.session.plan(bench.request("edit-friendly"))
    assert (plan.lanes["source"].guidance.scale, plan.lanes["edit[0]"].guidance.scale) == (3.5, 15.0)
    assert "edit-friendly guides sources with 3.5 and edits with 15, not with 7.5" in plan.edits[0].plan.notes
    settings = {"preset": "pie-bench", "edit_guidance": "null"}
    plan = bench.session.plan(bench.request("edit-friendly", guidance=5.0, inversion_settings=settings))
    assert (plan.lanes["source"].guidance.scale, plan.lanes["edit[0]"].guidance.scale) == (1.0, 5.0)


def test_to_leave_everything_out_gives_the_picture_back(bench: Any) -> None:
    """METHODS 11f: the reference indexes an empty list here."""
    result = bench.run("edit-friendly", Edit(bench.target, "fpe"), inversion_settings={"skip": 1})
    assert distance(result["edit[0]"].latents, bench.x0) < 1e-12
    assert result.rows["edit"] == 0
    assert any("does not act" in text for text in result.warnings)


def test_lanes_share_the_maps_and_differ_by_their_prompts(bench: Any) -> None:
    edits = (Edit(bench.target, "none"), Edit("a boat", "none"))
    result = bench.run("edit-friendly", *edits)
    alone = bench.run("edit-friendly", edits[1])
    assert distance(result["edit[1]"].latents, alone["edit[0]"].latents) < 1e-10
    assert distance(result["edit[1]"].latents, result["edit[0]"].latents) > 1e-3
    quiet = bench.run("edit-friendly", Edit(bench.source, "none"), inversion_settings={"edit_guidance": 3.5})
    assert distance(quiet["edit[0]"].latents, quiet.source.latents) > 0  # `none` pins its source to the path
    assert distance(quiet["edit[0]"].history[-2], found(bench).latents[1:2]) < 1e-10


def test_an_empty_source_prompt_takes_one_row(bench: Any) -> None:
    """METHODS 11: then both halves have the same text."""
    result = bench.run("edit-friendly", source_prompt=None)
    assert result.rows["inversion"] == STEPS
    assert bench.run("edit-friendly").rows["inversion"] == 2 * STEPS
