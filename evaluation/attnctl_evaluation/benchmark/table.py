"""What a comparison says at its end: tables of means, intervals and win rates, and what went wrong."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from attnctl.terminal import facts, plain, say, shorten, show, show_json, table
from attnctl_evaluation.rows import Results

if TYPE_CHECKING:
    from rich.console import RenderableType

    from attnctl_evaluation.benchmark.compare import Outcome
    from attnctl_evaluation.statistics import Cell, Draws, Summary

_MARKS = {"best": " **", "second": " *", "": ""}
_ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def show_outcome(outcome: Outcome, *, as_json: bool) -> int:
    """Write the tables, or one JSON object, and say what failed.

    Returns:
        The exit code: 1 where rows failed, else 0.
    """
    results = outcome.results
    if as_json:
        show_json(outcome_data(outcome))
    else:
        show(*_parts(results))
        show(plain(f"\nwritten to {outcome.folder}"))
    return _say_faults(outcome)


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as plain data."""
    from attnctl_evaluation.statistics import Draws, costs, summarise

    results, draws = outcome.results, Draws()
    whole = summarise(results, draws=draws)
    paid = costs(results, draws=draws)
    status = Counter(row.status for row in results.records)
    return {
        "folder": str(outcome.folder),
        "rows": {"wanted": outcome.wanted, "new": outcome.new, **{s: status[s] for s in ("ok", "failed", "missing")}},
        "baseline": whole.baseline,
        "absent": results.header.absent,
        "methods": {
            label: {
                "columns": {name: _cell_data(whole.cells[label, name]) for name in whole.columns},
                "seconds": None if paid[label].seconds is None else _interval_data(paid[label].seconds),
                "denoiser_rows": paid[label].denoiser_rows,
                "peak_memory_bytes": paid[label].peak_memory_bytes,
            }
            for label in whole.methods
        },
        "failures": [
            {"case": r.case, "method": r.method, "seed": r.seed, **r.failure.model_dump()}
            for r in results.records
            if r.status == "failed" and r.failure is not None
        ],
    }


def _interval_data(found: Any) -> dict[str, Any]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "count": found.count}


def _cell_data(cell: Cell) -> dict[str, Any]:
    win = cell.win
    return {
        **({"mean": None, "count": 0} if cell.interval is None else _interval_data(cell.interval)),
        "missing": dict(cell.missing),
        "win_rate": None if win is None else {"rate": win.rate, "low": win.low, "high": win.high},
    }


def _parts(results: Results) -> list[RenderableType]:
    from attnctl_evaluation.statistics import Draws, summarise

    draws = Draws()
    whole = summarise(results, draws=draws)
    parts: list[RenderableType] = [_means(whole), plain("")]
    if len(whole.methods) > 1 and any(cell.win is not None for cell in whole.cells.values()):
        parts += [plain(f"Share of cases won against {whole.baseline}, ties half (95 % interval):"), _wins(whole)]
        parts.append(plain(""))
    if len(results.header.dataset.edit_types) > 1:
        parts += [plain("Means by edit type:"), _by_type(results, whole, draws), plain("")]
    parts.append(_costs(results, draws))
    if results.header.absent:
        parts += [plain("\nNot measured here:"), facts(results.header.absent.items())]
    return parts


def _means(whole: Summary) -> RenderableType:
    """Lay out one line per column of numbers: a terminal is narrow, and there are more columns than methods."""
    rows = []
    for name in whole.columns:
        cells = [whole.cells[label, name] for label in whole.methods]
        if any(cell.interval is not None for cell in cells):
            rows.append((name + _ARROWS[whole.better[name]], *map(_mean, cells)))
    counts = [f"{whole.rows[label].ok}" for label in whole.methods]
    rows.append(("pictures", *counts))
    for kind in ("failed", "missing", "pending"):
        found = [getattr(whole.rows[label], kind) for label in whole.methods]
        if any(found):
            rows.append((kind, *map(str, found)))
    return table(("mean [95 % interval]", *whole.methods), rows, right=tuple(whole.methods))


def _mean(cell: Cell) -> str:
    if cell.interval is None:
        return "-"
    found = cell.interval
    some = f" ({found.count})" if cell.missing else ""
    return f"{_number(found.mean)} [{_number(found.low)}, {_number(found.high)}]{some}{_MARKS[cell.mark]}"


def _wins(whole: Summary) -> RenderableType:
    others = [label for label in whole.methods if label != whole.baseline]
    rows = []
    for name in whole.columns:
        found = [whole.cells[label, name].win for label in others]
        if any(found):
            cells = ("-" if w is None else f"{w.rate:.0%} [{w.low:.0%}, {w.high:.0%}]" for w in found)
            rows.append((name, *cells))
    return table((f"against {whole.baseline}", *others), rows, right=tuple(others))


def _by_type(results: Results, whole: Summary, draws: Draws) -> RenderableType:
    """Lay out the means of the first three columns with a direction by edit type."""
    from attnctl_evaluation.statistics import summarise

    measured = [n for n in whole.columns if any(whole.cells[label, n].interval for label in whole.methods)]
    names = [name for name in measured if whole.better[name] != "neither"][:3]
    rows = []
    for edit_type in results.header.dataset.edit_types:
        part = summarise(results, columns=names, edit_type=edit_type, draws=draws)
        for name in names:
            found = [part.cells[label, name].interval for label in part.methods]
            if any(found):
                rows.append((edit_type, name, *("-" if one is None else _number(one.mean) for one in found)))
    return table(("edit type", "mean", *whole.methods), rows, right=tuple(whole.methods))


def _costs(results: Results, draws: Draws) -> RenderableType:
    from attnctl_evaluation.statistics import costs

    rows = []
    for label, cost in costs(results, draws=draws).items():
        spent = "" if cost.seconds is None else f"{cost.seconds.mean:.2f} s"
        denoiser = "" if cost.denoiser_rows is None else f"{cost.denoiser_rows:.0f}"
        memory = "" if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 2**20:.0f} MiB"
        rows.append((label, spent, denoiser, memory))
    columns = ("method", "time per picture", "denoiser rows", "peak memory")
    return table(columns, rows, right=columns[1:])


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def _say_faults(outcome: Outcome) -> int:
    """Say on stderr how many rows failed, whose, and the first of them."""
    rows = outcome.results.records
    missing = {row.case for row in rows if row.status == "missing"}
    if missing:
        say("note", f"{len(missing)} cases without their picture were counted, not run; first: {min(missing)}")
    failed = [row for row in rows if row.status == "failed"]
    if not failed:
        return 0
    kinds = Counter((row.method, row.failure.kind) for row in failed if row.failure is not None)
    where = ", ".join(f"{method}: {count} {kind}" for (method, kind), count in kinds.items())
    say("warning", f"{len(failed)} of {len(rows)} rows failed ({shorten(where, 300)})")
    first = failed[0]
    if first.failure is not None:
        say("warning", f"first: {first.case}, {first.method}, seed {first.seed}: {first.failure.message}")
    say("hint", f"all are in {outcome.folder / 'records.jsonl'}; --retry-failed makes them again")
    return 1
