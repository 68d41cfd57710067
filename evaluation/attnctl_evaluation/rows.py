"""What a comparison leaves behind: a header, one row per (case, method, seed), and the rows' costs.

A run folder holds

- ``run.json``: the `Header`
- ``records.jsonl``: one `Row` a line. The same command on the same machine gives the same bytes, however often it
  was interrupted; therefore what differs from run to run is elsewhere, in
- ``timings.jsonl``: one `Timing` a line
- pictures, whose paths relative to the folder are in the records: ``input/``, ``truth/``, ``mask/`` and one folder per
  method

Reports read these files and never run a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from attnctl.errors import InputError
from attnctl.files import read_bytes, read_json, shown
from attnctl.trusting import check_inside

SCHEMA_VERSION = 1
"""Counts up when a field changes its meaning or goes; newer files are refused."""

HEADER_NAME = "run.json"
RECORDS_NAME = "records.jsonl"
TIMINGS_NAME = "timings.jsonl"

MAX_RECORD_BYTES = 2**30
"""Bytes that the rows of a run may have: hundreds of thousands of them."""

Key = tuple[str, str, int]
"""Case id, method label, seed: what names a row."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


Cost = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
"""Seconds that something took."""


class RowScore(_Frozen):
    """What one metric said of one picture.

    Attributes:
        value: The number; None where there is none.
        reason: Why there is none, or by which convention a degenerate case got this number.
    """

    value: float | None
    reason: str = ""


class Failure(_Frozen):
    """Why a row has no picture.

    Attributes:
        kind: Class of the error, for example ``NoOpError``.
        message: Its text, one line.
        hint: What to do about it; may be empty.
    """

    kind: str
    message: str
    hint: str = ""


class Pictures(_Frozen):
    """Paths relative to the run folder, with ``/``; None for what does not exist.

    Attributes:
        edit: The edited picture.
        source: The picture it started from.
        truth: The exact edited picture, which only drawn worlds have.
        mask: Where the picture was to change, white.
    """

    edit: str | None = None
    source: str | None = None
    truth: str | None = None
    mask: str | None = None


class Row(_Frozen):
    """One edit of one case by one method with one seed.

    Attributes:
        case: Case id, unique in the data set.
        method: Label of the method entry in the header.
        seed: Seed of the start noise.
        status: ``ok``; ``failed``: it was tried, `failure` says what happened; ``missing``: the case's picture is not
            there, so nothing was tried.
        edit_type: The data set's word for what sort of edit it is.
        source_prompt: Source prompt, None where the case has none.
        prompt: Target prompt.
        real: Whether the source is a given picture.
        scores: Per column of the header, the score.
        cards: Per column, the id of the metric card that the score was measured by.
        coverage: Per controller: sites, steps, expected and acted (see `attnctl.result.CoverageRow`).
        rows: Denoiser rows per stage, for example ``{"inversion": 50, "edit": 140}``; a stage that lanes of one case
            share counts fully in each.
        warnings: What the run warned of.
        pictures: Where its pictures are.
        failure: What went wrong; None for ``ok``.
        inputs: SHA-256 of what was measured, by role: ``edit``, ``source``, ``mask``, ``truth`` as they lay in the
            user's files, and ``case``, the plain data. Rows of `attnctl eval` have it: where one differs from what is
            there now, the row is measured anew.
        sha256: Of the files that `pictures` names, by the same roles, as they were written; rows of older folders have
            none.
    """

    case: str
    method: str
    seed: int
    status: Literal["ok", "failed", "missing"]
    edit_type: str
    source_prompt: str | None
    prompt: str
    real: bool
    scores: dict[str, RowScore] = Field(default_factory=dict)
    cards: dict[str, str] = Field(default_factory=dict)
    coverage: list[dict[str, JsonValue]] = Field(default_factory=list)
    rows: dict[str, int] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    pictures: Pictures = Pictures()
    failure: Failure | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What names the row."""
        return (self.case, self.method, self.seed)


class Timing(_Frozen):
    """What one row cost; differs from run to run.

    Attributes:
        case: Case id.
        method: Label of the method entry.
        seed: Seed.
        seconds: Per stage, wall-clock seconds; stages that lanes of one case share are divided evenly among them.
        peak_memory_bytes: Peak memory of the run that the row was part of; None where it cannot be measured.
        score_seconds: Seconds that the metrics took.
    """

    case: str
    method: str
    seed: int
    seconds: dict[str, Cost] = Field(default_factory=dict)
    peak_memory_bytes: int | None = Field(default=None, ge=0, le=2**60)
    score_seconds: Cost | None = None

    @property
    def key(self) -> Key:
        """What names the row."""
        return (self.case, self.method, self.seed)


class MethodEntry(_Frozen):
    """One column of a comparison: a method with its settings.

    Attributes:
        label: Unique in the run; what tables show.
        folder: Where its pictures are, relative to the run folder: ``<inversion>+<method>`` with a suffix where needed.
        method: Registered name; empty for pictures that other code made.
        preset: Preset that was asked for.
        settings: The full settings.
        modifiers: Full settings of its modifiers by name.
        inversion: Name of the inversion that real pictures go through; ``none`` for generated sources or outside code.
        uses_source_prompt: Whether it reads the source prompt; None: unknown.
        uses_mask: Whether it reads the mask; None: unknown.
        summary: The method's sentence.
        paper: Where it comes from.
        bibtex: Citation entry.
    """

    label: str
    folder: str
    method: str
    preset: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    modifiers: dict[str, JsonValue] = Field(default_factory=dict)
    inversion: str = "none"
    uses_source_prompt: bool | None = None
    uses_mask: bool | None = None
    summary: str = ""
    paper: str = ""
    bibtex: str = ""


class DatasetEntry(_Frozen):
    """The data set of a run.

    Attributes:
        spec: ``NAME[/PRESET][:PATH]`` as given.
        name: Registered name.
        settings: The full settings.
        fingerprint: SHA-256 over its cases.
        cases: Number of cases of the whole run.
        edit_types: Number of cases by edit type, in the data set's order.
        missing: Number of cases whose picture is not there.
        paper: Where it comes from.
        bibtex: Citation entry.
    """

    spec: str
    name: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    fingerprint: str
    cases: int
    edit_types: dict[str, int]
    missing: int = 0
    paper: str = ""
    bibtex: str = ""


class Header(_Frozen):
    """What all rows of a run have in common; holds nothing that differs when the same command runs again.

    Attributes:
        schema_version: `SCHEMA_VERSION` of the writer.
        title: A line for the report's heading.
        dataset: The data set.
        methods: What is compared, in the order of tables.
        baseline: Label that the others are compared with.
        seeds: Seeds of the run.
        columns: Metric headings in the order of tables.
        cards: Metric cards by heading (`attnctl.metric.MetricCard.as_dict`).
        absent: Headings that could not be measured here, with the sentence that says why.
        settings: What every row shares: steps, guidance, size, scheduler, negative prompt.
        model: `attnctl.runs.manifest.ModelRecord` as plain data; empty for pictures that other code made.
        environment: `attnctl.runs.manifest.environment` as plain data.
        device: `attnctl.runs.manifest.DeviceRecord` as plain data.
        config: The resolved configuration, as in ``compare.toml``.
    """

    schema_version: int = SCHEMA_VERSION
    title: str = ""
    dataset: DatasetEntry
    methods: list[MethodEntry]
    baseline: str
    seeds: list[int]
    columns: list[str]
    cards: dict[str, dict[str, Any]] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    device: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)


class Results(BaseModel):
    """A run folder that was read.

    Attributes:
        folder: Where its pictures are.
        header: What the rows share.
        records: The rows, in the order of the file.
        timings: Costs by key; rows without any are absent.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    header: Header
    records: list[Row]
    timings: dict[Key, Timing] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Results:
        """Read a run folder, finished or not; a last line that an interruption cut short does not count.

        Raises:
            InputError: The folder holds no run, or one of its files is damaged; the message names the line.
        """
        place = Path(folder)
        check_inside(place, (HEADER_NAME, RECORDS_NAME, TIMINGS_NAME))
        header = read_header(place / HEADER_NAME)
        records = list(read_rows(place / RECORDS_NAME, Row))
        timings = {row.key: row for row in read_rows(place / TIMINGS_NAME, Timing)}
        return cls(folder=place, header=header, records=records, timings=timings)


_R = TypeVar("_R", Row, Timing)


def read_header(path: Path) -> Header:
    """Read a run's header.

    Raises:
        InputError: It is not there, damaged or newer than this version.
    """
    try:
        data = read_json(path)
    except InputError as error:
        raise InputError(
            f"{shown(path.parent)} holds no run: {error.message}",
            hint="name a folder that `attnctl compare` or `attnctl eval` wrote",
        ) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{shown(path)} has schema version {version}, this attnctl reads up to {SCHEMA_VERSION}",
            hint="update attnctl",
        )
    try:
        return Header.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{shown(path)} is damaged: {_first(error)}", hint="run the comparison again") from error


def read_rows(path: Path, kind: type[_R]) -> Iterator[_R]:
    """Yield the rows of a file of JSON lines; a file that is not there has none.

    Args:
        path: The file.
        kind: `Row` or `Timing`.

    Raises:
        InputError: A line is damaged; a last line without its end is skipped.
    """
    *lines, _cut_short = content_of(path).split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            raise InputError(
                f"{shown(path)}, line {number}, is damaged: {_first(error)}",
                hint="delete the line; its row is computed again when the comparison continues",
            ) from error


def content_of(path: Path) -> bytes:
    """Return a file's content; a file that is not there has none.

    Raises:
        InputError: It cannot be read.
    """
    return read_bytes(path, limit=MAX_RECORD_BYTES) if os.path.lexists(path) else b""


def line_of(row: Row | Timing) -> bytes:
    """Return a row as one line of JSON; equal rows give equal bytes."""
    data = row.model_dump(mode="json")
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


def lines_of(rows: Iterable[Row | Timing]) -> bytes:
    """Return rows as lines of JSON."""
    return b"".join(map(line_of, rows))


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    place = ".".join(map(str, found["loc"]))
    return f"{place}: {found['msg']}" if place else str(found["msg"])
