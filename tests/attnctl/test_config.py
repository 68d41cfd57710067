"""Settings from what users type."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from attnctl.config import build_config, describe_fields, parse_assignments, shown
from attnctl.errors import InputError
from attnctl.method import MethodConfig


class Config(MethodConfig):
    share: float = Field(0.8, ge=0, le=1, description="A fraction.")
    layers: tuple[int, ...] | None = Field(None, description="Layers.")
    word: str = Field("a", description="A word.")
    sure: bool = Field(False, description="Whether.")
    mode: Literal["near", "far"] = Field("near", description="Which way.")
    weights: dict[str, float] = Field({}, description="By word.")
    words: tuple[str, ...] = Field((), description="Some words.")
    scale: float = Field(1.0, gt=0, description="Any positive number.")

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.sure and self.share == 0:
            raise ValueError("sure needs a share above 0")
        return self


def build(**settings: Any) -> Config:
    made = build_config(Config, settings, owner="mine")
    assert isinstance(made, Config)
    return made


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("share", "0.5", 0.5),
        ("share", "1", 1.0),
        ("layers", "4", (4,)),
        ("layers", "4,5, 6", (4, 5, 6)),
        ("layers", "[4,5]", (4, 5)),
        ("layers", "4-7", (4, 5, 6, 7)),
        ("layers", "2, 4-6", (2, 4, 5, 6)),
        ("layers", "none", None),
        ("layers", "None", None),
        ("layers", "null", None),
        ("word", "5", "5"),
        ("word", "none", "none"),
        ("word", "null", "null"),
        ("word", '"quoted"', "quoted"),
        ("word", "a b", "a b"),
        ("sure", "true", True),
        ("sure", "yes", True),
        ("sure", "0", False),
        ("mode", "far", "far"),
        ("weights", '{"car": 2}', {"car": 2.0}),
        ("words", '["a", "b"]', ("a", "b")),
    ],
)
def test_text_becomes_the_fields_type(name: str, text: str, value: Any) -> None:
    assert getattr(build(**{name: text}), name) == value


@given(st.sets(st.integers(0, 99), min_size=1))
def test_layers_written_short_are_read_back(layers: set[int]) -> None:
    from attnctl.steps import compact_range

    assert build(layers=compact_range(sorted(layers))).layers == tuple(sorted(layers))


@given(st.floats(0, 1))
def test_numbers_are_read_back_exactly(share: float) -> None:
    assert build(share=repr(share)).share == share


def test_typed_values_are_taken_as_they_are() -> None:
    assert build(layers=(1, 2), share=0.25).layers == (1, 2)
    assert build() == Config()


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"share": "1.5"}, "mine: share=1.5 is not allowed: input should be less than or equal to 1", "A fraction."),
        ({"share": "NaN"}, "share=NaN is not allowed", "A fraction."),
        ({"scale": "0"}, "scale=0 is not allowed", "positive"),
        ({"share": "much"}, "share=much is not allowed: input should be a valid number", "A fraction."),
        ({"layers": "a,b"}, "layers=a,b is not allowed", "Layers."),
        ({"layers": "1.5"}, "layers=1.5 is not allowed", "Layers."),
        ({"mode": "left"}, "mode=left is not allowed: input should be 'near' or 'far'", "Which way."),
        ({"sure": "perhaps"}, "sure=perhaps is not allowed", "Whether."),
        ({"shares": "1"}, "unknown setting of mine 'shares': known are share", "did you mean 'share'?"),
        ({"share": "0", "sure": "true"}, "mine: sure needs a share above 0", "share"),
    ],
)
def test_what_is_not_allowed_is_said_with_what_is(settings: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        build(**settings)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert "\n" not in f"{caught.value}{caught.value.hint}"


def test_settings_of_what_has_none_are_refused() -> None:
    with pytest.raises(InputError, match="unknown setting of none 'a': there are none"):
        build_config(MethodConfig, {"a": 1}, owner="none")


def test_assignments_are_split_at_the_first_equals_sign() -> None:
    assert parse_assignments(["a=1", " b = x = y "]) == {"a": "1", "b": "x = y"}
    assert parse_assignments(["a=1", "a=2"]) == {"a": "2"}
    for wrong in ("a", "=1", ""):
        with pytest.raises(InputError, match="--set takes name=value"):
            parse_assignments([wrong])


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(Exception, match="frozen"):
        build().share = 0.1


def test_every_field_is_described_for_tables() -> None:
    rows = {row["name"]: row for row in describe_fields(Config)}
    assert set(rows) == set(Config.model_fields)
    assert rows["share"] == {
        "name": "share",
        "default": "0.8",
        "range": "number >= 0 and <= 1",
        "description": "A fraction.",
    }
    assert rows["mode"]["range"] == "near, far"
    assert rows["layers"]["default"] == "none"
    assert rows["scale"]["range"] == "number > 0"
    assert rows["sure"] == {"name": "sure", "default": "false", "range": "true or false", "description": "Whether."}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"blue": 0.4, "car": (0.2, 0.6)}, "blue:0.4 car:0.2,0.6"),
        ((("red",), ("light", "blue")), "red > light blue"),
        ({}, "{}"),
        ((), ""),
        (None, "none"),
    ],
)
def test_values_by_word_are_shown_as_they_are_written(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_field_may_say_itself_what_it_allows() -> None:
    class Config(MethodConfig):
        odd: int = Field(1, ge=0, json_schema_extra={"allowed": "odd numbers"}, description="A number.")

    assert describe_fields(Config)[0]["range"] == "odd numbers"
