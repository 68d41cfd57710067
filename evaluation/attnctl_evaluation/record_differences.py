"""Two records of what should be one run, held against each other field by field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnctl.runs.manifest import Manifest

MAY_DIFFER = (
    "device",  # listed among what differs between then and now
    "environment",
    "files.recordings",  # they change no picture, and what they read stands in no record; their digest is checked
    "files.*.sha256",  # pictures are compared pixel by pixel; another encoder writes other bytes
    "input_picture.path",  # where a file lies; its SHA-256 counts
    "lanes.*.picture.sha256",
    "mask.path",
    "schema_version",
)
"""What may differ between two records of one run; everything else is a difference of the runs."""

BY_MODEL = ("model.id", "model.revision", "model.commit")
"""How a model is called, which the user may say otherwise; what it is is told by its files."""

MEASURED = ("inversions.*.psnr", "inversions.*.vae_psnr")
"""Numbers that a run measures; all others were asked for or counted, and must be equal."""

EXACT, ROUNDED = 1e-6, 2e-2
"""Relative difference that a measured number may have: with equal pictures, and with equal ones but for rounding."""


def record_differences(then: Manifest, now: Manifest, *, exact: bool, other_model: bool = False) -> list[str]:
    """Say where two records differ, as ``settings.seed: 3 in the record, 5 in the run``.

    Args:
        then: The record.
        now: The record of the run that was made again.
        exact: Whether all pictures are equal, so that measured numbers must be.
        other_model: Whether the model was found under another name: the user's, or its folder on this machine.
    """
    old, new = then.comparable(), now.comparable()
    if then.request is None:  # schema 1 holds no request: what was asked for stands in the lanes and settings alone
        del old["request"], new["request"]
    ignored = (*MAY_DIFFER, *(BY_MODEL if other_model else ()))
    return differences(_by_name(old), _by_name(new), ignored, EXACT if exact else ROUNDED)


def differences(then: Any, now: Any, ignored: tuple[str, ...] = (), allowed: float = 0.0) -> list[str]:
    """Say where two pieces of plain data differ, one sentence a place.

    Args:
        then: What the record says.
        now: What the run says.
        ignored: Places that may differ, as dotted paths; ``*`` stands for one name.
        allowed: Relative difference that numbers in `MEASURED` places may have.
    """
    return list(_differences(then, now, "", ignored, allowed))


def _by_name(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with lists of named things as mappings, so that differences are told by name."""
    keys = {"lanes": ("name",), "inversions": ("lane",), "coverage": ("lane", "controller")}
    found = dict(record)
    for field, names in keys.items():
        rows = record.get(field, [])
        found[field] = {" ".join(str(row[n]) for n in names): row for row in rows}
        if len(found[field]) < len(rows):
            found[f"number of {field}"] = len(rows)  # two of one name: one of them would not be seen
    return found


def _differences(then: Any, now: Any, path: str, ignored: tuple[str, ...], allowed: float) -> Iterator[str]:
    if any(_matches(path, pattern) for pattern in ignored):
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for name in [*then, *(n for n in now if n not in then)]:
            inner = f"{path}.{name}" if path else str(name)
            yield from _differences(then.get(name), now.get(name), inner, ignored, allowed)
        return
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, (a, b) in enumerate(zip(then, now, strict=True)):
            yield from _differences(a, b, f"{path}.{i}", ignored, allowed)
        return
    measured = any(_matches(path, pattern) for pattern in MEASURED)
    if not _equal(then, now, allowed if measured else 0.0):
        yield f"{path}: {_shown(then)} in the record, {_shown(now)} in the run"


def _matches(path: str, pattern: str) -> bool:
    """Whether a path is a pattern's or lies under it; ``*`` stands for one name, which may hold dots."""
    head, star, rest = pattern.partition(".*")
    if not star:
        return path == pattern
    return path.startswith(f"{head}.") and path.endswith(rest)


def _equal(a: Any, b: Any, allowed: float) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isfinite(a) and math.isfinite(b):
        return abs(a - b) <= allowed * max(1.0, abs(b))
    return type(a) is type(b) and a == b


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
