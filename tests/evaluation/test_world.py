"""The drawn world: exact edits, determinism and the held-out split."""

import random

import numpy as np
import pytest

from attnctl_evaluation.world import (
    BACKGROUNDS,
    COLOURS,
    NEIGHBOURS,
    OBJECTS,
    PATTERNS,
    Scene,
    Thing,
    change_mask,
    edit,
    is_held_out,
    object_mask,
    random_scene,
    render,
)
from attnctl_evaluation.world.colours import distances


def scenes(count, seed=0, **options):
    rng = random.Random(seed)
    return [random_scene(rng, **options) for _ in range(count)]


def spread(mask):
    """Grow a mask by one pixel in all eight directions."""
    return np.any([np.roll(mask, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)


def test_the_world_has_what_the_papers_sets_need():
    assert len(OBJECTS) >= 12
    assert len(COLOURS) == 28
    assert len(PATTERNS) == 3
    assert len(BACKGROUNDS) >= 6
    assert (distances() + 1000 * np.eye(28)).min() > 20


def test_the_same_seed_gives_the_same_pictures():
    first, second = scenes(5, seed=3), scenes(5, seed=3)
    assert first == second
    assert [render(s).tobytes() for s in first] == [render(s).tobytes() for s in second]
    assert render(first[0]).size == (128, 128)


@pytest.mark.parametrize("seed", range(20))
def test_a_colour_edit_changes_the_object_and_nothing_else(seed):
    scene = random_scene(random.Random(seed), two=0.5)
    colour = next(c for c in COLOURS if c not in {t.colour for t in scene.things})
    after = edit(scene, colour=colour)
    changed = change_mask(scene, after)
    inside = object_mask(scene, 0)
    assert changed.any()
    # One pixel around the mask may hold a part of the outline.
    grown = spread(inside)
    assert not (changed & ~grown).any()


@pytest.mark.parametrize("seed", range(10))
def test_a_background_edit_leaves_the_object(seed):
    scene = random_scene(random.Random(seed))
    after = edit(scene, background=next(b for b in BACKGROUNDS if b != scene.background))
    changed = change_mask(scene, after)
    inside = object_mask(scene, 0)
    # Pixels on the rim are partly background.
    shrunk = ~spread(~inside)
    assert changed[~inside].mean() > 0.5
    assert not (changed & shrunk).any()


def test_an_object_edit_keeps_place_and_size():
    scene = Scene("road", (Thing("car", "red", x=0.4, y=0.8, size=0.5),))
    after = edit(scene, object="boat")
    assert (after.main.x, after.main.y, after.main.size) == (0.4, 0.8, 0.5)
    assert after.main.object == "boat"


def test_objects_are_large_inside_and_apart():
    for scene in scenes(200, two=0.5):
        for thing in scene.things:
            left, top, right, bottom = thing.box
            assert left >= 0
            assert top >= 0
            assert right <= 1
            assert bottom <= 1
            assert thing.size >= 0.35
        if len(scene.things) == 2:
            assert not (object_mask(scene, 0) & object_mask(scene, 1)).any()
            assert scene.things[0].object != scene.things[1].object


def test_the_colour_covers_the_object():
    for name in OBJECTS:
        scene = Scene("grass", (Thing(name, "magenta", size=0.5, y=0.9),))
        pixels = np.asarray(render(scene))[object_mask(scene)]
        share = (np.abs(pixels.astype(int) - COLOURS["magenta"]).max(axis=1) < 12).mean()
        assert share > 0.3, name


def test_held_out_combinations_never_appear_in_training():
    training = scenes(400, held_out=False)
    kept = scenes(100, seed=1, held_out=True)
    assert not any(is_held_out(s) for s in training)
    assert all(is_held_out(s) for s in kept)
    share = sum(is_held_out(s) for s in scenes(1500, seed=2, two=0)) / 1500
    assert 0.06 < share < 0.14


def test_neighbours_are_the_nearest_shades():
    assert all(len(n) == 2 and word not in n for word, n in NEIGHBOURS.items())
    assert "chocolate" in NEIGHBOURS["black"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Thing("zebra", "red"), "zebra"),
        (lambda: Thing("car", "mauve"), "mauve"),
        (lambda: Thing("car", "red", "checked"), "checked"),
        (lambda: Thing("car", "red", size=0.0), "size"),
        (lambda: Scene("moon", (Thing("car", "red"),)), "moon"),
        (lambda: Scene("sea", ()), "0"),
        (lambda: edit(Scene("sea", (Thing("car", "red"),)), hue="red"), "hue"),
    ],
)
def test_unknown_words_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
