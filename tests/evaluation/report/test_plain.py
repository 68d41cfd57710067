"""Reports as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from attnctl_evaluation.report import writer
from attnctl_evaluation.report.numbers import count, decimals, memory, number, seconds, span
from attnctl_evaluation.rows import Results
from attnctl_evaluation.statistics import Interval

Make = Callable[..., Path]
HOSTILE = {0: ("=cmd|' /C calc'!A0", "a | b\n# head <script> @me \\input{x} $x$ 100% [x](y) \u202e")}


@pytest.fixture(scope="module")
def run(make_run: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with hostile prompts and ids."""
    ids = {0: "-2+3_id|x", 1: "\\write18{ls}"}
    return make_run(tmp_path_factory.mktemp("plain") / "run", cases=24, size=16, prompts=HOSTILE, ids=ids)


def test_markdown_has_every_part_and_whole_tables(run: Path) -> None:
    text, _ = writer.build([run], "md")
    for head in (
        "Which method wins at what",
        "Means",
        "By edit type",
        "Is the comparison fair?",
        "Failures",
        "Provenance",
    ):
        assert f"## {head}" in text
    tables = [t.split("\n") for t in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)]
    assert len(tables) == 10
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table if line}
        assert len(widths) == 1
    assert "<script>" not in text
    assert re.search(r"\*\*[\d.]+\*\* \[", text)
    assert "    @article{none," in text


def test_latex_is_balanced_and_marks_the_best(run: Path) -> None:
    text, _ = writer.build([run], "latex")
    bare = re.sub(r"\\[{}\\]|^%.*$", "", text, flags=re.MULTILINE)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 9
    assert r"\textbf{" in text
    assert r"\underline{" in text
    for table in re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL):
        widths = {line.count("&") - line.count(r"\&") for line in table.strip().split("\n")}
        assert len(widths) == 1
    assert all(line.startswith("%") for line in text.split("\n") if "@article" in line)


def test_csv_holds_every_row_and_no_formula(run: Path) -> None:
    text, _ = writer.build([run], "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    records = Results.read(run).records
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert (row["method"], int(row["seed"]), row["status"]) == (record.method, record.seed, record.status)
        score = record.scores.get("psnr.outside")
        assert (float(row["psnr.outside"]) if row["psnr.outside"] else None) == (score.value if score else None)
    assert rows[0]["case"] == "'-2+3_id|x"
    assert rows[0]["source_prompt"].startswith("'=")
    assert rows[0]["prompt"] == HOSTILE[0][1]
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["error"] == "NoOpError" or failed["error"] == "OutOfMemoryError"
    assert any("nothing is outside the mask" in row["notes"] for row in rows)


def test_the_format_follows_the_name(tmp_path: Path) -> None:
    names = {"a.html": "html", "a.HTM": "html", "b.md": "md", "c.csv": "csv", "d.tex": "latex"}
    assert {name: writer.format_of(tmp_path / name) for name in names} == names


def interval(mean: float, half: float, cases: int = 9) -> Interval:
    return Interval(mean, mean - half, mean + half, cases, cases)


@pytest.mark.parametrize(
    ("half", "expected"), [(0.013, 3), (0.03, 2), (0.5, 1), (2.0, 1), (4.0, 0), (4000.0, 0), (1e-9, 6), (0.0, 3)]
)
def test_a_column_has_as_many_digits_as_its_intervals_carry(half: float, expected: int) -> None:
    assert decimals([interval(1.5, half), None]) == expected


def test_numbers_as_people_read_them() -> None:
    assert number(-0.25, 1) == "\u22120.2"
    assert number(-0.001, 2) == "0.00"
    assert number(1e300, 2) == "1e+300"
    assert number(None, 2) == ""
    assert span(interval(1.0, 0.5), 2) == "[0.50, 1.50]"
    assert span(interval(1.0, 0.5, cases=1), 2) == ""
    assert (seconds(3.14159), seconds(31.4159), seconds(314.159), seconds(None)) == ("3.14 s", "31.4 s", "314 s", "")
    assert (memory(2**31), memory(2**20), memory(None)) == ("2.0 GiB", "1 MiB", "")
    assert (count(1, "case"), count(2, "case"), count(1234, "row")) == ("1 case", "2 cases", "1\u202f234 rows")
