"""What a report says, as plain data, before any format is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnctl_evaluation.report.joining import Joined, seeds_of
from attnctl_evaluation.report.numbers import count, decimals
from attnctl_evaluation.report.text import one_line
from attnctl_evaluation.rows import MethodEntry
from attnctl_evaluation.statistics import MIN_CASES, Cost, Counts, Draws, Summary, costs, summarise

EDITING = ("attribute-accuracy", "clip-directional", "clip-score", "mask-iou")
"""Metrics, by registered name, that say how well an edit was made, the most telling first."""

PRESERVATION = ("structure-distance", "lpips", "psnr", "ssim", "mse", "leakage")
"""Metrics that say how much was left alone."""


@dataclass(frozen=True)
class FailureGroup:
    """Failures with one message.

    Attributes:
        kind: Class of the error.
        message: Its text.
        hint: What to do.
        rows: Label, case and seed of each.
    """

    kind: str
    message: str
    hint: str
    rows: Sequence[tuple[str, str, int]]

    @property
    def methods(self) -> Mapping[str, int]:
        """Number of rows by label."""
        return Counter(label for label, _, _ in self.rows)


@dataclass(frozen=True)
class Verdict:
    """Who leads in one column.

    Attributes:
        column: Heading.
        better: Which direction that is.
        about: One of `ABOUT`: what the metric is known to say.
        best: Labels, by the rule of `attnctl_evaluation.statistics.MARK_RULE`; empty where nobody leads.
        second: Labels.
        why: Why nobody leads.
    """

    column: str
    better: str
    about: str
    best: Sequence[str]
    second: Sequence[str]
    why: str = ""


@dataclass(frozen=True)
class Citation:
    """A BibTeX entry and what it is for."""

    what: str
    bibtex: str


@dataclass(frozen=True)
class Contents:
    """All that a report shows.

    Attributes:
        title: Heading.
        lead: A line of facts below it.
        joined: The runs.
        summary: Over all cases.
        parts: Per edit type.
        places: Decimals per column.
        costs: Per label.
        verdicts: Per column with a direction.
        axes: Columns for the editing axis and for the preservation axis of the figure, the best first; may be empty.
        fairness: Sentences that name what the methods do not have in common.
        failures: Groups of equal failures, the largest first.
        missing: Cases whose picture is not there: case and reason.
        warnings: Per text, labels and number of rows.
        gaps: Sentences about numbers that are missing or set by convention.
        citations: BibTeX entries.
    """

    title: str
    lead: str
    joined: Joined
    summary: Summary
    parts: Mapping[str, Summary]
    places: Mapping[str, int]
    costs: Mapping[str, Cost]
    verdicts: Sequence[Verdict]
    axes: tuple[Sequence[str], Sequence[str]]
    fairness: Sequence[str]
    failures: Sequence[FailureGroup]
    missing: Mapping[str, str]
    warnings: Mapping[str, Mapping[str, int]]
    gaps: Sequence[str] = ()
    citations: Sequence[Citation] = field(default_factory=tuple)

    @property
    def methods(self) -> Sequence[MethodEntry]:
        """The methods, in the order of tables."""
        return self.joined.results.header.methods

    @property
    def cards(self) -> Mapping[str, Mapping[str, Any]]:
        """Metric cards by heading."""
        return self.joined.results.header.cards


def collect(joined: Joined, *, title: str = "", draws: Draws | None = None) -> Contents:
    """Work out everything that a report says."""
    draws = draws or Draws()
    results, header = joined.results, joined.results.header
    seeds = seeds_of(joined)
    summary = summarise(results, draws=draws, seeds=seeds)
    types = [name for name, number in header.dataset.edit_types.items() if number]
    parts = {name: summarise(results, edit_type=name, draws=draws, seeds=seeds) for name in types}
    places = {c: decimals(summary.cells[m, c].interval for m in summary.methods) for c in summary.columns}
    cost = costs(results, draws=draws)
    missing = {r.case: r.failure.message if r.failure else "" for r in results.records if r.status == "missing"}
    return Contents(
        title=one_line(title or header.title) or "Comparison of edits",
        lead=_lead(joined, missing),
        joined=joined,
        summary=summary,
        parts=parts,
        places=places,
        costs=cost,
        verdicts=_verdicts(summary, header.cards),
        axes=_axes(summary, header.cards),
        fairness=_fairness(joined, summary, cost),
        failures=_failures(joined),
        missing=missing,
        warnings=_warnings(joined),
        gaps=_gaps(summary),
        citations=_citations(joined),
    )


def status_line(counts: Counts) -> str:
    """Return how many rows ended how, in words; empty where all have a picture."""
    named = ((counts.failed, "failed"), (counts.missing, "without source picture"), (counts.pending, "not run yet"))
    return ", ".join(f"{number} {what}" for number, what in named if number)


def _lead(joined: Joined, missing: Mapping[str, str]) -> str:
    header = joined.results.header
    facts = [
        header.dataset.spec or header.dataset.name,
        count(header.dataset.cases, "case") + (f" ({len(missing)} without picture)" if missing else ""),
        count(len(header.methods), "method"),
        count(len(header.seeds), "seed"),
    ]
    if models := list(dict.fromkeys(str(r.header.model["id"]) for r in joined.runs if r.header.model.get("id"))):
        facts.append(" and ".join(models))
    if len(joined.runs) > 1:
        facts.append(f"{len(joined.runs)} runs")
    return " \u00b7 ".join(map(one_line, facts))


ABOUT = ("editing", "preservation", "likeness to the exact edit", "other")
"""What a metric may be about, in the order of tables."""


def _about(column: str, cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what a column says, by its metric's name and by the settings that turn its meaning round."""
    card = cards.get(column, {})
    name, settings = str(card.get("name", "")), card.get("settings") or {}
    if settings.get("against") == "truth":
        return ABOUT[2]
    if settings.get("which") == "kept" or (name in PRESERVATION and settings.get("region") != "inside"):
        return ABOUT[1]
    return ABOUT[0] if name in EDITING and settings.get("of") != "source" else ABOUT[3]


def _verdicts(summary: Summary, cards: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    found = [_verdict(summary, c, _about(c, cards)) for c in summary.columns if summary.better[c] != "neither"]
    return sorted(found, key=lambda verdict: ABOUT.index(verdict.about))


def _verdict(summary: Summary, column: str, about: str) -> Verdict:
    marked = {m: [label for label in summary.methods if summary.cells[label, column].mark == m] for m in ("best", "second")}  # fmt: skip # noqa: E501
    intervals = [i for label in summary.methods if (i := summary.cells[label, column].interval) is not None]
    why = ""
    if not marked["best"]:
        enough = sum(i.cases >= MIN_CASES for i in intervals) > 1
        few = {0: "no numbers", 1: "one method"}.get(len(intervals), "too few cases")
        why = "no method stands out" if enough else few
    return Verdict(column, summary.better[column], about, marked["best"], marked["second"], why)


def _axes(summary: Summary, cards: Mapping[str, Mapping[str, Any]]) -> tuple[Sequence[str], Sequence[str]]:
    """Columns for the figure: by what their metric is known to say, else the first two that have a direction."""
    usable = [
        column
        for column in summary.columns
        if summary.better[column] != "neither" and any(summary.cells[m, column].count for m in summary.methods)
    ]

    def place(column: str, known: Sequence[str]) -> int:
        name = str(cards[column].get("name"))
        return known.index(name) if name in known else len(known)

    def whole(column: str) -> bool:
        return bool((cards[column].get("settings") or {}).get("region", "whole") == "whole")

    editing = [c for c in usable if _about(c, cards) == ABOUT[0]]
    editing = sorted(editing, key=lambda c: (place(c, EDITING), whole(c)))[:3]
    # What is outside the mask says more of preservation than the whole picture does, whichever the metric.
    preservation = [c for c in usable if _about(c, cards) == ABOUT[1]]
    preservation = sorted(preservation, key=lambda c: (whole(c), place(c, PRESERVATION)))[:3]
    rest = [c for c in usable if c not in editing and c not in preservation]
    editing = editing or rest[:1]
    preservation = preservation or [c for c in rest if c not in editing][:1]
    return editing, preservation


def _fairness(joined: Joined, summary: Summary, cost: Mapping[str, Cost]) -> list[str]:
    methods = joined.results.header.methods
    found = []
    for attribute, what in (("uses_source_prompt", "the source prompt"), ("uses_mask", "the mask")):
        users = [m.label for m in methods if getattr(m, attribute)]
        unknown = [m.label for m in methods if getattr(m, attribute) is None]
        if users and len(users) + len(unknown) < len(methods):
            others = "" if unknown else ", the others do not"
            found.append(f"{_listed(users)} read{'s' if len(users) == 1 else ''} {what}{others}.")
        if unknown and len(unknown) < len(methods):
            found.append(f"Whether {_listed(unknown)} read{'s' if len(unknown) == 1 else ''} {what} is not known.")
    inversions = dict.fromkeys(m.inversion for m in methods)
    if len(inversions) > 1:
        by = [f"{name} for {_listed([m.label for m in methods if m.inversion == name])}" for name in inversions]
        found.append(f"Inversions differ: {'; '.join(by)}.")
    rows = {label: c.denoiser_rows for label, c in cost.items() if c.denoiser_rows}
    if rows and max(rows.values()) > 1.05 * min(rows.values()):
        most, least = max(rows, key=lambda m: rows[m] or 0), min(rows, key=lambda m: rows[m] or 0)
        found.append(
            f"Denoiser evaluations differ: from {rows[least]:.0f} rows a picture ({least}) "
            f"to {rows[most]:.0f} ({most})."
        )
    return found + _uneven(joined, summary.methods) + _run_differences(joined) + list(joined.notes)


def _uneven(joined: Joined, labels: Sequence[str]) -> list[str]:
    """A sentence for methods that lack pictures which others have."""
    made: dict[str, set[tuple[str, int]]] = {label: set() for label in labels}
    for record in joined.results.records:
        if record.status == "ok":
            made[record.method].add((record.case, record.seed))
    everything = set().union(*made.values())
    short = [label for label in labels if made[label] != everything]
    if not short:
        return []
    who = f"{_listed(short)} ha{'s' if len(short) == 1 else 've'} not" if len(short) < len(labels) else "No method has"
    return [f"{who} all the pictures that others have; means are over what each has, marks and win rates over pairs."]


def _run_differences(joined: Joined) -> list[str]:
    """Sentences for what the joined runs do not share."""
    headers = [run.header for run in joined.runs]
    if len(headers) == 1:
        return []
    found = []
    facts: list[tuple[str, list[Any]]] = [
        ("the model", [h.model.get("sha256") or h.model.get("id") for h in headers]),
        ("the seeds", [h.seeds for h in headers]),
        ("the device", [(h.device.get("kind"), h.device.get("name"), h.device.get("dtype")) for h in headers]),
    ]
    names = dict.fromkeys(name for h in headers for name in h.settings)
    facts += [(f"the setting {name}", [h.settings.get(name) for h in headers]) for name in names]
    packages = dict.fromkeys(name for h in headers for name in h.environment.get("packages") or {})
    versions = [(name, [(h.environment.get("packages") or {}).get(name) for h in headers]) for name in packages]
    facts += [(f"the version of {name}", found_versions) for name, found_versions in versions]
    for what, values in facts:
        if any(value != values[0] for value in values):
            said = "; ".join(f"{run.name}: {value}" for run, value in zip(joined.runs, values, strict=True))
            found.append(f"The runs differ in {what} ({said}).")
    return found


def _failures(joined: Joined) -> list[FailureGroup]:
    groups: dict[tuple[str, str, str], list[tuple[str, str, int]]] = {}
    for record in joined.results.records:
        if record.status == "failed":
            failure = record.failure
            said = (failure.kind, failure.message, failure.hint) if failure else ("", "no message was recorded", "")
            groups.setdefault(said, []).append((record.method, record.case, record.seed))
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [FailureGroup(*said, rows) for said, rows in ordered]


def _warnings(joined: Joined) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for record in joined.results.records:
        for text in dict.fromkeys(record.warnings):
            found.setdefault(text, Counter())[record.method] += 1
    return {text: dict(by) for text, by in sorted(found.items(), key=lambda item: -item[1].total())}


def _gaps(summary: Summary) -> list[str]:
    found = []
    for column in summary.columns:
        cells = {label: summary.cells[label, column] for label in summary.methods}
        for kind, what in (("missing", "no number"), ("conventions", "a number by convention")):
            by: dict[str, list[str]] = {}
            for label, cell in cells.items():
                for why, number in getattr(cell, kind).items():
                    by.setdefault(why, []).append(f"{label} {number}")
            found += [f"{column}: {what} since \u201c{one_line(why)}\u201d: {', '.join(rows)}." for why, rows in by.items()]  # fmt: skip # noqa: E501
    return found


def _citations(joined: Joined) -> list[Citation]:
    """BibTeX entries of methods and data set, each once."""
    header = joined.results.header
    found: dict[str, list[str]] = {}
    for entry in header.methods:
        if entry.bibtex.strip():
            found.setdefault(entry.bibtex.strip(), []).append(entry.label)
    if header.dataset.bibtex.strip():
        found.setdefault(header.dataset.bibtex.strip(), []).append(header.dataset.name)
    return [Citation(", ".join(labels), bibtex) for bibtex, labels in found.items()]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
