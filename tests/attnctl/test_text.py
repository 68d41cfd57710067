"""Encoded prompts with named parts."""

from __future__ import annotations

import torch

from attnctl.text import Text


def text(seed: int, *, images: int = 0) -> Text:
    g = torch.Generator().manual_seed(seed)
    parts = {"embeds": torch.randn(1, 5, 3, generator=g), "pooled": torch.randn(1, 4, generator=g)}
    return Text(f"text {seed}", parts, tuple(torch.randn(1, 2, generator=g) for _ in range(images)))


def test_texts_are_the_same_if_every_part_is() -> None:
    one = text(0, images=1)
    assert one.same_as(text(0, images=1))
    assert one.length == 5
    for name in one.parts:
        assert not one.reworded({name: one.parts[name] + 1e-6}).same_as(one)
    assert not one.same_as(text(0, images=2))
    assert not Text("", {"embeds": one.embeds}).same_as(Text("", dict(one.parts)))


def test_a_function_goes_over_all_parts_and_leaves_images() -> None:
    one, other = text(0, images=1), text(1, images=1)
    half = one.map(lambda a, b: (a + b) / 2, other)
    for name in one.parts:
        assert torch.equal(half.parts[name], (one.parts[name] + other.parts[name]) / 2)
    assert half.images is one.images


def test_exchanged_parts_take_the_type_of_what_was_there() -> None:
    one = text(0).map(lambda part: part.to(torch.bfloat16))
    changed = one.reworded({"embeds": torch.zeros(1, 5, 3), "unknown": torch.zeros(1)}, prompt="new")
    assert changed.embeds.dtype == torch.bfloat16
    assert changed.parts.keys() == one.parts.keys()
    assert changed.parts["pooled"] is one.parts["pooled"]
    assert (changed.prompt, one.prompt) == ("new", "text 0")
