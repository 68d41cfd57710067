"""Entry points of a group, whose they are, and what is wrong with one, in a line."""

from __future__ import annotations

import functools
import importlib.metadata

import pluggy

from attnctl.errors import PluginError


def points_of(group: str) -> list[importlib.metadata.EntryPoint]:
    """List the entry points of a group, attnctl's own first."""
    points = importlib.metadata.entry_points(group=group)
    return sorted(points, key=lambda p: (owner_of(p)[0] != "attnctl", owner_of(p), p.name))


def owner_of(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Return an entry point's distribution and that one's version; damaged metadata must not take others down."""
    return ("unknown", "") if point.dist is None else _name_and_version(point.dist)


@functools.cache  # every look parses the whole file, and one distribution may have dozens of entry points
def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    try:
        return distribution.name or "unknown", distribution.version or ""
    except Exception:  # importlib.metadata raises TypeError, KeyError and others for missing or broken files
        return "unknown", ""


def first_line(fault: BaseException) -> str:
    """Say in one line what a stranger's code raised."""
    text = str(fault).strip().splitlines()
    if isinstance(fault, pluggy.PluginValidationError):  # says what is wrong in its last line only
        text = ["; ".join(line.strip() for line in text)]
    return (
        f"{type(fault).__name__}: {text[0]}"
        if text and not isinstance(fault, PluginError)
        else (text or [repr(fault)])[0]
    )
