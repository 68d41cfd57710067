"""Hostile text stays text, wherever it goes."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnctl_evaluation.report import text

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "]]>",
    "line\u2028para\u2029next",
    "lone \ud800 surrogate",
    "\x00\x1b[31mred\x7f\x85",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "'\"&<>`=",
    "{{ 7*7 }}{% raw %}",
    "\U0001f469\u200d\U0001f680 \u4e2d\u6587",
)
anything = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(HOSTILE)


@given(anything)
def test_clean_text_can_be_written_and_is_its_own_clean_form(found: str) -> None:
    cleaned = text.clean(found)
    cleaned.encode("utf-8")
    assert text.clean(cleaned) == cleaned
    assert "\x00" not in cleaned
    assert "\x1b" not in cleaned


@given(st.lists(anything, max_size=4))
def test_json_in_a_script_says_the_same_and_cannot_end_it(found: list[str]) -> None:
    written = text.script_json({"texts": found, "numbers": [1, 2.5, None]})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {"texts": [text.clean(t) for t in found], "numbers": [1, 2.5, None]}


def test_numbers_that_json_has_no_sign_for_are_refused_or_spelled() -> None:
    with pytest.raises(ValueError, match="JSON"):
        text.script_json(float("nan"))
    assert '"inf"' in text.pretty_json({"a": [float("inf"), 1.0]})


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1+2", "@SUM(A1)", "\tx", " =1", "\uff1d1", "\u200b=1", "|cmd"])
def test_no_text_is_a_formula_in_a_spreadsheet(start: str) -> None:
    assert text.csv_cell(start).startswith("'")


@given(anything)
def test_csv_cells_come_back(found: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([text.csv_cell(found), "end"])
    (row,) = csv.reader(io.StringIO(buffer.getvalue(), newline=""))
    assert row[0].removeprefix("'") in (text.clean(found), text.clean(found).removeprefix("'"))
    assert row[1] == "end"


def test_numbers_are_no_formulas() -> None:
    assert text.csv_cell(-0.5) == "-0.5"
    assert text.csv_cell(None) == ""
    assert text.csv_cell(True) == "True"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("# head", r"\# head"),
        ("1. one", r"1\. one"),
        ("- item", r"\- item"),
        ("a|b", r"a\|b"),
        ("*x* _y_ `z`", r"\*x\* \_y\_ \`z\`"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("a\nb\r\n# c", "a b # c"),
        ("clip-score 0.5", "clip-score 0.5"),
        ("@someone", "&#64;someone"),
    ],
)
def test_markdown_stands_for_itself(found: str, expected: str) -> None:
    assert text.markdown(found) == expected


def test_bare_addresses_are_no_links_in_markdown() -> None:
    assert "://" not in text.markdown("see https://example.org")
    assert "www." not in text.markdown("see www.example.org")


@given(anything)
def test_latex_has_no_command_of_the_text(found: str) -> None:
    written = text.latex(found)
    for known in sorted(text._LATEX.values(), key=len, reverse=True):
        written = written.replace(known, "")
    assert not set("\\$&#%_^~") & set(written.replace("{}", ""))
    assert "\n" not in written


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("arXiv:2403.03431", "https://arxiv.org/abs/2403.03431"),
        ("https://example.org/a?b=c", "https://example.org/a?b=c"),
        ("http://example.org", ""),
        ("javascript:alert(1)", ""),
        ('https://example.org/"onclick="x', ""),
        ("https://example.org/ javascript:", ""),
        ("Some Paper, 2024", ""),
    ],
)
def test_only_plain_addresses_become_links(found: str, expected: str) -> None:
    assert text.web_address(found) == expected
