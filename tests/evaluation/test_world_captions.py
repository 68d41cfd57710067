"""Captions of scenes."""

import random

from attnctl_evaluation.world import COLOURS, Scene, Thing, caption, plain_caption, random_scene, vocabulary

SCENE = Scene("road", (Thing("car", "red", "striped"),))


def test_plain_captions():
    assert plain_caption(SCENE) == "a red striped car on a road"
    assert plain_caption(SCENE, background=False) == "a red striped car"
    pair = Scene("grass", (Thing("car", "orange", x=0.25, size=0.4), Thing("ball", "blue", x=0.75, size=0.4)))
    assert plain_caption(pair) == "an orange car and a blue ball on grass"


def test_the_grammar_varies_and_leaves_things_out():
    rng = random.Random(0)
    texts = {caption(SCENE, rng) for _ in range(3000)}
    assert len(texts) > 100
    assert "a red striped car" in texts
    assert any(t.startswith("a photo of") for t in texts)
    assert any(t.startswith("a road with") for t in texts)
    assert any("automobile" in t for t in texts)
    assert any("red" not in t for t in texts)
    assert any("road" not in t and "street" not in t for t in texts)


def test_the_set_of_the_fpe_paper_can_be_said():
    rng = random.Random(0)
    for colour in COLOURS:
        scene = Scene("road", (Thing("car", colour),))
        article = "an" if colour[0] in "aeiou" else "a"
        assert f"{article} {colour} car" in {caption(scene, rng) for _ in range(800)}


def test_every_word_is_in_the_vocabulary():
    rng, words = random.Random(1), set(vocabulary())
    for _ in range(2000):
        assert set(caption(random_scene(rng), rng).split()) <= words
