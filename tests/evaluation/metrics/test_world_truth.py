"""Ground-truth metrics of the drawn world, with a judge that knows the exact scenes, and with the real one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from attnctl.dataset import Case
from attnctl.metric import Sample, Score, UnavailableError
from attnctl_evaluation import judge as judging
from attnctl_evaluation.datasets.microbench import Microbench, scene_of
from attnctl_evaluation.judge import Finding, JudgeResult
from attnctl_evaluation.metrics import world
from attnctl_evaluation.metrics.world import AttributeAccuracy, Leakage, MaskIoU
from attnctl_evaluation.world import NEIGHBOURS, Scene, object_mask, render

SIDE = 64


def tensor(scene: Scene) -> torch.Tensor:
    return torch.from_numpy(np.asarray(render(scene, SIDE)).copy()).permute(2, 0, 1) / 255


def perfect(*scenes: Scene) -> Callable[[torch.Tensor], JudgeResult]:
    """A judge who knows these scenes by their pixels."""
    known = {tensor(s).numpy().tobytes(): s for s in scenes}

    def look(picture: torch.Tensor) -> JudgeResult:
        scene = known[picture.numpy().tobytes()]
        findings = tuple(Finding(t.object, t.colour, t.pattern, 1.0) for t in scene.things)
        masks = [torch.from_numpy(object_mask(scene, i, SIDE).copy()) for i in range(len(scene.things))]
        masks += [torch.zeros(SIDE, SIDE, dtype=torch.bool)] * (2 - len(masks))
        return JudgeResult((findings,), (scene.background,), torch.stack(masks)[None])

    return look


def cases(**settings: object) -> list[Case]:
    return list(Microbench(Microbench.Config(**{"per_type": 3, "sources": "rendered", **settings})).cases())


def sample_of(case: Case, edited: Scene, *, generated: bool = False) -> Sample:
    before = scene_of(case.facts["before"])
    mask = None if generated else torch.from_numpy(case.mask((SIDE, SIDE)))
    truth = None if generated else tensor(scene_of(case.facts["after"]))
    return Sample(tensor(edited), case.prompt, tensor(before), case.source_prompt, mask, truth, case.facts)


def judged(kind: type, case: Case, edited: Scene, *, generated: bool = False, **settings: object) -> Score:
    metric = kind(kind.Config(**settings))
    metric.look = perfect(scene_of(case.facts["before"]), scene_of(case.facts["after"]), edited)
    return metric.score([sample_of(case, edited, generated=generated)])[0]


@pytest.mark.parametrize("generated", [False, True])
def test_the_exact_edit_has_everything_right(generated: bool) -> None:
    for case in cases():
        after = scene_of(case.facts["after"])
        for which in ("all", "edited", "kept"):
            assert judged(AttributeAccuracy, case, after, generated=generated, which=which) == Score(1.0), case.id


@pytest.mark.parametrize("generated", [False, True])
def test_no_edit_at_all_keeps_everything_and_edits_nothing(generated: bool) -> None:
    for case in cases():
        before = scene_of(case.facts["before"])
        assert judged(AttributeAccuracy, case, before, generated=generated, which="edited").value == 0.0, case.id
        assert judged(AttributeAccuracy, case, before, generated=generated, which="kept") == Score(1.0), case.id
        assert 0 < judged(AttributeAccuracy, case, before, generated=generated).value < 1


def test_shares_count_attributes() -> None:
    case = next(c for c in cases() if c.edit_type == "change-colour" and len(c.facts["after"]["things"]) == 1)
    after = scene_of(case.facts["after"])
    shade = after.replace_attribute(0, colour=NEIGHBOURS[after.main.colour][0])
    assert judged(AttributeAccuracy, case, shade, which="edited") == Score(0.0)
    assert judged(AttributeAccuracy, case, shade, which="edited", tolerant=True) == Score(1.0)
    elsewhere = after.replace_attribute(0, background="sea" if after.background != "sea" else "snow")
    # background, count, object, colour, pattern, place: one of six is wrong.
    assert judged(AttributeAccuracy, case, elsewhere).value == pytest.approx(5 / 6)
    assert judged(AttributeAccuracy, case, elsewhere, which="kept").value == pytest.approx(4 / 5)


def test_overlap_with_the_exact_objects() -> None:
    for case in cases():
        after, before = scene_of(case.facts["after"]), scene_of(case.facts["before"])
        assert judged(MaskIoU, case, after) == Score(1.0)
        if case.edit_type == "change-pose":
            assert judged(MaskIoU, case, before).value < 0.7
        assert judged(MaskIoU, case, after, generated=True) == Score(None, "no truth")


def test_leakage_is_the_change_of_the_other_object() -> None:
    seen = set()
    for case in cases(per_type=6):
        before, after = scene_of(case.facts["before"]), scene_of(case.facts["after"])
        exact = judged(Leakage, case, after)
        if exact.value is None:
            assert exact.reason == "no other object"
            continue
        seen.add(case.edit_type)
        assert exact.value == 0.0, case.id
        index = next(
            new for _, new in case.facts["things"] if not any(e.startswith(f"{new}.") for e in case.facts["edited"])
        )
        other = after.replace_attribute(index, colour="lime" if after.things[index].colour != "lime" else "red")
        assert judged(Leakage, case, other).value > 10
        assert judged(Leakage, case, other, generated=True).value > 10
        assert judged(Leakage, case, before) == Score(0.0)
    assert {"add-object", "delete-object", "change-colour", "change-object", "change-material"} <= seen


def test_other_worlds_have_no_value() -> None:
    picture = torch.rand(3, SIDE, SIDE)
    other = Sample(picture, "x", picture, "y", None, picture, {"some": "thing"})
    for kind in (AttributeAccuracy, MaskIoU, Leakage):
        assert kind().score([other, dataclasses.replace(other, facts={})]) == [
            Score(None, "not of the drawn world"),
            Score(None, "no facts"),
        ]


def test_without_the_judge_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    world._judge.cache_clear()
    monkeypatch.setattr(judging, "WEIGHTS", tmp_path / "no.safetensors")
    for kind in (AttributeAccuracy, MaskIoU, Leakage):
        with pytest.raises(UnavailableError, match="judge is not in this installation"):
            kind().card()
    world._judge.cache_clear()


def test_the_real_judge_reads_exact_drawings() -> None:
    if not judging.WEIGHTS.is_file():
        pytest.skip("the judge's weights are not in this checkout: the real judge cannot be tried")
    found = []
    for case in cases(per_type=5):
        after = scene_of(case.facts["after"])
        size = (128, 128)
        pictures = [
            torch.from_numpy(np.asarray(p(size)).copy()).permute(2, 0, 1) / 255 for p in (case.truth, case.picture)
        ]
        given = Sample(pictures[0], case.prompt, pictures[1], case.source_prompt, None, pictures[0], case.facts)
        found.append(AttributeAccuracy().score([given])[0].value)
        assert after is not None
    assert sum(found) / len(found) > 0.9
    assert AttributeAccuracy().card().weights_sha256
