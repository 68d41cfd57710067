"""Negative-prompt inversion: the source prompt in place of the unconditional text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.errors import InputError
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_sdxl
from attnctl.testing.conformance import distance
from attnctl_plugins.inversions.negative_prompt import NegativePrompt, slerp


def test_the_source_is_sampled_as_without_guidance(bench: Any) -> None:
    """METHODS 8f: both halves have one text, so g has no effect."""
    guided = bench.run("negative-prompt", Edit(bench.target, "p2p"))
    plain = bench.run("ddim", Edit(bench.source, "none"), guidance=1.0)
    assert distance(guided.source.latents, plain["edit[0]"].latents) < 1e-5
    assert guided.rows["edit"] == 5 * (1 + 2)


def test_the_edit_is_guided_from_the_source_prompt_to_its_own(bench: Any) -> None:
    named = bench.run("negative-prompt")
    by_hand = bench.run("ddim", negative_prompt=bench.source)
    assert distance(named["edit[0]"].latents, by_hand["edit[0]"].latents) < 1e-6
    assert distance(named["edit[0]"].latents, bench.run("ddim")["edit[0]"].latents) > 1e-3


def test_an_edit_to_the_same_prompt_is_the_source(bench: Any) -> None:
    result = bench.run("negative-prompt", Edit(bench.source, "fpe"), allow_no_op=True)
    assert distance(result["edit[0]"].latents, result.source.latents) < 1e-5


def test_interpolation_leads_back_to_the_empty_prompt(bench: Any) -> None:
    at = {
        share: bench.run("negative-prompt", inversion_settings={"interpolate": share})["edit[0]"].latents
        for share in (0.0, 0.5, 1.0)
    }
    assert distance(at[1.0], bench.run("ddim")["edit[0]"].latents) < 1e-6
    assert min(distance(at[0.5], at[0.0]), distance(at[0.5], at[1.0])) > 1e-3


def test_slerp_keeps_the_length_of_unit_vectors_and_survives_equal_ones() -> None:
    a, b = torch.eye(2, dtype=torch.float64)
    half = slerp(a, b, 0.5)
    assert torch.allclose(half, torch.full((2,), 0.5**0.5, dtype=torch.float64))
    assert torch.equal(slerp(a, a, 0.5), a)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source_prompt": None}, "needs a prompt that describes the picture"),
        ({"negative_prompt": "ugly"}, "--negative-prompt would have no effect"),
        ({"guidance": 1.0}, "guidance 1 never reads"),
        ({"inversion_settings": {"interpolate": 2}}, "interpolate=2 is not allowed"),
        ({"inversion_settings": {"interpolte": 1}}, "unknown setting of negative-prompt"),
    ],
)
def test_what_it_cannot_work_with_is_refused(bench: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench.session.plan(bench.request("negative-prompt", **fields))


def test_the_pooled_text_of_larger_models_is_replaced_too() -> None:
    from attnctl.model import Model, check_supported

    pipe = tiny_sdxl()
    session = EditSession(Model(pipe, "tiny-sdxl", family=check_supported(pipe, "tiny-sdxl")))
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    request = {"source_prompt": "a cat", "x0": x0, "steps": 2, "check_reconstruction": False}
    edits = (Edit("a dog", "none"),)
    named = session.run(EditRequest(edits, inversion="negative-prompt", **request))
    by_hand = session.run(EditRequest(edits, inversion="ddim", negative_prompt="a cat", **request))
    assert torch.equal(named["edit[0]"].latents, by_hand["edit[0]"].latents)


def test_the_trajectory_has_one_text_for_all_steps(bench: Any) -> None:
    trajectory = bench.invert(NegativePrompt())
    assert len(trajectory.uncond) == 1
    assert torch.equal(trajectory.uncond[0]["embeds"], bench.model.encode_text(bench.source).embeds)
    assert trajectory.denoiser_rows == NegativePrompt().rows(5) == 5
