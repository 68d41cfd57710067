"""The drawn world's own CLIP: caption and picture of a scene that it never saw find each other."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from attnctl_evaluation.metrics.clip_models import MICRO, encoder
from attnctl_evaluation.world import Scene, plain_caption, random_scene, render

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_retrieval_among_a_hundred_held_out_scenes() -> None:
    rng, scenes = random.Random(2024), dict[str, Scene]()
    while len(scenes) < 100:
        scene = random_scene(rng, held_out=True)
        scenes[plain_caption(scene)] = scene
    clip = encoder("open_clip", MICRO, "", False, "cpu")
    pictures = [torch.from_numpy(np.asarray(render(s)).copy()).permute(2, 0, 1) / 255 for s in scenes.values()]
    cosines = torch.stack([clip.image(p) for p in pictures]) @ torch.stack([clip.text(t) for t in scenes]).T
    right = torch.arange(100)
    assert (cosines.argmax(dim=1) == right).float().mean() >= 0.95
    assert (cosines.argmax(dim=0) == right).float().mean() >= 0.95
