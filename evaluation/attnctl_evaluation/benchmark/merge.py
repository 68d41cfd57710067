"""Putting parts of one comparison together: shards, or what several machines got done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnctl.errors import InputError
from attnctl.files import MAX_PICTURE_BYTES, parse_json, read_bytes, real, shown, write_atomic
from attnctl.trusting import inside
from attnctl_evaluation.benchmark.plan import canonical
from attnctl_evaluation.benchmark.spec import CONFIG_NAME, differences
from attnctl_evaluation.benchmark.store import CASES_NAME, RunStore
from attnctl_evaluation.rows import Key, Results, Row, line_of


@dataclass(frozen=True)
class Merged:
    """What came of a merge.

    Attributes:
        results: The whole.
        missing: Rows that no part has.
    """

    results: Results
    missing: int


def merge(parts: Sequence[Path], out: Path, *, force: bool = False) -> Merged:
    """Put parts of one comparison together; the result has the bytes of a run that was never divided.

    Args:
        parts: Run folders, finished or not.
        out: The new folder.
        force: Start over where `out` holds a run.

    Raises:
        InputError: The parts are not of one comparison, or contradict each other; the message says in what.
    """
    if real(out) in map(real, parts):
        raise InputError(f"{shown(out)} is one of the parts", hint="name a new folder with -o")
    read = [Results.read(part) for part in parts]
    cases = _check_alike(read)
    chosen, origin = _union(read)
    with RunStore(out, force=force) as store:
        store.check_config(read[0].header.config)
        _copy(read[0].folder, out, [CASES_NAME, CONFIG_NAME])
        store.adopt(read[0].header)
        for part in read:
            rows = [row for row in part.records if origin[row.key] is part]
            for row in rows:
                _copy(part.folder, out, [n for n in row.pictures.model_dump().values() if n is not None])
            store.add(rows, [part.timings[row.key] for row in rows if row.key in part.timings], {})
        header = read[0].header
        order = canonical(cases, header.seeds, [entry.label for entry in header.methods])
        store.finish(order)
    return Merged(Results.read(out), len(order.keys() - chosen.keys()))


def _check_alike(parts: Sequence[Results]) -> list[str]:
    """Return the ids of the cases; refuse parts of different comparisons.

    Raises:
        InputError: They are such; the message says in what they differ.
    """
    first = parts[0]
    listed = _read(first.folder / CASES_NAME)
    for part in parts[1:]:
        found = differences(first.header.model_dump(mode="json"), part.header.model_dump(mode="json"))
        if not found and _read(part.folder / CASES_NAME) != listed:
            found = [f"their {CASES_NAME}"]
        if found:
            more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
            raise InputError(
                f"{shown(first.folder)} and {shown(part.folder)} are not parts of one comparison: "
                f"{'; '.join(found[:3])}{more}",
                hint="make all parts with one command and installation on machines of one kind; only --shard differs",
            )
    return _ids(listed, shown(first.folder / CASES_NAME))


def _ids(listed: bytes, where: str) -> list[str]:
    """Return the ids of lines of cases.

    Raises:
        InputError: A line is damaged.
    """
    found = []
    for number, line in enumerate(listed.splitlines(), start=1):
        case = parse_json(line.decode("utf-8", "replace"), f"{where}, line {number}", lines=False)
        if not isinstance(case, dict) or not isinstance(case.get("id"), str):
            raise InputError(
                f"{where}, line {number}, is no case", hint="continue that part; what is damaged is made again"
            )
        found.append(case["id"])
    return found


def _union(parts: Sequence[Results]) -> tuple[dict[Key, Row], dict[Key, Results]]:
    """Return all rows and the part that each is taken from.

    Raises:
        InputError: Two parts say different things of one row.
    """
    chosen: dict[Key, Row] = {}
    origin: dict[Key, Results] = {}
    for part in parts:
        for row in part.records:
            if row.key not in chosen:
                chosen[row.key], origin[row.key] = row, part
                continue
            other = origin[row.key].folder
            if line_of(chosen[row.key]) != line_of(row) or not _same_picture(row.pictures.edit, part.folder, other):
                case, method, seed = row.key
                raise InputError(
                    f"{shown(other)} and {shown(part.folder)} say different things of {case}, {method}, seed {seed}",
                    hint="delete one of the two folders, or continue it with --retry-failed",
                )
    return chosen, origin


def _same_picture(name: str | None, one: Path, other: Path) -> bool:
    return name is None or _read(one / name) == _read(other / name)


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        place = target / name
        inside(source, name, shown(source))
        if place.exists() and _same_picture(name, source, target):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, _read(source / name))


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, limit=MAX_PICTURE_BYTES)
    except InputError as error:
        raise InputError(error.message, hint="continue that part; what is missing is made again") from error
