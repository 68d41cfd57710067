"""What a summary says of rows whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from attnctl.errors import InputError
from attnctl_evaluation.rows import DatasetEntry, Header, MethodEntry, Results, Row, RowScore, Timing
from attnctl_evaluation.statistics import MIN_CASES, costs, summarise

CARDS = {
    "up": {"id": "up@1", "better": "higher"},
    "down": {"id": "down@1", "better": "lower"},
    "flat": {"id": "flat@1", "better": "neither"},
}


def row(
    case: int, method: str, *, seed: int = 0, status: str = "ok", kind: str = "x", **scores: float | str | None
) -> Row:
    given = {n: RowScore(value=None, reason=v) if isinstance(v, str) else RowScore(value=v) for n, v in scores.items()}
    return Row.model_validate({
        "case": f"c{case}", "method": method, "seed": seed, "status": status, "edit_type": kind, "source_prompt": None,
        "prompt": "p", "real": False, "scores": {k: v.model_dump() for k, v in given.items()},
        "cards": {n: f"{n}@1" for n in given}, "rows": {"edit": 10},
    })  # fmt: skip


def results(rows: list[Row], methods: Sequence[str] = ("base", "other"), cases: int = 20, seeds: int = 1) -> Results:
    header = Header(
        dataset=DatasetEntry(spec="d", name="d", fingerprint="f", cases=cases, edit_types={"x": cases - 5, "y": 5}),
        methods=[MethodEntry(label=m, folder=m, method=m) for m in methods],
        baseline=methods[0], seeds=list(range(seeds)), columns=["up", "down", "flat"], cards=CARDS,
    )  # fmt: skip
    return Results(folder=Path(), header=header, records=rows)


def test_means_counts_and_wins() -> None:
    rows = [row(n, "base", up=float(n), down=1.0, flat=0.0) for n in range(20)]
    rows += [row(n, "other", up=n + 1.0, down=2.0, flat=0.0) for n in range(20)]
    found = summarise(results(rows))
    up, down, flat = (found.cells["other", c] for c in ("up", "down", "flat"))
    assert up.interval is not None
    assert up.interval.mean == pytest.approx(10.5)
    assert up.count == 20
    assert up.win is not None
    assert (up.win.wins, up.win.ties, up.win.losses, up.win.rate) == (20, 0, 0, 1.0)
    assert down.win is not None
    assert down.win.rate == 0.0
    assert flat.win is None
    assert found.cells["base", "up"].win is None
    assert (up.mark, down.mark, flat.mark) == ("best", "second", "")
    assert (found.cells["base", "up"].mark, found.cells["base", "down"].mark) == ("second", "best")
    assert found.better == {"up": "higher", "down": "lower", "flat": "neither"}


def test_rows_that_failed_are_counted_and_pair_with_nothing() -> None:
    rows = [row(n, "base", up=1.0) for n in range(10)]
    rows += [row(n, "other", status="failed" if n < 4 else "ok", **({} if n < 4 else {"up": 2.0})) for n in range(9)]
    rows += [row(9, "other", status="missing")]
    found = summarise(results(rows))
    counts = found.rows["other"]
    assert (counts.ok, counts.failed, counts.missing, counts.pending) == (5, 4, 1, 10)
    win = found.cells["other", "up"].win
    assert win is not None
    assert win.pairs == 5


def test_missing_numbers_are_counted_by_reason() -> None:
    rows = [row(0, "base", up="no mask", down=1.0), row(1, "base", up="no mask", down=float("inf")), row(2, "base")]
    convention = row(3, "base").model_copy(
        update={"scores": {"up": RowScore(value=100.0, reason="identical pictures")}, "cards": {"up": "up@1"}}
    )
    other_card = row(4, "base", up=3.0).model_copy(update={"cards": {"up": "up@2"}})
    found = summarise(results([*rows, convention, other_card]))
    cell = found.cells["base", "up"]
    assert cell.missing == {"no mask": 2, "not measured": 1, "measured by another card, up@2": 1}
    assert cell.conventions == {"identical pictures": 1}
    assert cell.count == 1
    assert found.cells["base", "down"].missing["not a finite number"] == 1


def test_an_edit_type_alone() -> None:
    rows = [row(n, "base", up=float(n), kind="y" if n < 5 else "x") for n in range(20)]
    found = summarise(results(rows), edit_type="y", columns=["up"])
    interval = found.cells["base", "up"].interval
    assert interval is not None
    assert (interval.mean, interval.count, found.rows["base"].pending) == (2.0, 5, 0)
    with pytest.raises(InputError, match="unknown edit type 'z'"):
        summarise(results(rows), edit_type="z")
    with pytest.raises(InputError, match="unknown column 'upp'"):
        summarise(results(rows), columns=["upp"])


def test_what_cannot_be_told_apart_shares_the_mark() -> None:
    methods = ("base", "near", "far")
    rows = []
    for n in range(30):
        noise = ((n * 7) % 11 - 5) / 10
        rows += [row(n, "base", up=5.0), row(n, "near", up=5.0 + noise), row(n, "far", up=1.0 + noise)]
    found = summarise(results(rows, methods, cases=30))
    assert [found.cells[m, "up"].mark for m in methods] == ["best", "best", "second"]


def test_nobody_leads_where_all_are_alike_or_cases_are_few() -> None:
    alike = [row(n, m, up=float(n % 5)) for n in range(20) for m in ("base", "other")]
    few = [row(n, m, up=1.0 if m == "base" else 2.0) for n in range(MIN_CASES - 1) for m in ("base", "other")]
    for rows in (alike, few):
        found = summarise(results(rows))
        assert {found.cells[m, "up"].mark for m in ("base", "other")} == {""}


def test_a_method_with_numbers_for_few_of_its_rows_is_not_ranked() -> None:
    rows = [row(n, "base", up=1.0) for n in range(20)]
    rows += [row(n, "other", up=2.0 if n < 9 else "no mask") for n in range(20)]
    found = summarise(results(rows))
    assert found.cells["other", "up"].mark == ""
    rows[-11:] = [row(n, "other", up=2.0) for n in range(9, 20)]
    assert summarise(results(rows)).cells["other", "up"].mark == "best"


def test_seeds_of_a_case_stay_together() -> None:
    once = [row(n, "base", up=float(n)) for n in range(20)]
    thrice = [row(n, "base", seed=s, up=float(n)) for n in range(20) for s in range(3)]
    one = summarise(results(once)).cells["base", "up"].interval
    three = summarise(results(thrice, seeds=3)).cells["base", "up"].interval
    assert one is not None
    assert three is not None
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert (three.count, three.cases) == (60, 20)


def test_costs_are_means_over_rows_with_a_picture() -> None:
    rows = [row(0, "base"), row(1, "base"), row(2, "base", status="failed")]
    found = results(rows)
    timings = [
        Timing(case=f"c{n}", method="base", seed=0, seconds={"inversion": 1.0, "edit": float(n)}, peak_memory_bytes=n)
        for n in range(3)
    ]
    cost = costs(found.model_copy(update={"timings": {t.key: t for t in timings}}))
    assert cost["base"].seconds is not None
    assert cost["base"].seconds.mean == pytest.approx(1.5)
    assert cost["base"].peak_memory_bytes == 1
    assert (cost["base"].denoiser_rows, cost["base"].stages) == (10, {"edit": 10})
    assert (cost["other"].seconds, cost["other"].denoiser_rows, cost["other"].peak_memory_bytes) == (None, None, None)
