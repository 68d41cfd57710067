"""Words, tokens and how prompts line up."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnctl.errors import InputError
from attnctl.testing.tiny import tiny_tokenizer
from attnctl.testing.tiny_transformers import tiny_t5_tokenizer
from attnctl.tokens import (
    Alignment,
    PromptTokens,
    align_ids,
    align_tokens,
    align_words,
    differing_words,
    identity,
    read_prompt,
    split_words,
)


@cache
def clip_tokenizer(folder: str) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


@cache
def tiny() -> Any:
    return tiny_tokenizer()


def prompt(text: str, **options: Any) -> PromptTokens:
    return read_prompt(text, tiny(), 77, **options)


def dense(mapper: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gather indices and weights as the matrix and the own share that they stand for."""
    matrix = np.zeros((len(mapper), len(mapper)), np.float32)
    matrix[mapper, np.arange(len(mapper))] = kept
    return matrix, 1 - kept


# -- the reference code's tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [False, True])
def test_word_positions_are_the_reference_codes(golden: Any, published: bool) -> None:
    inputs, _ = golden.case("unit_p2p_alignment")
    tokenizer = clip_tokenizer(str(golden.folder / "model" / "tokenizer"))
    for case in inputs["word_indices"]:
        found = read_prompt(case["text"], tokenizer, 77, published=published).find(case["word"])
        assert list(found) == case["indices"], case


def test_ids_and_pieces_are_the_reference_codes(golden: Any) -> None:
    inputs, _ = golden.case("unit_text")
    tokenizer = clip_tokenizer(str(golden.folder / "model" / "tokenizer"))
    for text in inputs["prompts"]:
        found = read_prompt(text, tokenizer, 77)
        assert list(found.ids) == inputs["ids"][text], text
        assert list(found.pieces) == inputs["token_strings"][text], text


@pytest.mark.parametrize("kind", ["replace", "refine"])
def test_alignments_are_the_reference_codes(golden: Any, kind: str) -> None:
    inputs, tables = golden.case("unit_p2p_alignment")
    tokenizer = clip_tokenizer(str(golden.folder / "model" / "tokenizer"))
    same = 0
    for i, pair in enumerate(inputs[kind]):
        for published in (True, False):
            source, target = (read_prompt(p, tokenizer, 77, published=published) for p in pair)
            table = tables[f"out.{kind}.{i}.mapper"].numpy()
            if kind == "replace":
                found = align_words(source, target, published=published)
                expected = table, np.zeros(77, np.float32)
            else:
                found = align_tokens(source, target, published=published)
                expected = dense(table, tables[f"out.{kind}.{i}.alphas"].numpy())
            if published:
                assert np.array_equal(found.matrix, expected[0]), pair
                assert np.array_equal(found.own, expected[1]), pair
            else:
                same += np.array_equal(found.matrix, expected[0])
    # The fixed rule differs where the last replaced word has another length, and where the source is longer.
    assert same == {"replace": 5, "refine": 9}[kind]


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_word_has_its_tokens_wherever_it_stands() -> None:
    found = prompt("a tiger and a tiger, on grass")
    assert found.words == ("a", "tiger", "and", "a", "tiger,", "on", "grass")
    assert found.find("tiger") == (2, 3, 4, 5, 6)
    assert found.find("tiger,") == found.find(4) == found.find("4") == (9, 10, 11, 12, 13, 14)
    assert found.word_at(4) == "tiger"
    assert (found.word_at(0), found.word_at(17), found.word_at(60)) == ("", "", "")


def test_a_double_space_shifts_the_published_rule_alone() -> None:
    text = "a  cat running"
    assert (prompt(text).find("cat"), prompt(text).find("running")) == ((2,), (3,))
    published = prompt(text, published=True)
    assert (published.find("cat"), published.find("running")) == ((3,), ())


def test_words_behind_the_end_have_no_tokens() -> None:
    long = prompt("cat " * 80 + "dog")
    assert len(long.ids) == 77
    assert max(p for found in long.positions for p in found) == 75
    assert long.find("dog") == ()
    with pytest.raises(InputError, match="no token among the 77"):
        long.require("dog")
    for table in (align_words(long, long), align_tokens(long, long)):
        assert np.array_equal(table.matrix, np.eye(77))


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("casual", "its words are casual,, ", "did you mean 'casual,'"),
        ("A", "has no word 'A'", "did you mean 'a'"),
        (7, "has 3 words, so there is no word 7", "count from 0"),
        ("7", "has 3 words, so there is no word 7", "count from 0"),
        (-1, "there is no word -1", "count from 0"),
    ],
)
def test_a_word_that_is_not_there_shows_those_that_are(word: Any, message: str, hint: str) -> None:
    found = prompt("a casual, cat")
    assert found.find(word) == ()
    with pytest.raises(InputError, match=message) as caught:
        found.require(word)
    assert hint in caught.value.hint


# -- alignments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([0, 1, 2, 9], [0, 1, 3, 9], [0, 1, -1, 3]),
        ([0, 5, 5, 7, 9], [0, 5, 7, 5, 7, 9], [0, 1, -1, 2, 3, 4]),  # METHODS 2.3: "a a cat" -> "a cat a cat"
        ([0, 9], [0, 1, 2, 3, 9], [0, -1, -1, -1, 1]),
        ([0, 1, 2, 9], [0, 9], [0, 3]),
        ([], [1], [-1]),
    ],
)
def test_ids_are_aligned_as_specified(source: list[int], target: list[int], expected: list[int]) -> None:
    assert align_ids(source, target) == expected


ids = st.lists(st.integers(0, 5), max_size=12)


@given(ids, ids)
def test_an_alignment_pairs_equal_tokens_in_order_and_as_many_as_possible(source: list[int], target: list[int]) -> None:
    found = align_ids(source, target)
    pairs = [(i, j) for j, i in enumerate(found) if i >= 0]
    assert all(source[i] == target[j] for i, j in pairs)
    assert pairs == sorted(pairs)
    assert len({i for i, _ in pairs}) == len(pairs)
    longest = np.zeros((len(source) + 1, len(target) + 1), int)
    for i, a in enumerate(source):
        for j, b in enumerate(target):
            longest[i + 1, j + 1] = max(longest[i, j] + (a == b), longest[i, j + 1], longest[i + 1, j])
    assert len(pairs) == longest[-1, -1]


texts = st.lists(st.sampled_from(["a", "cat", "dog", "tiger", "striped", "zebra,", "on"]), min_size=1, max_size=8)


@given(texts, texts)
def test_fixed_alignments_lose_no_attention_word_for_word(one: list[str], other: list[str]) -> None:
    size = min(len(one), len(other))
    source, target = prompt(" ".join(one[:size])), prompt(" ".join(other[:size]))
    found = align_words(source, target)
    assert np.allclose(found.matrix.sum(1), 1)
    for s, t, a, b in zip(source.positions, target.positions, source.words, target.words, strict=True):
        if len(s) == len(t) or a != b:
            assert np.allclose(found.matrix[np.ix_(s, t)].sum(0), len(s) / len(t))


@given(texts, texts)
def test_fixed_padding_reads_padding(one: list[str], other: list[str]) -> None:
    source, target = prompt(" ".join(one)), prompt(" ".join(other))
    found = align_tokens(source, target)
    assert np.array_equal(found.matrix.sum(0), 1 - found.own)
    assert not found.matrix[: len(source.ids), len(target.ids) :].any()


@given(texts)
def test_equal_prompts_are_the_identity(words: list[str]) -> None:
    both = prompt(" ".join(words))
    tables: list[Alignment] = [identity(both, both)]
    for published in (False, True):
        tables += [align_words(both, both, published=published), align_tokens(both, both, published=published)]
    for table in tables:
        assert np.array_equal(table.matrix, np.eye(77))
        assert not table.own.any()


def test_word_for_word_needs_as_many_words() -> None:
    with pytest.raises(InputError, match=r"found 2 in 'a cat' and 3 in 'a big cat'"):
        align_words(prompt("a cat"), prompt("a big cat"))


# -- what changed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a red car on a road", "a blue car on a road", (("red",), ("blue",))),
        ("a cat on grass", "a cat on the snow", (("grass",), ("snow",))),
        ("a cat", "a silver cat", (("cat",), ("silver", "cat"))),
        ("a fluffy cat", "a cat", (("fluffy", "cat"), ("cat",))),
        ("a car", "a car at night", (("car",), ("night", "car"))),
        ("a cat sits", "a silver cat sculpture sits", (("cat",), ("silver", "cat", "sculpture"))),
        ("a cat", "the cat", ((), ())),
        ("a cat", "a cat", ((), ())),
    ],
)
def test_what_a_change_of_words_changes_is_proposed(source: str, target: str, expected: tuple[Any, Any]) -> None:
    assert differing_words(prompt(source), prompt(target)) == expected


# -- scripts without spaces, models without a start token, learned vectors ---------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("一只红色的猫", ["一", "只", "红", "色", "的", "猫"]),
        ("a 红猫 on grass", ["a", "红", "猫", "on", "grass"]),
        ("赤いネコが走る。", ["赤", "い", "ネコ", "が", "走", "る", "。"]),
        ("แมวสีแดง", ["แมวสีแดง"]),
        ("빨간 고양이", ["빨간", "고양이"]),
        ("a red cat, sitting", ["a", "red", "cat,", "sitting"]),
        ("красный кот", ["красный", "кот"]),
    ],
)
def test_words_of_scripts_without_spaces(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_words_of_scripts_without_spaces_own_their_tokens(golden: Any) -> None:
    tokenizer = clip_tokenizer(str(golden.folder / "model" / "tokenizer"))
    found = read_prompt("一只红色的猫", tokenizer, 77)
    owned = [p for positions in found.positions for p in positions]
    assert sorted(set(owned)) == list(range(1, len(found.ids) - 1))
    assert all(found.positions)
    assert found.find("红色") == (*found.find("红"), *found.find("色"))
    assert found.find("色红") == ()
    with pytest.raises(InputError, match="has no word '狗'"):
        found.require("狗")


def test_texts_without_a_start_token_are_read_from_the_first_position() -> None:
    tokenizer = tiny_t5_tokenizer()
    found = read_prompt("a red cat", tokenizer, 12)
    raw = tokenizer("a red cat").input_ids
    assert list(found.ids) == raw
    assert found.words == ("a", "red", "cat")
    assert found.find("a")[0] == 0
    owned = [p for positions in found.positions for p in positions]
    assert owned == list(range(len(raw) - 1))  # all but the end token
    strange = read_prompt("a ☃ cat", tokenizer, 12)
    assert strange.find("☃")
    assert strange.find("cat")
    assert set(strange.find("☃")).isdisjoint(strange.find("cat"))


def test_cut_texts_without_a_start_token_keep_their_end() -> None:
    tokenizer = tiny_t5_tokenizer()
    found = read_prompt(" ".join(["cat"] * 40), tokenizer, 8)
    assert len(found.ids) == 8
    assert found.ids[-1] == tokenizer.eos_token_id
    assert max(p for positions in found.positions for p in positions) == 6


def test_a_placeholder_owns_all_its_vectors() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<one>"])
    for text in ("a <toy> on grass", "a <toy> <toy>_1 <toy>_2 on grass"):
        found = read_prompt(text, tokenizer, 77)
        assert found.words == ("a", "<toy>", "on", "grass")
        assert found.find("<toy>") == (2, 3, 4)
        assert found.find("grass") == (6,)
    assert read_prompt("a <one> on grass", tokenizer, 77).find("grass") == (4,)
    twice = read_prompt("<toy> and <toy>", tokenizer, 77)
    assert twice.find("<toy>") == (1, 2, 3, 5, 6, 7)


def test_words_that_are_the_same_tokens_do_not_differ() -> None:
    assert differing_words(prompt("A Red Cat"), prompt("a red dog")) == (("Cat",), ("dog",))
    assert differing_words(prompt("a red cat"), prompt("A RED cat")) == ((), ())
