"""The run folder while it is written: rows are added one by one, none is lost or doubled, whatever interrupts.

One process alone writes a folder. A row is added after its pictures, as one line that reaches the disk before the next
begins; at the end the rows are put into their canonical order by replacing the file as a whole. Every file is written
whole or not at all, except for the two that grow, whose half last line is cut off when the run continues.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from attnctl.dataset import Case
from attnctl.errors import InputError
from attnctl.files import cannot_write, real, sha256_of, shown, write_atomic
from attnctl.trusting import check_inside, inside
from attnctl_evaluation.benchmark.spec import CONFIG_NAME, differences, read_toml, toml_bytes
from attnctl_evaluation.rows import (
    HEADER_NAME,
    RECORDS_NAME,
    TIMINGS_NAME,
    Header,
    Key,
    Row,
    Timing,
    content_of,
    line_of,
    lines_of,
    read_header,
    read_rows,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock

CASES_NAME = "cases.jsonl"
"""The run's cases as plain data, one a line, in the order of the data set."""

INPUT, TRUTH, MASK = "input", "truth", "mask"
"""Folders of pictures that do not depend on the method."""

LOCK_NAME = ".attnctl-lock"
"""Is there while a process writes the folder, and after one that was killed."""

_OWN_FILES = {LOCK_NAME, HEADER_NAME, RECORDS_NAME, TIMINGS_NAME, CASES_NAME, CONFIG_NAME}
_NOTE = "What this folder was made from; `attnctl compare FILE` reads it."


class RunStore:
    """A run folder that this process may write; a context manager.

    Args:
        folder: The folder; it is made if need be.
        force: Start over where it holds a run.

    Attributes:
        folder: Where everything is.
        header: The header of the run that is there; None for a new one.
        rows: Rows by key, in the order in which they came.

    Raises:
        InputError: The folder cannot be written, is being written by another process, or holds other things than a run.
    """

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        self.folder = folder
        self._made = [place for place in (folder, *folder.parents) if not place.exists()]
        check_inside(folder, _OWN_FILES)  # before the lock's file is opened, which writing goes to
        self._lock = _lock(folder)
        try:
            self._check_content()
            if force:
                self._start_over()
            self._clean()
            self.header: Header | None = read_header(self._header) if self._header.exists() else None
            self.rows: dict[Key, Row] = {}
            self.timings: dict[Key, Timing] = {}
            if self.header is not None:
                self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write the folder; one that was made for nothing goes."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # Windows keeps the file until it is closed; the next run takes it over
                (self.folder / LOCK_NAME).unlink()
            self._lock.release()
            self._lock = None
        for place in self._made:
            with contextlib.suppress(OSError):  # not empty
                place.rmdir()

    @property
    def _header(self) -> Path:
        return self.folder / HEADER_NAME

    def config(self) -> dict[str, Any]:
        """Return the configuration of the run that is there; empty for a new one."""
        if self.header is not None:
            return self.header.config
        return read_toml(self.folder / CONFIG_NAME) if (self.folder / CONFIG_NAME).exists() else {}

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Refuse to continue a run that was asked to do something else.

        Raises:
            InputError: It was; the message says what differs.
        """
        old = self.config()
        if old:
            self._refuse(differences(_comparable(old), _comparable(config)), "was asked for something else")

    def begin(self, header: Header, cases: Sequence[Case]) -> None:
        """Write what all rows share, or check that it is what is there.

        Raises:
            InputError: The run that is there was made in another way; the message says how.
        """
        if self.header is None:
            write_atomic(self.folder / CASES_NAME, case_lines(cases))
            write_atomic(self.folder / CONFIG_NAME, toml_bytes(header.config, _NOTE))
        self.adopt(header)

    def adopt(self, header: Header) -> None:
        """Write a header beside which everything else is already, or check that it is the one that is there.

        Raises:
            InputError: The run that is there was made in another way; the message says how.
        """
        if self.header is not None:
            old, new = (h.model_dump(mode="json") for h in (self.header, header))
            self._refuse(differences(old, new), "was made in another way")
            return
        write_atomic(self._header, header_bytes(header))
        self.header = header

    def renew(self, header: Header, cases: Sequence[Case]) -> None:
        """Replace what all rows share, after those rows were taken out that it does not fit any more."""
        if header != self.header:
            write_atomic(self.folder / CASES_NAME, case_lines(cases))
            write_atomic(self.folder / CONFIG_NAME, toml_bytes(header.config, _NOTE))
            write_atomic(self._header, header_bytes(header))
            self.header = header

    def add(self, records: Iterable[Row], timings: Iterable[Timing], pictures: Mapping[str, bytes]) -> list[Row]:
        """Keep finished rows: pictures first, then costs, then each row; those that are there already are left alone.

        Args:
            records: The rows.
            timings: Their costs.
            pictures: PNG files by path relative to the folder.

        Returns:
            The rows that are new.

        Raises:
            InputError: The disk is full, or the folder cannot be written any more.
        """
        digests = {name: sha256_of(data) for name, data in pictures.items()}
        new = [_with_digests(row, digests) for row in records if row.key not in self.rows]
        costs = {row.key: row for row in timings}
        for name in dict.fromkeys(n for row in new for n in row.pictures.model_dump().values() if n is not None):
            if name in pictures:
                self._write_picture(name, pictures[name])
        for row in new:
            if row.key in costs:
                self._append(TIMINGS_NAME, line_of(costs[row.key]), wait=False)  # to lose a cost loses no row
                self.timings[row.key] = costs[row.key]
            self._append(RECORDS_NAME, line_of(row))
            self.rows[row.key] = row
        return new

    def forget(self, keys: Iterable[Key]) -> None:
        """Take rows out, so that they are made again."""
        wanted = list(keys)
        gone = [self.rows.pop(key, None) for key in wanted]
        for key in wanted:
            self.timings.pop(key, None)
        if any(gone):
            write_atomic(self.folder / RECORDS_NAME, lines_of(self.rows.values()))

    def finish(self, order: Mapping[Key, int]) -> None:
        """Put the rows into canonical order; one that `order` does not know comes last.

        Raises:
            InputError: The folder cannot be written any more.
        """
        last = len(order)
        timings = sorted(self.timings.values(), key=lambda row: (order.get(row.key, last), row.key))
        records = sorted(self.rows.values(), key=lambda row: (order.get(row.key, last), row.key))
        write_atomic(self.folder / TIMINGS_NAME, lines_of(timings))
        write_atomic(self.folder / RECORDS_NAME, lines_of(records))

    def _load(self) -> None:
        """Read the rows, cut a half line off, and leave out rows that are doubled or whose pictures are gone."""
        for name in (RECORDS_NAME, TIMINGS_NAME):
            _cut_half_line(self.folder / name)
        rows = list(read_rows(self.folder / RECORDS_NAME, Row))
        for row in rows:
            names = [n for n in row.pictures.model_dump().values() if n is not None]
            if row.key not in self.rows and all(inside(self.folder, n).is_file() for n in names):
                self.rows[row.key] = row
        if len(self.rows) != len(rows):
            write_atomic(self.folder / RECORDS_NAME, lines_of(self.rows.values()))
        self.timings = {row.key: row for row in read_rows(self.folder / TIMINGS_NAME, Timing)}

    def _refuse(self, found: Sequence[str], what: str) -> None:
        if not found:
            return
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise InputError(
            f"the run in {shown(self.folder)} {what}: {'; '.join(found[:3])}{more}",
            hint="name another folder with --out, or start over with --force",
        )

    def _check_content(self) -> None:
        """Refuse a folder that holds other things; a run that was stopped before its header has only our own files."""
        if self._header.exists():
            return
        other = [p.name for p in sorted(self.folder.iterdir()) if p.name not in _OWN_FILES and not _temporary(p)]
        if other:
            raise InputError(
                f"{shown(self.folder)} holds files that are no run ({len(other)}, for example {other[0]!r})",
                hint="name a new folder with --out",
            )

    def _start_over(self) -> None:
        """Remove a run with its pictures, and nothing else."""
        header = None
        with contextlib.suppress(InputError):  # a damaged one does not say what its pictures are
            header = read_header(self._header)
        self._header.unlink(missing_ok=True)
        if header is not None:
            for name in (INPUT, TRUTH, MASK, *(entry.folder for entry in header.methods)):
                place = self.folder / name
                if name and real(place).parent == real(self.folder) and place.is_dir():
                    shutil.rmtree(place, ignore_errors=True)
        for name in _OWN_FILES - {LOCK_NAME}:
            (self.folder / name).unlink(missing_ok=True)

    def _clean(self) -> None:
        """Remove what was half written when an earlier process ended."""
        folders = [place for place in self.folder.iterdir() if place.is_dir() and not place.is_symlink()]
        for path in (*self.folder.iterdir(), *(path for folder in folders for path in folder.iterdir())):
            if _temporary(path):
                path.unlink(missing_ok=True)

    def _write_picture(self, name: str, data: bytes) -> None:
        path = inside(self.folder, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        write_atomic(path, data)

    def _append(self, name: str, line: bytes, *, wait: bool = True) -> None:
        """Add a line to a file, and wait until it is on the disk."""
        path = self.folder / name
        try:
            with path.open("ab", buffering=0) as stream:
                left = memoryview(line)
                while left:
                    left = left[stream.write(left) :]
                if wait:
                    os.fsync(stream.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error


def header_bytes(header: Header) -> bytes:
    """Return a header as its file; equal headers give equal bytes."""
    return (header.model_dump_json(indent=2) + "\n").encode("utf-8", "backslashreplace")


def case_lines(cases: Iterable[Case]) -> bytes:
    """Return cases as lines of JSON."""
    import json

    rows = (json.dumps(case.as_dict(), ensure_ascii=False, separators=(",", ":")) for case in cases)
    return b"".join(row.encode("utf-8", "backslashreplace") + b"\n" for row in rows)


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a configuration to what its TOML file holds, whichever way it came."""
    import tomllib

    return tomllib.loads(toml_bytes(config).decode("utf-8"))


def _temporary(path: Path) -> bool:
    return path.name.startswith(".attnctl-") and path.suffix == ".tmp"


def _cut_half_line(path: Path) -> None:
    """Cut off what follows the last line break."""
    data = content_of(path)
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)


def _lock(folder: Path) -> BaseFileLock | None:
    """Make the folder and keep other processes from writing it; the lock ends with this process, however it ends.

    Returns:
        The lock; None where the file system has no such locks.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    # A marker in place of a lock would outlive a process that is killed, and the run could not be continued.
    lock = FileLock(folder / LOCK_NAME, timeout=0, fallback_to_soft=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another process is writing {shown(folder)}", hint="wait for it, or give every process its own --out"
        ) from None
    except (OSError, NotImplementedError):  # network file systems without locks
        with contextlib.suppress(OSError):
            (folder / LOCK_NAME).unlink()
        return None
    return lock


def _with_digests(row: Row, digests: Mapping[str, str]) -> Row:
    """Return a row that says of every picture of its what was written; what a merged row said before stays."""
    written = {role: digests[name] for role, name in row.pictures.model_dump().items() if name in digests}
    return row.model_copy(update={"sha256": {**row.sha256, **written}})
