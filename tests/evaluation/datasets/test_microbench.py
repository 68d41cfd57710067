"""The drawn world's own data set."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from attnctl.dataset import Case
from attnctl_evaluation.datasets.edit_types import EDIT_TYPES
from attnctl_evaluation.datasets.microbench import Microbench, scene_of
from attnctl_evaluation.world import is_held_out, object_mask, vocabulary


def cases(**settings: object) -> list[Case]:
    return list(Microbench(Microbench.Config(**settings)).cases())


@pytest.fixture(scope="module")
def many() -> list[Case]:
    return cases(per_type=4)


def test_every_type_has_as_many_rendered_as_generated_sources(many: list[Case]) -> None:
    assert Counter(case.edit_type for case in many) == dict.fromkeys(EDIT_TYPES, 8)
    assert Counter(case.real for case in many) == {True: 40, False: 40}
    assert len({case.id for case in many}) == len(many)
    assert all(re.fullmatch(r"[a-z0-9-]+", case.id) for case in many)


def test_the_same_settings_give_the_same_cases_and_a_larger_set_holds_the_smaller() -> None:
    small, large = cases(), cases(per_type=2)
    assert [c.as_dict() for c in small] == [c.as_dict() for c in cases()]
    known = {c.id: c.as_dict() for c in large}
    assert all(known[c.id] == c.as_dict() for c in small)
    assert {c.prompt for c in cases(seed=1)} != {c.prompt for c in small}
    assert all(c.real for c in cases(sources="rendered"))


def test_sources_were_never_trained_on(many: list[Case]) -> None:
    assert all(is_held_out(scene_of(case.facts["before"])) for case in many)
    trained = [is_held_out(scene_of(c.facts["before"])) for c in cases(per_type=4, held_out=False)]
    assert not all(trained)


def test_prompts_are_in_the_words_that_the_model_knows(many: list[Case]) -> None:
    known = set(vocabulary())
    for case in many:
        assert set(f"{case.source_prompt} {case.prompt}".split()) <= known
        assert case.source_prompt != case.prompt


def test_what_changes_is_what_the_facts_say(many: list[Case]) -> None:
    """Compares both scenes attribute by attribute, through the pairs of things that are in both."""
    for case in many:
        before, after = scene_of(case.facts["before"]), scene_of(case.facts["after"])
        found = {"background"} if before.background != after.background else set()
        if len(before.things) != len(after.things):
            found.add("count")
        old = {b: a for a, b in case.facts["things"]}
        for i, thing in enumerate(after.things):
            if i not in old:
                found |= {f"{i}.object", f"{i}.colour", f"{i}.pattern"}
                continue
            was = before.things[old[i]]
            found |= {f"{i}.{n}" for n in ("object", "colour", "pattern") if getattr(was, n) != getattr(thing, n)}
            if (was.x, was.y, was.size) != (thing.x, thing.y, thing.size):
                found.add(f"{i}.place")
        assert found == set(case.facts["edited"]), case.id


def test_things_stay_inside_the_picture(many: list[Case]) -> None:
    for case in many:
        for scene in (scene_of(case.facts["before"]), scene_of(case.facts["after"])):
            for thing in scene.things:
                assert all(0 <= edge <= 1 for edge in thing.box), (case.id, thing.box)


def test_outside_the_mask_source_and_truth_are_the_same_picture(many: list[Case]) -> None:
    for case in (c for c in many if c.real):
        source, truth, mask = case.picture((64, 64)), case.truth((64, 64)), case.mask((64, 64))
        same = (np.asarray(source) == np.asarray(truth)).all(axis=-1)
        assert mask.shape == (64, 64)
        assert mask.any()
        assert (same == ~mask).all()


def test_the_mask_of_a_colour_edit_lies_on_the_object() -> None:
    for case in (c for c in cases(per_type=4, sources="rendered") if c.edit_type == "change-colour"):
        index = int(case.facts["edited"][0][0])
        thing = object_mask(scene_of(case.facts["after"]), index)
        assert not (case.mask(None) & ~thing).sum() > 0.02 * thing.sum()
        assert (case.mask(None) & thing).sum() > 0.3 * thing.sum()


def test_generated_sources_have_facts_but_no_picture(many: list[Case]) -> None:
    for case in (c for c in many if not c.real):
        assert case.picture is None
        assert case.mask is None
        assert case.truth is None
        assert case.facts["after"]


def test_pictures_come_in_any_size() -> None:
    case = cases(sources="rendered")[0]
    assert case.picture(None).size == (128, 128)
    assert case.picture((32, 48)).size == (48, 32)
    assert case.mask((32, 48)).shape == (32, 48)
    with pytest.raises(ValueError, match="no scene"):
        scene_of({"things": []})
