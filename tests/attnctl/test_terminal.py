"""Text of strangers on a terminal: nothing in it hides, turns around, or rewrites what is shown."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnctl import terminal

HIDDEN = [
    "\u202e", "\u202d", "\u2066", "\u2067", "\u2069", "\u200e", "\u200f", "\u061c", "\u200b", "\u2060", "\ufeff",
    "\u00ad",
    "\U000e0041", "\U000e007f", "\U000e0100", "\u3164", "\u115f", "\u2800", "\u034f", "\ue000", "\uffa0", "\u180e",
]  # fmt: skip


@pytest.mark.parametrize("char", HIDDEN, ids=lambda c: f"U+{ord(c):04X}")
def test_what_shows_nothing_is_shown_as_its_code(char: str) -> None:
    assert terminal.one_line(f"a{char}b") == f"a<U+{ord(char):04X}>b"
    assert char not in terminal.quoted(char)


@pytest.mark.parametrize(
    "text",
    [
        "ein blaues Fl\u00e4schchen",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        "\U0001f469\u200d\U0001f4bb",
        "\u2764\ufe0f",
        "1\ufe0f\u20e3",
        "\u732b \u72ac",
        "\u0600\u0661",
    ],
)  # fmt: skip
def test_writing_and_pictographs_stay_as_they_are(text: str) -> None:
    assert terminal.one_line(text) == text


def test_joiners_between_latin_letters_hide() -> None:
    assert terminal.visible("pass\u200dword") == "pass<U+200D>word"
    assert terminal.visible("a\ufe0f") == "a<U+FE0F>"
    assert terminal.visible("\u200c") == "<U+200C>"


@given(st.text())
def test_nothing_that_steers_or_breaks_is_left(text: str) -> None:
    shown = terminal.one_line(text)
    joiners = "\u200c\u200d"
    assert not [c for c in shown if unicodedata.category(c) in {"Cc", "Zl", "Zp"}]
    assert not [c for c in shown if unicodedata.bidirectional(c) in {"LRO", "RLO", "LRE", "RLE", "LRI", "RLI", "FSI"}]
    assert not [
        c
        for c in shown
        if unicodedata.category(c) == "Cf" and c not in joiners and not terminal._SHOWN_FORMATS.match(c)
    ]
    assert terminal.one_line(shown) == shown


@given(st.text())
def test_json_says_the_same_and_hides_nothing(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        import io

        out = io.StringIO()
        patch.setattr("sys.stdout", out)
        terminal.show_json({"a": text})
    assert json.loads(out.getvalue()) == {"a": text}
    assert "\u202e" not in out.getvalue()
    assert not [c for c in out.getvalue() if unicodedata.category(c) == "Cc" and c != "\n"]


def test_paragraphs_and_headings_are_shown_alike(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show(terminal.plain("a\x1b[31mb\u202ec\n  d"), terminal.table(["x\u200b"], [["y\u202e"]]))
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2] == ["a [31mb<U+202E>c", "  d"]
    assert "x<U+200B>" in shown
    assert "y<U+202E>" in shown
