"""Null-text inversion: per-step texts learnt by gradient through the denoiser."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from attnctl.errors import InputError
from attnctl.inversion import Trajectory
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_model
from attnctl.testing.conformance import distance
from attnctl_plugins.inversions.null_text import NullText

STEPS = 3
NEVER = {"early_stop": 0.0}


@pytest.mark.slow
def test_losses_texts_and_the_way_back_are_the_reference_codes(golden: Any) -> None:
    inputs, case = golden.case("null_text_inversion")
    (prompt,) = inputs["prompts"]
    hyper = inputs["hyper"]
    session, learnt = golden.session, []

    class Watched(NullText):
        name = "watched"

        def invert(self, call: Any) -> Any:
            learnt.append(super().invert(call))
            return learnt[-1]

    session.registry.classes["inversion"]["watched"] = Watched
    request = EditRequest(
        (Edit(prompt, "none"),),
        source_prompt=prompt,
        x0=case["in.latent0"],
        steps=10,
        guidance=hyper["guidance"],
        inversion="watched",
        inversion_settings={"inner_steps": hyper["num_inner_steps"], "early_stop": hyper["early_stop_epsilon"]},
        check_reconstruction=False,
    )
    result = session.run(request, record=True)
    for k, x in enumerate(result["edit[0]"].history):
        assert distance(x, case["out.steps"][k, 0]) < 1e-3, k
    (trajectory,) = learnt
    for i, (mine, theirs) in enumerate(zip(embeds_of(trajectory), case["aux.uncond_embeddings"], strict=True)):
        assert distance(mine, theirs) < 1e-3, i
    for mine, theirs in zip(trajectory.info["losses"], inputs["measured"]["losses_per_step"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def embeds_of(trajectory: Trajectory) -> list[torch.Tensor]:
    """The token embeddings that take the unconditional text's place, step by step."""
    return [parts["embeds"] for parts in trajectory.uncond]


def learn(bench: Any, *, model: Any = None, guidance: float = 7.5, **settings: Any) -> Any:
    fields = {} if model is None else {"model": model}
    return bench.invert(NullText(NullText.Config(**settings)), STEPS, guidance=guidance, **fields)


def test_losses_fall_and_the_way_back_comes_closer(bench: Any) -> None:
    """METHODS 7f."""
    found = learn(bench, inner_steps=4, **NEVER)
    assert [len(lost) for lost in found.info["losses"]] == [4] * STEPS
    for lost in found.info["losses"]:
        assert lost[-1] < lost[0]
    assert [tuple(text.shape) for text in embeds_of(found)] == [(1, 77, 32)] * STEPS
    assert not any(text.requires_grad for text in embeds_of(found))
    assert found.denoiser_rows == STEPS * (1 + 2 + 4)
    to_itself = Edit(bench.source, "none")
    settings = {"inner_steps": 4, **NEVER}
    mended = bench.run("null-text", to_itself, steps=STEPS, inversion_settings=settings)["edit[0]"].history
    plain = bench.run("ddim", to_itself, steps=STEPS)["edit[0]"].history
    path = found.latents.flip(0)
    assert distance(mended[1], path[1]) < distance(plain[1], path[1])
    assert distance(mended[-1], bench.x0) < distance(plain[-1], bench.x0)


def test_without_inner_steps_it_is_ddim_inversion_with_the_empty_text(bench: Any) -> None:
    """METHODS 7f."""
    one = bench.run("null-text", steps=STEPS, inversion_settings={"inner_steps": 0})
    other = bench.run("ddim", steps=STEPS)
    assert distance(one["edit[0]"].latents, other["edit[0]"].latents) < 1e-12


def test_the_step_that_ends_the_search_is_still_taken(bench: Any) -> None:
    """METHODS 7e: the loss is compared after the optimiser's step that it led to."""
    stopped = learn(bench, inner_steps=5, early_stop=1e9)
    once = learn(bench, inner_steps=1, **NEVER)
    assert [len(lost) for lost in stopped.info["losses"]] == [1] * STEPS
    empty = bench.model.encode_text("").embeds
    assert not torch.equal(embeds_of(stopped)[0], empty)
    assert all(torch.equal(a, b) for a, b in zip(embeds_of(stopped), embeds_of(once), strict=True))


def test_the_bar_for_stopping_rises_step_by_step(bench: Any) -> None:
    """METHODS 7c: step i is compared with the bar plus i 2e-5."""
    free = [lost[0] for lost in learn(bench, inner_steps=1, **NEVER).info["losses"]]
    assert free[0] < free[1] - 1e-3  # so that step 0 ends after one inner step and step 1 begins as in `free`
    for below, expected in ((1e-5, 1), (3e-5, 2)):
        losses = learn(bench, inner_steps=2, early_stop=free[1] - below).info["losses"]
        assert [len(lost) for lost in losses[:2]] == [1, expected]
        assert losses[1][0] == free[1]


def test_every_search_starts_from_the_text_before_it(bench: Any) -> None:
    rate = 1e-3
    texts = embeds_of(learn(bench, inner_steps=1, learning_rate=rate, **NEVER))
    texts = (bench.model.encode_text("").embeds, *texts)
    for i, (before, after) in enumerate(pairwise(texts)):
        step = (after - before).abs().max()  # Adam's first step has the length of its rate in every coordinate
        assert float(step) == pytest.approx(rate * (1 - i / 100), rel=1e-3)


def test_the_denoiser_is_left_as_it_was(bench: Any) -> None:
    model = tiny_model(prediction_type="v_prediction", dtype=torch.float64)
    frozen, learning = list(model.unet.parameters())[:2]
    learning.requires_grad_(True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel() * tensor.element_size()
        return tensor

    found = []
    for low_memory in (False, True):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found.append(learn(bench, model=model, inner_steps=1, low_memory=low_memory))
    one, other = found
    assert kept[1] < kept[0] / 2  # bytes that the backward passes ask for
    assert all(distance(a, b) < 1e-12 for a, b in zip(embeds_of(one), embeds_of(other), strict=True))
    assert (frozen.requires_grad, learning.requires_grad) == (False, True)
    assert learning.grad is None
    assert not model.unet.is_gradient_checkpointing


def test_texts_are_learnt_in_full_precision_for_models_in_half(bench: Any) -> None:
    session = EditSession(tiny_model(prediction_type="v_prediction", dtype=torch.bfloat16))
    ticks: list[tuple[int, int]] = []
    request = bench.request("null-text", steps=2, inversion_settings={"inner_steps": 1}, check_reconstruction=True)
    from attnctl.session import Progress

    def listen(event: Any) -> None:
        if isinstance(event, Progress) and event.stage == "inversion":
            ticks.append((event.done, event.total))

    result = session.run(request, listen)
    assert result["edit[0]"].latents.dtype == torch.bfloat16
    assert bool(torch.isfinite(result["edit[0]"].latents).all())
    assert ticks == sorted(ticks)
    assert {total for _, total in ticks} == {2 * (3 + 1)}
    assert ticks[-1] == (8, 8)


def test_an_edit_leaves_the_way_back_as_it_is(bench: Any) -> None:
    """Every lane on the path is sampled with the learnt texts, and the edit reads the source without moving it."""
    settings = {"inner_steps": 1}
    edited = bench.run("null-text", Edit(bench.target, "p2p"), steps=STEPS, inversion_settings=settings)
    back = bench.run("null-text", Edit(bench.source, "none"), steps=STEPS, inversion_settings=settings)
    assert distance(edited.source.history, back["edit[0]"].history) < 1e-9
    same = bench.run("null-text", Edit(bench.source, "p2p"), steps=STEPS, inversion_settings=settings, allow_no_op=True)
    assert distance(same["edit[0]"].latents, back["edit[0]"].latents) < 1e-9
    assert distance(edited["edit[0]"].latents, back["edit[0]"].latents) > 1e-2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source_prompt": " "}, "null-text needs a prompt that describes the picture"),
        ({"negative_prompt": "ugly"}, "--negative-prompt would have no effect"),
        ({"guidance": 1.0}, "guidance 1 never reads"),
    ],
)
def test_what_it_cannot_work_with_is_refused(bench: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench.session.plan(bench.request("null-text", **fields))


def test_a_source_without_guidance_is_refused(bench: Any) -> None:
    with pytest.raises(InputError, match="never reads"):
        learn(bench, guidance=1.0)
