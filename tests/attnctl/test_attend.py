"""The attention algebra as data."""

from __future__ import annotations

import pytest
import torch

from attnctl.attend import Attend, AttendSum
from attnctl.errors import SelectionError


def test_a_bare_term_is_plain_attention() -> None:
    assert str(Attend()) == "A[self, self] v[self]"
    assert len(Attend().terms) == 1
    assert Attend().lanes == {"self"}


def test_terms_add_and_scale() -> None:
    a, b = Attend(q="source", k="source"), Attend(v="edit[1]")
    total = 0.25 * (a + b) * 2 + b
    assert isinstance(total, AttendSum)
    assert [t.weight for t in total.terms] == [0.5, 0.5, 1.0]
    assert [t.q for t in total.terms] == ["source", "self", "self"]
    assert total.lanes == {"self", "source", "edit[1]"}
    assert (2 * a * 0.5).weight == 1.0
    assert [t.weight for t in (a + (b + a)).terms] == [1.0, 1.0, 1.0]


def test_terms_do_not_change_when_scaled() -> None:
    term = Attend()
    _ = term * 3.0
    assert term.weight == 1.0


def test_several_lanes_can_be_joined_if_keys_and_values_agree_in_number() -> None:
    joined = Attend(k=("source", "self"), v=("source", "self"))
    assert joined.key_lanes == joined.value_lanes == ("source", "self")
    with pytest.raises(SelectionError, match="2 key lanes meet 1 value lanes"):
        Attend(k=("source", "self"), v="self")


def test_expressions_can_be_read() -> None:
    term = Attend(
        q="source", k=("source", "self"), v=("self", "self"), weight=0.5, value_map=torch.ones(2), mask=torch.ones(1, 2)
    )
    assert str(term) == "0.5 A[source, source|self] masked T v[self|self]"
    assert str(Attend() + Attend(q="source", k="source")) == "A[self, self] v[self] + A[source, source] v[self]"
