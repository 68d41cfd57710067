"""Captions of scenes: a small grammar with synonyms, word orders and omissions."""

from __future__ import annotations

import random

from attnctl_evaluation.world.colours import COLOURS
from attnctl_evaluation.world.scene import Scene, Thing

NAMES: dict[str, tuple[str, ...]] = {
    "car": ("car", "car", "car", "automobile"),
    "house": ("house", "house", "home"),
    "tree": ("tree",),
    "fish": ("fish",),
    "boat": ("boat", "boat", "ship"),
    "flower": ("flower", "flower", "blossom"),
    "mushroom": ("mushroom",),
    "ball": ("ball",),
    "star": ("star",),
    "heart": ("heart",),
    "cat": ("cat", "cat", "kitten"),
    "bird": ("bird",),
}
"""Words for each object; the first is the plain one, a repeated word is drawn more often."""

PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "striped": ("striped", "striped", "with stripes"),
    "dotted": ("dotted", "spotted", "with dots"),
}

PLACES: dict[str, tuple[str, ...]] = {
    "grass": ("on grass", "on the grass", "in a meadow"),
    "snow": ("in the snow", "on snow", "in snow"),
    "sea": ("at sea", "on the sea", "in the sea"),
    "desert": ("in the desert", "in a desert"),
    "night": ("at night", "in the night"),
    "road": ("on a road", "on the road", "on a street"),
}
"""Phrases for each background; the first is the plain one."""

NOUNS: dict[str, str] = {
    "grass": "a meadow", "snow": "snow", "sea": "the sea", "desert": "a desert", "night": "night", "road": "a road",
}  # fmt: skip

OPENINGS: tuple[str, ...] = ("a photo of", "a picture of", "a drawing of", "an image of")


def article(words: str) -> str:
    """Put "a" or "an" before words."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _describe(thing: Thing, rng: random.Random, *, alone: bool) -> str:
    name = rng.choice(NAMES[thing.object])
    # A colour that is left out teaches the model that "a car" may have any colour. A pattern that
    # shows is always said, so that silence means plain.
    colour = "" if rng.random() < 0.1 else thing.colour
    before, after = "", ""
    if thing.pattern == "plain":
        before = "plain" if rng.random() < 0.15 else ""
    else:
        word = rng.choice(PATTERN_WORDS[thing.pattern])
        before, after = ("", " " + word) if " " in word else (word, "")
    parts = [colour, before] if rng.random() < 0.6 else [before, colour]
    if alone and rng.random() < 0.12:
        parts.insert(0, "big" if thing.size > 0.58 else "small" if thing.size < 0.5 else "")
    return article(" ".join(p for p in [*parts, name] if p)) + after


def caption(scene: Scene, rng: random.Random) -> str:
    """Write one of the many captions of a scene.

    Args:
        scene: The scene to describe.
        rng: Source of chance.

    Returns:
        Lower-case English without a full stop, for example "a photo of a red striped car on a road".
    """
    alone = len(scene.things) == 1
    phrases = [_describe(thing, rng, alone=alone) for thing in scene.things]
    if alone:
        body = phrases[0]
        if rng.random() < 0.1:
            x = scene.main.x
            body += " on the left" if x < 0.42 else " on the right" if x > 0.58 else " in the middle"
    elif rng.random() < 0.2:
        body = f"{phrases[0]} next to {phrases[1]}"
    else:
        body = f"{phrases[0]} and {phrases[1]}"
    kind = rng.random()
    if kind < 0.2:
        text = body
    elif kind < 0.85:
        text = f"{body} {rng.choice(PLACES[scene.background])}"
    else:
        text = f"{NOUNS[scene.background]} with {body}"
        return text if rng.random() < 0.8 else f"{rng.choice(OPENINGS)} {text}"
    return f"{rng.choice(OPENINGS)} {text}" if rng.random() < 0.3 else text


def plain_caption(scene: Scene, *, background: bool = True) -> str:
    """Write the plainest full caption of a scene, the same every time.

    Args:
        scene: The scene to describe.
        background: Whether to name the background.

    Returns:
        For example "a red striped car on a road".
    """
    phrases = []
    for thing in scene.things:
        words = [thing.colour, *([] if thing.pattern == "plain" else [thing.pattern]), thing.object]
        phrases.append(article(" ".join(words)))
    text = " and ".join(phrases)
    return f"{text} {PLACES[scene.background][0]}" if background else text


def vocabulary() -> tuple[str, ...]:
    """Give every word that the grammar can say, sorted."""
    texts = [*COLOURS, "plain", "big", "small", "a an and next to with", "on the left right in middle"]
    for group in (NAMES, PATTERN_WORDS, PLACES):
        for phrases in group.values():
            texts.extend(phrases)
    texts.extend([*NOUNS.values(), *OPENINGS])
    return tuple(sorted({word for text in texts for word in text.split()}))
