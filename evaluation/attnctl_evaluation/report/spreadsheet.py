"""Every row of a comparison as CSV, for tables and code of one's own."""

from __future__ import annotations

import csv
import io

from attnctl_evaluation.report.joining import Joined
from attnctl_evaluation.report.text import csv_cell
from attnctl_evaluation.rows import Row, Timing

_FIRST = ("case", "seed", "method", "status", "edit_type", "real", "source_prompt", "prompt")
_LAST = ("denoiser_rows", "seconds", "peak_memory_bytes", "error", "message", "warnings", "notes")


def render_csv(joined: Joined) -> str:
    """Return one line per (case, method, seed): what it was, every number, what it cost, what went wrong.

    Numbers are as exact as they were recorded; a number that is missing is an empty cell, and ``notes`` says why. Text
    that a spreadsheet would take for a formula has an apostrophe in front.
    """
    header = joined.results.header
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in (*_FIRST, *header.columns, *_LAST)])
    for record in joined.results.records:
        writer.writerow(_line(record, header.columns, joined.results.timings.get(record.key)))
    return buffer.getvalue()


def _line(record: Row, columns: list[str], timing: Timing | None) -> list[str]:
    scores = [record.scores.get(name) for name in columns]
    notes = [f"{n}: {s.reason}" for n, s in zip(columns, scores, strict=True) if s is not None and s.reason]
    failure = record.failure
    cells = (
        record.case, record.seed, record.method, record.status, record.edit_type, record.real, record.source_prompt,
        record.prompt, *(None if score is None else score.value for score in scores),
        sum(record.rows.values()) if record.rows else None,
        round(sum(timing.seconds.values()), 6) if timing and timing.seconds else None,
        timing.peak_memory_bytes if timing else None,
        failure.kind if failure else None, failure.message if failure else None,
        "; ".join(record.warnings), "; ".join(notes),
    )  # fmt: skip
    return [csv_cell(cell) for cell in cells]
