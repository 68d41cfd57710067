"""The clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnctl.errors import SelectionError
from attnctl.steps import Step, When, compact_range

fractions = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize(
    ("when", "count", "expected"),
    [
        (When(), 4, [0, 1, 2, 3]),
        (When(0, 0.8), 50, list(range(40))),
        (When(0, 0.29), 100, list(range(28))),  # 0.29 * 100 is 28.999999999999996: truncated, as the papers' codes do
        (When(0.2, 0.6), 10, [2, 3, 4, 5]),
        (When(0, 0), 50, []),
        (When(1, 1), 50, []),
        (When(0, 0.05), 10, []),
        (When(steps=frozenset({7, 2, 99})), 10, [2, 7]),
        (When(steps=frozenset()), 10, []),
    ],
)
def test_windows_truncate_as_the_papers_do(when: When, count: int, expected: list[int]) -> None:
    assert list(when.indices(count)) == expected
    assert [i for i in range(count) if Step(i, count, 1) in when] == expected


@given(a=fractions, b=fractions, count=st.integers(1, 200))
def test_adjacent_windows_share_no_step_and_leave_none_out(a: float, b: float, count: int) -> None:
    low, high = sorted((a, b))
    parts = [When(0, low).indices(count), When(low, high).indices(count), When(high, 1).indices(count)]
    assert [i for part in parts for i in part] == list(range(count))


@pytest.mark.parametrize("bounds", [(-0.1, 0.5), (0.5, 1.1), (0.6, 0.5), (float("nan"), 1), (0, float("inf"))])
def test_fractions_out_of_order_or_range_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(SelectionError, match="0 <= start <= stop <= 1"):
        When(*bounds)


def test_negative_indices_are_refused() -> None:
    with pytest.raises(SelectionError, match="0 or more"):
        When(steps=frozenset({3, -1}))


def test_windows_say_what_they_are() -> None:
    assert str(When(0, 0.8)) == "[0, 0.8)"
    assert str(When(steps=frozenset({5, 1, 2, 3}))) == "steps 1-3, 5"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), "none"), ((4,), "4"), ((2, 3), "2-3"), ((2, 3, 4, 9), "2-4, 9"), ((1, 3, 5), "1, 3, 5")],
)
def test_ranges_are_written_short(numbers: tuple[int, ...], text: str) -> None:
    assert compact_range(numbers) == text


@given(st.sets(st.integers(0, 60)))
def test_what_is_written_short_can_be_read_back(numbers: set[int]) -> None:
    text = compact_range(sorted(numbers))
    back: set[int] = set()
    for part in text.split(", ") if text != "none" else []:
        low, _, high = part.partition("-")
        back.update(range(int(low), int(high or low) + 1))
    assert back == numbers
