"""The attention algebra as data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.attend import Attend, AttendJoint, AttendSum, AttentionCall
from attnctl.branches import Branches, Row
from attnctl.errors import SelectionError
from attnctl.sites import Site
from attnctl.steps import Step


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


IMAGE = {"image": "source"}
SPLICE = Attend("source", "source", to="image", keys="image") | Attend(to="image", keys="text")


@pytest.mark.parametrize(
    ("expression", "text", "lanes"),
    [
        (Attend(IMAGE, IMAGE), "A[{image: source}, {image: source}] v[self]", {"self", "source"}),
        (
            Attend(k=({"text": "edit[1]", "image": "source"}, "source"), v=("source", "source")),
            "A[self, {text: edit[1], image: source}|source] v[source|source]",
            {"self", "source", "edit[1]"},
        ),
        (
            Attend("source", "source", "source", values="image"),
            "A[source, source] v[source of image]",
            {"source"},
        ),
        (
            Attend("source", "source", "source", 0.5, keys="image", mass=True, to="text"),
            "0.5 mass A[source, source over image] v[source] -> text",
            {"self", "source"},
        ),
        (
            0.5 * SPLICE,
            "0.5 joint(A[source, source over image] v[self] | A[self, self over text] v[self]) -> image",
            {"self", "source"},
        ),
        (
            SPLICE + Attend(q="edit[2]"),
            "joint(A[source, source over image] v[self] | A[self, self over text] v[self]) -> image "
            "+ A[edit[2], self] v[self]",
            {"self", "source", "edit[2]"},
        ),
    ],
)
def test_segments_can_be_read_and_say_their_lanes(expression: Any, text: str, lanes: set[str]) -> None:
    assert str(expression) == text
    assert expression.lanes == lanes


def test_joint_terms_are_terms() -> None:
    assert SPLICE.terms == (SPLICE,)
    total = 0.5 * (SPLICE + Attend()) + SPLICE
    assert isinstance(total, AttendSum)
    assert [t.weight for t in total.terms] == [0.5, 0.5, 1.0]
    three = Attend(keys="image") | AttendJoint((Attend("source", keys="text"),))
    assert [part.keys for part in three.parts] == ["image", "text"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attend(mass=True), "mass of keys that it does not name"),
        (lambda: Attend(keys="image", values="text"), "restricted to image keys and to text values"),
        (lambda: Attend({"imgae": "source"}), "unknown segment 'imgae'.*known are image, text"),
        (lambda: Attend(k=("self", {"words": "source"}), v=("self", "self")), "unknown segment 'words'"),
        (lambda: Attend(to="picture"), "unknown segment 'picture'"),
        (lambda: Attend() | Attend(keys="text"), r"share one softmax run over the keys \[None, 'text'\]"),
        (lambda: Attend(keys="text") | Attend(keys="text"), "share one softmax run over the keys"),
        (lambda: SPLICE | Attend(to="image", keys="text"), "share one softmax run over the keys"),
        (lambda: Attend(keys="text", to="image") | Attend(keys="image"), r"write to \['image', None\]"),
        (lambda: 2 * Attend(keys="text") | Attend(keys="image"), "has a weight, mass, mask or value map"),
        (lambda: Attend(keys="text") | Attend(keys="image", mask=torch.ones(1)), "has a weight, mass, mask"),
        (lambda: 0.5 * AttendJoint((Attend(keys="text"),)) | Attend(keys="image"), "weighted joint term"),
        (lambda: AttendJoint(()), r"over the keys \[\]"),
    ],
)
def test_what_does_not_fit_together_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message) as caught:
        make()
    assert caught.value.hint


@pytest.mark.parametrize(
    ("site", "keys", "queries", "segments"),
    [
        (Site("a", "self", "up", 0, 1, 2), 6, 6, [("image", 0, 6), ("image", 0, 6)]),
        (Site("a", "cross", "up", 0, 1, 2), 77, 6, [("image", 0, 6), ("text", 0, 77)]),
        (
            Site("a", "joint", "double", 0, 2, 2, ("image", "text")),
            16,
            16,
            [("image", 0, 6), ("text", 6, 16), ("image", 0, 6), ("text", 6, 16)],
        ),
        (
            Site("a", "joint", "single", 0, 2, 2, ("text", "image")),
            16,
            16,
            [("text", 0, 10), ("image", 10, 16), ("text", 0, 10), ("image", 10, 16)],
        ),
        (Site("a", "feature", "up", 0, 1, 0), 0, 0, []),
    ],
)
def test_a_call_says_where_its_segments_stand(site: Site, keys: int, queries: int, segments: list[Any]) -> None:
    call = AttentionCall(site, Step(0, 1, 1), Branches((Row("e", "cond"),)), (2, 3), keys, "e", "cond")
    layout = call.segments
    found = [(n, at.start, at.stop) for part in (layout.queries, layout.keys) for n, at in part.items()]
    assert found == segments
    assert call.queries == layout.query_count == queries
    assert layout.key_count == keys
    assert site.layout((2 * site.downscale, 3 * site.downscale), keys - 6 if site.kind == "joint" else keys) == layout
