"""Settings that go by word, and their tables."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from attnctl.errors import InputError
from attnctl.testing.tiny import tiny_tokenizer
from attnctl.tokens import PromptTokens, read_prompt
from attnctl_plugins.words import (
    alpha_table,
    equalizer,
    read_by_word,
    read_word_pair,
    token_windows,
    tokens_of,
    window,
)


@cache
def clip_tokenizer(folder: str) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def prompt(text: str) -> PromptTokens:
    return read_prompt(text, tiny_tokenizer(), 77)


def test_schedules_are_the_reference_codes(golden: Any) -> None:
    inputs, tables = golden.case("unit_p2p_alignment")
    tokenizer = clip_tokenizer(str(golden.folder / "model" / "tokenizer"))
    for i, case in enumerate(inputs["cross_replace_alpha"]):
        schedule = case["cross_replace_steps"]
        if isinstance(schedule, dict):
            schedule = {word: tuple(b) if isinstance(b, list) else b for word, b in schedule.items()}
        elif isinstance(schedule, list):
            schedule = tuple(schedule)
        target = read_prompt(case["prompts"][1], tokenizer, 77)
        found = alpha_table(token_windows(schedule, target), case["num_steps"])
        assert np.array_equal(found, tables[f"out.alpha.{i}"].numpy()), case


def test_equalizers_are_the_reference_codes(golden: Any) -> None:
    inputs, tables = golden.case("unit_p2p_alignment")
    tokenizer = clip_tokenizer(str(golden.folder / "model" / "tokenizer"))
    for i, case in enumerate(inputs["equalizer"]):
        target = read_prompt(case["text"], tokenizer, 77)
        found = equalizer(dict(zip(case["words"], case["values"], strict=True)), target)
        assert np.array_equal(found[None], tables[f"out.equalizer.{i}"].numpy()), case


@pytest.mark.parametrize(("fraction", "steps", "rows"), [(0.4, 50, 20), (0.8, 50, 40), (1.0, 50, 51), (0.8, 10, 8)])
def test_a_fraction_takes_the_published_number_of_rows(fraction: float, steps: int, rows: int) -> None:
    table = alpha_table(token_windows(fraction, prompt("a cat")), steps)
    assert table.shape == (steps + 1, 77)
    assert (table.sum(0) == rows).all()
    assert table[:rows].all()


def test_words_overwrite_the_default_in_order() -> None:
    target = prompt("a tiger on grass")
    windows = token_windows({"default_": 0.5, "tiger": (0.2, 0.7), "a": 0.1, "grass": 0.0}, target)
    assert windows[2].tolist() == windows[6].tolist() == [0.2, 0.7]
    assert windows[1].tolist() == [0.0, 0.1]
    assert windows[8].tolist() == [0.0, 0.0]
    assert windows[0].tolist() == windows[76].tolist() == [0.0, 0.5]
    assert token_windows({"grass": 0.3}, target)[1].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bounds", [(0.5, 0.2), (-0.1, 0.5), 1.5, (0.0, float("nan"))])
def test_windows_that_make_no_sense_are_refused(bounds: Any) -> None:
    with pytest.raises(ValueError, match="0 <= start <= stop <= 1"):
        window(bounds)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lion:0.4", {"lion": 0.4}),
        ("default_:1 lion:0.2,0.6", {"default_": 1.0, "lion": (0.2, 0.6)}),
        ("casual,:2", {"casual,": 2.0}),
        ("a:b:-1.5", {"a:b": -1.5}),
        ("lion", "lion"),
        ("lion:much", "lion:much"),
        (":3", ":3"),
        ("", ""),
    ],
)
def test_values_by_word_are_read(text: str, expected: Any) -> None:
    assert read_by_word(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("cat > tiger", (("cat",), ("tiger",))),
        ("cat > silver cat", (("cat",), ("silver", "cat"))),
        ("grass", (("grass",), ("grass",))),
        ([["cat"], ["tiger"]], [["cat"], ["tiger"]]),
    ],
)
def test_pairs_of_words_are_read(value: Any, expected: Any) -> None:
    assert read_word_pair(value) == expected


def test_missing_words_are_errors_or_collected() -> None:
    found = prompt("a cat on grass")
    assert tokens_of(["grass", "cat"], found) == (2, 4)
    with pytest.raises(InputError, match="no word 'dog': its words are "):
        tokens_of(["cat", "dog"], found)
    skipped: list[str] = []
    assert tokens_of(["cat", "dog"], found, skipped) == (2,)
    assert skipped == ["dog"]
