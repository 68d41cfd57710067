"""Several runs over one data set, side by side under labels that differ."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnctl.errors import InputError
from attnctl.files import real, shown
from attnctl_evaluation.rows import Header, Key, Results, Row, Timing

_MAY_DIFFER = {"title", "config", "device", "environment"}
"""Parts of the headers of two shards of one comparison that need not be equal."""


@dataclass(frozen=True)
class Run:
    """One run among those of a report.

    Attributes:
        name: The folder's name, made unique.
        folder: Where its pictures are.
        header: Its header as it is on disk.
        labels: Label in the report by label in the run.
        columns: Heading in the report by heading in the run.
    """

    name: str
    folder: Path
    header: Header
    labels: Mapping[str, str]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Joined:
    """What a report is made of.

    Attributes:
        results: All rows, under the report's labels and headings; its `folder` is that of the first run.
        runs: The runs, in the order given.
        places: The run folder of each row.
        notes: What a reader should know of how the runs were joined, a sentence each.
    """

    results: Results
    runs: Sequence[Run]
    places: Mapping[Key, Path]
    notes: Sequence[str] = ()


def read_runs(folders: Sequence[str | Path]) -> Joined:
    """Read run folders and join them.

    Labels and headings that two runs use for different things get the run's name behind them; the parts (shards) of one
    comparison become that comparison.

    Raises:
        InputError: A folder holds no run, is named twice, or the runs are not over the same data set.
    """
    if not folders:
        raise InputError("a report needs a run", hint="name a folder that `attnctl compare` or `attnctl eval` wrote")
    seen: set[Path] = set()
    for folder in folders:
        place = real(folder)
        if place in seen:
            raise InputError(f"the run {shown(folder)} is named twice", hint="name every run once")
        seen.add(place)
    found = [Results.read(folder) for folder in folders]
    _same_data(found)
    return _join(found)


def _same_data(found: Sequence[Results]) -> None:
    first = found[0]
    for other in found[1:]:
        a, b = first.header.dataset, other.header.dataset
        if a.fingerprint != b.fingerprint:
            raise InputError(
                f"{shown(first.folder)} and {shown(other.folder)} are over different data: {a.spec!r} with "
                f"{a.cases} cases (fingerprint {a.fingerprint[:12]}), {b.spec!r} with {b.cases} ({b.fingerprint[:12]})",
                hint="only runs over the same cases can be compared; make one report for each",
            )


def _join(found: Sequence[Results]) -> Joined:
    names = _unique_names([real(results.folder).name or "run" for results in found])
    runs: list[Run] = []
    methods: dict[str, Any] = {}
    columns: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    records: dict[Key, Row] = {}
    timings: dict[Key, Timing] = {}
    places: dict[Key, Path] = {}
    notes: list[str] = []
    for results, name in zip(found, names, strict=True):
        header = results.header
        whole = next((r for r in runs if _is_shard(r, results, records)), None)
        labels = whole.labels if whole else _fresh([m.label for m in header.methods], methods, name)
        headings = whole.columns if whole else _headings(header, columns, name)
        run = Run(name, results.folder, header, labels, headings)
        if whole:
            notes.append(f"The runs {whole.name} and {name} are parts of one comparison and are shown as one.")
        notes += [f"{old} of the run {name} is shown as {new}." for old, new in labels.items() if old != new]
        notes += [f"{old} of the run {name}, another metric, is shown as {new}." for old, new in headings.items() if old != new]  # fmt: skip # noqa: E501
        methods.update({labels[m.label]: m.model_copy(update={"label": labels[m.label]}) for m in header.methods})
        columns.update({headings[c]: header.cards.get(c, {}) for c in header.columns})
        absent.update({c: why for c, why in header.absent.items() if c not in absent})
        for record in results.records:
            if record.method in labels:
                renamed = _renamed(record, labels, headings)
                records[renamed.key], places[renamed.key] = renamed, results.folder
        for key, timing in results.timings.items():
            if key[1] in labels:
                label = labels[key[1]]
                timings[key[0], label, key[2]] = timing.model_copy(update={"method": label})
        runs.append(run)
    first = found[0].header
    header = first.model_copy(
        update={
            "methods": list(methods.values()),
            "baseline": runs[0].labels.get(first.baseline, first.baseline),
            "seeds": sorted({seed for results in found for seed in results.header.seeds}),
            "columns": list(columns),
            "cards": {name: card for name, card in columns.items() if card},
            "absent": {name: why for name, why in absent.items() if name not in columns},
        }
    )
    joined = Results(folder=found[0].folder, header=header, records=list(records.values()), timings=timings)
    return Joined(joined, runs, places, notes)


def seeds_of(joined: Joined) -> dict[str, int]:
    """Return the number of seeds that each method was to run with, by label."""
    return {label: len(run.header.seeds) for run in joined.runs for label in run.labels.values()}


def _unique_names(names: Iterable[str]) -> list[str]:
    unique: list[str] = []
    for name in names:
        candidate, number = name, 2
        while candidate in unique:
            candidate, number = f"{name} {number}", number + 1
        unique.append(candidate)
    return unique


def _is_shard(run: Run, results: Results, records: Collection[Key]) -> bool:
    """Tell whether a run is of the same comparison, with rows that are not there yet."""
    if run.header.model_dump(exclude=_MAY_DIFFER) != results.header.model_dump(exclude=_MAY_DIFFER):
        return False
    keys = [(r.case, run.labels[r.method], r.seed) for r in results.records if r.method in run.labels]
    return not any(key in records for key in keys)


def _fresh(labels: Iterable[str], taken: Collection[str], name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for label in labels:
        new, number = label, 2
        if label in taken:
            new = f"{label} ({name})"
        while new in taken or new in found.values():
            new, number = f"{label} ({name} {number})", number + 1
        found[label] = new
    return found


def _headings(header: Header, columns: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, str]:
    """Heading in the report by heading in the run: the same metric shares a column, another one gets its own."""
    found = {}
    for column in header.columns:
        own, there = header.cards.get(column, {}).get("id"), columns.get(column, {}).get("id")
        same = column not in columns or own == there
        found[column] = column if same else _fresh([column], columns, name)[column]
    return found


def _renamed(record: Row, labels: Mapping[str, str], headings: Mapping[str, str]) -> Row:
    return record.model_copy(
        update={
            "method": labels[record.method],
            "scores": {headings.get(name, name): score for name, score in record.scores.items()},
            "cards": {headings.get(name, name): card for name, card in record.cards.items()},
        }
    )
