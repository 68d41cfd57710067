"""What a comparison found: per method and column the mean with its interval, what is missing, and who leads.

Tables in the terminal and in reports are made from a `Summary`; it is computed from records alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from attnctl.errors import unknown
from attnctl.metric import Better
from attnctl_evaluation.bootstrap import Draws, Interval, WinRate, mean_interval, rank_correlation, win_rate
from attnctl_evaluation.rows import Results, Row

__all__ = [
    "MARK_RULE",
    "MIN_CASES",
    "Cell",
    "Cost",
    "Counts",
    "Draws",
    "Interval",
    "Summary",
    "WinRate",
    "costs",
    "direction",
    "mean_interval",
    "rank_correlation",
    "summarise",
    "win_rate",
]

Mark = Literal["", "best", "second"]
CaseSeed = tuple[str, int]
"""Case and seed: what rows of different methods have in common."""

MIN_CASES = 8
"""Fewer cases than this carry no mark."""

MARK_RULE = (
    "Best is the best mean, together with every method that the paired bootstrap (over the cases that both have, drawn "
    "with replacement, 95 %, not corrected for the number of comparisons) cannot tell from it; second is found in the "
    "same way among the rest. Nothing is marked where no method can be told from the best, or in a column without a "
    f"direction. A method with numbers for less than half of what it tried, or for fewer than {MIN_CASES} cases, is "
    "not ranked."
)
"""The rule of the marks, for legends."""


@dataclass(frozen=True)
class Cell:
    """One method in one column.

    Attributes:
        interval: Mean and interval; None without any number.
        missing: Among rows with a picture, why there is no number, counted.
        conventions: Numbers that a degenerate case got by convention, counted by convention.
        win: Paired win rate against the baseline; None for the baseline itself, without direction, or without pairs.
        mark: Whether it leads, by `MARK_RULE`.
    """

    interval: Interval | None
    missing: Mapping[str, int] = field(default_factory=dict)
    conventions: Mapping[str, int] = field(default_factory=dict)
    win: WinRate | None = None
    mark: Mark = ""

    @property
    def count(self) -> int:
        """Number of values."""
        return self.interval.count if self.interval else 0


@dataclass(frozen=True)
class Counts:
    """How many rows of a method ended how.

    Attributes:
        ok: With a picture.
        failed: Tried, without success.
        missing: Not tried, since the case's picture is not there.
        pending: Not in the records: the run was not finished.
    """

    ok: int = 0
    failed: int = 0
    missing: int = 0
    pending: int = 0


@dataclass(frozen=True)
class Summary:
    """What a comparison, or its part of one edit type, found.

    Attributes:
        methods: Labels in the order of tables.
        columns: Headings in the order of tables.
        baseline: The label that win rates compare with.
        better: Direction per column.
        cells: By label and heading, all pairs.
        rows: Counts by label.
        edit_type: Which part it is; None: all.
        level: Probability mass of the intervals.
    """

    methods: Sequence[str]
    columns: Sequence[str]
    baseline: str
    better: Mapping[str, Better]
    cells: Mapping[tuple[str, str], Cell]
    rows: Mapping[str, Counts]
    edit_type: str | None = None
    level: float = 0.95


@dataclass(frozen=True)
class Cost:
    """What a method costs per row.

    Attributes:
        seconds: Of making a picture, scoring not counted; None where it was not measured.
        denoiser_rows: Rows that the denoiser was run on; None where it is unknown.
        stages: Mean denoiser rows by stage.
        peak_memory_bytes: Largest peak; None where it was not measured.
    """

    seconds: Interval | None
    denoiser_rows: float | None
    stages: Mapping[str, float]
    peak_memory_bytes: int | None


@dataclass
class _Column:
    """Numbers of one method in one column, by row."""

    values: dict[CaseSeed, float] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    conventions: Counter[str] = field(default_factory=Counter)


def direction(results: Results, column: str) -> Better:
    """Return which direction of a column is better, by its card; ``neither`` where the card does not say."""
    found = results.header.cards.get(column, {}).get("better")
    return found if found in ("higher", "lower") else "neither"


def summarise(
    results: Results,
    *,
    columns: Sequence[str] | None = None,
    edit_type: str | None = None,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    draws: Draws | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Summary:
    """Summarise a comparison.

    A number measured by another metric card than the header's does not count; it is among the missing, with a reason.

    Args:
        results: The run.
        columns: Headings to summarise; by default all of the header's.
        edit_type: Take only cases of this edit type.
        samples: Number of bootstrap resamples.
        level: Probability mass of the intervals.
        seed: Seed of the draws.
        draws: All three at once, to share them among calls.
        seeds: Number of seeds that each method was to run with, by label; by default the header's, for all.

    Raises:
        InputError: A heading or the edit type is not there.
    """
    header = results.header
    names = list(header.columns if columns is None else columns)
    for name in names:
        if name not in header.columns:
            raise unknown("column", name, header.columns)
    if edit_type is not None and edit_type not in header.dataset.edit_types:
        raise unknown("edit type", edit_type, header.dataset.edit_types)
    draws = draws or Draws(samples, level, seed)
    records = {r.key: r for r in results.records if edit_type is None or r.edit_type == edit_type}
    labels = [m.label for m in header.methods]
    numbers = {(label, name): _Column() for label in labels for name in names}
    for record in records.values():
        if record.status == "ok" and record.method in labels:
            for name in names:
                _count(numbers[record.method, name], record, name, header.cards.get(name, {}).get("id"))
    better = {name: direction(results, name) for name in names}
    attempted = Counter(record.method for record in records.values() if record.status != "missing")
    cells: dict[tuple[str, str], Cell] = {}
    for name in names:
        columns_of = {label: numbers[label, name] for label in labels}
        found = _cells_of(columns_of, header.baseline, attempted, better[name], draws)
        cells |= {(label, name): cell for label, cell in found.items()}
    cases = header.dataset.cases if edit_type is None else header.dataset.edit_types[edit_type]
    asked = {label: cases * (seeds or {}).get(label, len(header.seeds)) for label in labels}
    counts = {label: _counts(records.values(), label, asked[label]) for label in labels}
    return Summary(labels, names, header.baseline, better, cells, counts, edit_type, draws.level)


def costs(results: Results, *, draws: Draws | None = None) -> dict[str, Cost]:
    """Return what each method cost per row with a picture, by label."""
    draws = draws or Draws()
    found = {}
    for entry in results.header.methods:
        records = [r for r in results.records if r.method == entry.label and r.status == "ok"]
        timings = [t for r in records if (t := results.timings.get(r.key)) is not None]
        timed = [t for t in timings if t.seconds]
        seconds = mean_interval(
            [sum(t.seconds.values()) for t in timed], groups=[t.case for t in timed], draws=draws
        )  # fmt: skip
        peaks = [t.peak_memory_bytes for t in timings if t.peak_memory_bytes is not None]
        counted = [r.rows for r in records if r.rows]
        stages: dict[str, float] = {}
        for stage in dict.fromkeys(stage for rows in counted for stage in rows):
            stages[stage] = float(np.mean([rows.get(stage, 0) for rows in counted]))
        total = sum(stages.values()) if counted else None
        found[entry.label] = Cost(seconds, total, stages, max(peaks, default=None))
    return found


def _count(column: _Column, record: Row, name: str, card: str | None) -> None:
    score = record.scores.get(name)
    if score is None:
        column.missing["not measured"] += 1
    elif score.value is None:
        column.missing[score.reason or "no reason given"] += 1
    elif not np.isfinite(score.value):
        column.missing["not a finite number"] += 1
    elif card and record.cards.get(name, card) != card:
        column.missing[f"measured by another card, {record.cards[name]}"] += 1
    else:
        column.values[record.case, record.seed] = score.value
        if score.reason:
            column.conventions[score.reason] += 1


def _cells_of(
    columns: Mapping[str, _Column], baseline: str, attempted: Mapping[str, int], better: Better, draws: Draws
) -> dict[str, Cell]:
    """Cells of one heading by label."""
    rows = {label: column.values for label, column in columns.items()}
    marks = _marks(rows, attempted, better, draws)
    found = {}
    for label, column in columns.items():
        win = None if label == baseline else _against(column.values, rows.get(baseline, {}), better, draws)
        interval = mean_interval(list(column.values.values()), groups=_cases(column.values), draws=draws)
        found[label] = Cell(interval, dict(column.missing), dict(column.conventions), win, marks[label])
    return found


def _cases(rows: Iterable[CaseSeed]) -> list[str]:
    return [case for case, _ in rows]


def _against(
    own: Mapping[CaseSeed, float], other: Mapping[CaseSeed, float], better: Better, draws: Draws
) -> WinRate | None:
    shared = [row for row in own if row in other]
    return win_rate([own[r] for r in shared], [other[r] for r in shared], better, groups=_cases(shared), draws=draws)


def _marks(
    rows: Mapping[str, Mapping[CaseSeed, float]], attempted: Mapping[str, int], better: Better, draws: Draws
) -> dict[str, Mark]:
    """Mark the leaders of one column, by `MARK_RULE`."""
    marks: dict[str, Mark] = dict.fromkeys(rows, "")
    ranked = [
        label
        for label, values in rows.items()
        if len(set(_cases(values))) >= MIN_CASES and 2 * len(values) >= attempted.get(label, 0)
    ]
    if better == "neither" or len(ranked) < 2:
        return marks
    sign = 1.0 if better == "higher" else -1.0
    means = {label: sign * float(np.mean(list(rows[label].values()))) for label in ranked}

    def alike(labels: Sequence[str]) -> list[str]:
        leader = max(labels, key=lambda label: means[label])
        group = [leader]
        for label in labels:
            shared = [row for row in rows[leader] if row in rows[label]] if label != leader else []
            lead = [sign * (rows[leader][row] - rows[label][row]) for row in shared]
            found = mean_interval(lead, groups=_cases(shared), draws=draws)
            if label != leader and (found is None or found.cases < MIN_CASES or found.low <= 0):
                group.append(label)
        return group

    best = alike(ranked)
    rest = [label for label in ranked if label not in best]
    if rest:
        marks.update(dict.fromkeys(best, "best"))
        marks.update(dict.fromkeys(alike(rest), "second"))
    return marks


def _counts(records: Iterable[Row], label: str, expected: int) -> Counts:
    found = Counter(record.status for record in records if record.method == label)
    pending = max(0, expected - found.total())
    return Counts(found["ok"], found["failed"], found["missing"], pending)
