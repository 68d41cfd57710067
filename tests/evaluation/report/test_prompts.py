"""What changes between two prompts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from attnctl_evaluation.report.prompts import Part, difference

words = st.lists(st.sampled_from(["a", "red", "blue", "car,", "on", "\u5c71", "  ", "it's"]), max_size=12).map(" ".join)


def joined(parts: list[Part]) -> str:
    return "".join(text for _, text in parts)


@given(words | st.text(max_size=30), words | st.text(max_size=30))
def test_the_parts_give_the_prompts_back(source: str, target: str) -> None:
    before, after = difference(source, target)
    assert before is not None
    assert joined(before) == source
    assert joined(after) == target
    assert {kind for kind, _ in before} <= {"same", "gone"}
    assert {kind for kind, _ in after} <= {"same", "new"}
    assert joined([p for p in before if p[0] == "same"]) == joined([p for p in after if p[0] == "same"])


def test_the_changed_word_alone_is_marked() -> None:
    before, after = difference("a red car, parked", "a blue car, parked")
    assert before == [("same", "a "), ("gone", "red"), ("same", " car, parked")]
    assert after == [("same", "a "), ("new", "blue"), ("same", " car, parked")]


def test_a_changed_phrase_is_one_part() -> None:
    before, after = difference("a boat on a road", "a boat in the desert")
    assert before == [("same", "a boat "), ("gone", "on a road")]
    assert after == [("same", "a boat "), ("new", "in the desert")]


def test_without_a_source_prompt_nothing_is_new() -> None:
    assert difference(None, "a car") == (None, [("same", "a car")])
    assert difference("a car", "a car") == ([("same", "a car")], [("same", "a car")])


def test_scripts_without_spaces_are_compared_by_character() -> None:
    before, after = difference("\u7ea2\u8272\u6c7d\u8f66", "\u84dd\u8272\u6c7d\u8f66")
    assert before == [("gone", "\u7ea2"), ("same", "\u8272\u6c7d\u8f66")]
    assert after[0] == ("new", "\u84dd")


def test_very_long_prompts_take_no_time() -> None:
    before, after = difference("word " * 5000, "other " * 5000)
    assert (before or [])[0][0] == "gone"
    assert after[0][0] == "new"
