"""Whether what a run folder measured is what lies there now: digests of data sets' files, pictures and models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError
from attnctl.files import sha256_of, sha256_of_file, shown
from attnctl_evaluation.benchmark.header import describe_dataset
from attnctl_evaluation.benchmark.spec import CompareSpec
from attnctl_evaluation.rows import Header, Key, Row

_ORDER = ("case", "edit", "source", "mask", "truth")


def inputs_of(case: Case, source: Path | None) -> dict[str, str]:
    """Return the SHA-256 of all that a case's pictures are measured against, and of its plain data.

    Args:
        case: The case.
        source: The picture that stands for the source of a case that has none.
    """
    plain = {k: v for k, v in case.as_dict().items() if k != "missing"}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str)
    found = {"case": sha256_of(text.encode("utf-8", "surrogatepass"))}
    loaders = {"source": None if case.missing else case.picture, "mask": case.mask, "truth": case.truth}
    found |= {role: _digest(loader) for role, loader in loaders.items() if loader is not None}
    if case.picture is None and source is not None:
        found["source"] = digest_of(source)
    return found


def digest_of(path: Path) -> str:
    """Return a file's SHA-256; empty where it cannot be read."""
    try:
        return sha256_of_file(path)
    except OSError:
        return ""


def _digest(loader: Callable[[Any], Any]) -> str:
    """Return the SHA-256 of what a loader reads; of what it gives, where it does not say that."""
    import numpy as np

    try:
        own = getattr(loader, "digest", None)
        return str(own()) if own is not None else sha256_of(np.asarray(loader(None)).tobytes())
    except (Exception, SystemExit):  # strangers' loaders raise nearly anything; the row itself says what
        return ""


def stale_rows(
    rows: Mapping[Key, Row], now: Mapping[Key, Mapping[str, str]], folders: Mapping[str, str]
) -> dict[Key, list[str]]:
    """Return the rows that do not fit what is there now, with what changed.

    Args:
        rows: The rows of the folder.
        now: Per wanted row, the digests of what is there.
        folders: Per label, where its pictures are kept.
    """
    found: dict[Key, list[str]] = {}
    for key, row in rows.items():
        if key not in now:
            found[key] = ["gone"]
        elif not row.inputs:
            found[key] = ["not recorded"]
        elif row.inputs != now[key]:
            roles = [r for r in _ORDER if row.inputs.get(r) != now[key].get(r)]
            found[key] = roles or ["other"]
        elif row.pictures.edit is not None and row.pictures.edit.rpartition("/")[0] != folders[key[1]]:
            found[key] = ["folder"]
    return found


def say_stale(stale: Mapping[Key, Sequence[str]], total: int) -> str:
    """Return one line on what changed."""
    counts = Counter(what for all_of_them in stale.values() for what in all_of_them)
    first = next(iter(stale))
    parts = ", ".join(f"{what} ({count})" for what, count in counts.items())
    return (
        f"{len(stale)} of {total} rows do not fit what is there now and are measured anew; changed: {parts}; "
        f"first: {first[0]}, {first[1]}"
    )


def check_unchanged(folder: Path, spec: CompareSpec, dataset: Dataset, cases: Sequence[Case], header: Header) -> None:
    """Refuse to answer from a finished comparison whose data set or model is another one by now.

    Args:
        folder: The run folder.
        spec: The resolved comparison.
        dataset: The data set.
        cases: The cases of the run.
        header: What the rows were made with.

    Raises:
        InputError: One is.
    """
    changed = []
    if describe_dataset(spec.dataset, dataset, cases) != header.dataset:
        changed.append(f"the data set {spec.dataset}")
    recorded = header.model.get("files")
    if recorded and (files := _model_files(spec)) is not None and files != recorded:
        names = sorted(n for n in {*files, *recorded} if files.get(n) != recorded.get(n))
        changed.append(f"the model {spec.model} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})")
    if changed:
        raise InputError(
            f"the finished run in {shown(folder)} was made with other files: changed since are {' and '.join(changed)}",
            hint="name another folder with --out, or start over with --force",
        )


def _model_files(spec: CompareSpec) -> dict[str, str] | None:
    """Return the digests of the model's files as they are now; None where they lie nowhere on this machine."""
    from attnctl.families.hubcache import hub_snapshot
    from attnctl.loading import locate
    from attnctl.runs.manifest import model_files

    location, _ = locate(spec.model)
    place = location if location is not None else hub_snapshot(spec.model, spec.revision)
    return None if place is None else model_files(place)
