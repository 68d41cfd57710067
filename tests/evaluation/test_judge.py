"""The judge sees what renders show, and says nothing about pictures of the wrong shape."""

import random

import numpy as np
import pytest
import torch

from attnctl_evaluation.judge import WEIGHTS, Judge
from attnctl_evaluation.world import Scene, Thing, edit, object_mask, random_scene, render


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def pictures(scenes):
    return torch.from_numpy(np.stack([np.asarray(render(s)) for s in scenes])).permute(0, 3, 1, 2) / 255


def test_held_out_renders_are_judged_right(judge):
    rng = random.Random(2024)
    scenes = [random_scene(rng, held_out=True) for _ in range(150)]
    result = judge.judge(pictures(scenes))
    right = {"object": [], "colour": [], "pattern": []}
    overlaps = []
    for i, scene in enumerate(scenes):
        for thing, finding in zip(scene.things, result.findings[i], strict=False):
            for name, hits in right.items():
                hits.append(getattr(thing, name) == getattr(finding, name))
        truth = torch.from_numpy(object_mask(scene))
        overlaps.append(float((truth & result.mask[i]).sum() / (truth | result.mask[i]).sum()))
    for name, hits in right.items():
        assert np.mean(hits) >= 0.96, name
    assert np.mean([b == s.background for b, s in zip(result.background, scenes, strict=True)]) >= 0.98
    assert np.mean([len(f) == len(s.things) for f, s in zip(result.findings, scenes, strict=True)]) >= 0.97
    assert np.mean(overlaps) > 0.88


def test_it_follows_an_edit_of_a_colour(judge):
    scene = Scene("road", (Thing("car", "red", x=0.5, y=0.85, size=0.6),))
    before, after = judge.judge(pictures([scene, edit(scene, colour="blue")])).findings
    assert (before[0].colour, after[0].colour) == ("red", "blue")
    assert (before[0].object, after[0].object) == ("car", "car")


def test_other_sizes_keep_their_masks_size(judge):
    result = judge.judge(torch.rand(2, 3, 96, 160))
    assert result.masks.shape == (2, 2, 96, 160)
    assert result.masks.dtype == torch.bool
    assert len(result.findings) == 2


def test_neighbouring_shades_count_only_when_asked(judge):
    scene = Scene("grass", (Thing("ball", "black", size=0.6),))
    finding = judge.judge(pictures([scene])).findings[0][0]
    assert finding.has_colour("black")
    assert not finding.has_colour("chocolate")
    assert finding.has_colour("chocolate", tolerant=True)


def test_wrong_shapes_are_named(judge):
    with pytest.raises(ValueError, match=r"\(3, 64, 64\)"):
        judge.judge(torch.rand(3, 64, 64))


def test_the_weights_are_small():
    assert WEIGHTS.stat().st_size < 2_000_000
