"""Several runs in one report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attnctl.errors import InputError
from attnctl_evaluation.report.contents import collect
from attnctl_evaluation.report.joining import read_runs, seeds_of
from attnctl_evaluation.rows import RECORDS_NAME, Results
from attnctl_evaluation.statistics import Draws

Make = Callable[..., Path]
FEW = ("clip-score", "psnr.outside")


def test_one_run_is_as_it_was(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", columns=FEW, size=16)
    joined = read_runs([folder])
    assert joined.results.records == Results.read(folder).records
    assert set(joined.places.values()) == {folder}
    assert joined.notes == []


def test_labels_of_two_runs_differ(make_run: Make, tmp_path: Path) -> None:
    a = make_run(tmp_path / "a" / "run", methods=("none", "fpe"), columns=FEW, size=16)
    b = make_run(tmp_path / "b" / "run", methods=("none", "p2p"), columns=FEW, size=16, seeds=(0, 1))
    joined = read_runs([a, b])
    header = joined.results.header
    assert [m.label for m in header.methods] == ["none", "fpe", "none (run 2)", "p2p"]
    assert [run.name for run in joined.runs] == ["run", "run 2"]
    assert header.baseline == "none"
    assert header.columns == list(FEW)
    assert seeds_of(joined) == {"none": 1, "fpe": 1, "none (run 2)": 2, "p2p": 2}
    assert joined.places["case-0000", "p2p", 1] == b
    assert ("case-0000", "none (run 2)", 1) in joined.results.timings
    assert joined.notes == ["none of the run run 2 is shown as none (run 2)."]
    contents = collect(joined, draws=Draws(samples=20))
    assert all(counts.pending == 0 for counts in contents.summary.rows.values())
    assert any("differ in the seeds" in sentence for sentence in contents.fairness)


def test_other_data_are_refused(make_run: Make, tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", cases=2, columns=FEW, size=16)
    b = make_run(tmp_path / "b", cases=3, columns=FEW, size=16)
    with pytest.raises(InputError, match="over different data: 'synthetic/full' with 2 cases") as caught:
        read_runs([a, b])
    assert "one report for each" in caught.value.hint


def test_a_run_named_twice_is_refused(make_run: Make, tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", cases=2, columns=FEW, size=16)
    with pytest.raises(InputError, match="named twice"):
        read_runs([a, tmp_path / "." / "a"])
    with pytest.raises(InputError, match="needs a run"):
        read_runs([])


def test_another_metric_of_the_same_name_gets_its_own_column(make_run: Make, tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", columns=FEW, size=16)
    cards = {name: {**card, "id": f"{name}@other"} for name, card in Results.read(a).header.cards.items()}
    b = make_run(tmp_path / "b", methods=("other",), columns=FEW, size=16, header={"cards": cards, "baseline": "other"})
    text = (b / RECORDS_NAME).read_text(encoding="utf-8")
    for name in FEW:
        text = text.replace(Results.read(a).header.cards[name]["id"], f"{name}@other")
    (b / RECORDS_NAME).write_text(text, encoding="utf-8")
    joined = read_runs([a, b])
    assert joined.results.header.columns == [*FEW, "clip-score (b)", "psnr.outside (b)"]
    summary = collect(joined, draws=Draws(samples=20)).summary
    assert summary.cells["other", "clip-score (b)"].count
    assert not summary.cells["other", "clip-score"].count


def test_parts_of_one_comparison_become_one(make_run: Make, tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, columns=FEW, size=16) for name in "ab")
    lines = (a / RECORDS_NAME).read_bytes().splitlines(keepends=True)
    (a / RECORDS_NAME).write_bytes(b"".join(lines[:20]))
    (b / RECORDS_NAME).write_bytes(b"".join(lines[20:]))
    joined = read_runs([a, b])
    assert len(joined.results.header.methods) == 4
    assert len(joined.results.records) == len(lines)
    assert joined.notes == ["The runs a and b are parts of one comparison and are shown as one."]
