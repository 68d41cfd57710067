"""What a request may ask for: refused in one line and at once, before anything of that size is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl import budget
from attnctl.errors import InputError, ModelError
from attnctl.request import Edit, EditRequest, Sampling
from attnctl.testing import tiny_model


@pytest.mark.parametrize(
    "found",
    [
        {"steps": budget.MAX_STEPS + 1}, {"steps": 10**18}, {"steps": 10**5000},
        {"size": (100_000, 64)}, {"size": (64, budget.MAX_SIDE + 8)}, {"size": (budget.MAX_SIDE, budget.MAX_SIDE)},
        {"size": (10**9, 10**9)}, {"size": (10**4000, 8)}, {"negative_prompt": "a" * (budget.MAX_PROMPT + 1)},
    ],
    ids=lambda found: next(iter(found)),
)  # fmt: skip
def test_sampling_beyond_the_budget(found: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at most") as caught:
        Sampling(**found)
    assert len(caught.value.message) < 200
    assert caught.value.hint


def test_the_limits_themselves_are_allowed() -> None:
    Sampling(steps=budget.MAX_STEPS, size=(4096, 4096), negative_prompt="a" * budget.MAX_PROMPT)
    Sampling(size=(budget.MAX_SIDE, 2048))


def test_prompts_and_edits_beyond_the_budget() -> None:
    long = "a" * (budget.MAX_PROMPT + 1)
    for edits, source in (((Edit(long, "none"),), "a"), ((Edit("a", "none"),), long)):
        with pytest.raises(InputError, match="length of a prompt"):
            EditRequest(edits, source_prompt=source)
    with pytest.raises(InputError, match="number of edits"):
        EditRequest((Edit("a", "none"),) * (budget.MAX_EDITS + 1), source_prompt="a")


def test_a_model_that_asks_for_huge_pictures_is_stopped_at_the_same_place() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="longer side"):
        model.latent_size((10**6, 8))
    with pytest.raises(InputError, match="number of steps"):
        model.schedule("ddim", 10**9)
    pixels = torch.zeros(1).expand(3, 10**6, 64)  # takes no memory itself
    from attnctl.session import EditSession

    with pytest.raises(InputError, match="longer side"):
        EditSession(model).run(EditRequest((Edit("a", "none"),), pixels=pixels))


def test_the_class_of_the_error_is_the_callers() -> None:
    with pytest.raises(ModelError, match="layers is 1000000, at most 5"):
        budget.within("the number of layers", 10**6, 5, hint="x", error=ModelError)
    budget.within("the number of layers", 5, 5, hint="x")
