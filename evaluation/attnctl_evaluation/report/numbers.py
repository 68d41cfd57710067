"""Numbers as people read them: as many digits as the intervals carry, the same number in a whole column."""

from __future__ import annotations

import math
from collections.abc import Iterable

from attnctl_evaluation.bootstrap import Interval

MINUS = "\u2212"


def decimals(intervals: Iterable[Interval | None]) -> int:
    """Return how many decimals a column of means deserves, 0 to 6.

    The median half width of the intervals keeps one digit, or two where the first is 1 or 2.
    """
    found = [i for i in intervals if i is not None]
    halves = sorted((i.high - i.low) / 2 for i in found if i.high > i.low)
    if halves:
        size = halves[len(halves) // 2]
        digits = 2 if f"{size:e}"[0] in "12" else 1
    else:
        size, digits = max((abs(i.mean) for i in found), default=1.0), 4
    if not size or not math.isfinite(size):
        return 2
    return min(6, max(0, digits - 1 - math.floor(math.log10(size))))


def number(value: float | None, places: int) -> str:
    """Return a number with a fixed number of decimals and a real minus sign; very large ones in powers of ten."""
    if value is None:
        return ""
    text = f"{value:.{places}f}" if abs(value) < 1e7 else f"{value:.3g}"
    if text.startswith("-") and not text.strip("-0."):
        text = text[1:]  # minus nought
    return text.replace("-", MINUS)


def span(interval: Interval | None, places: int) -> str:
    """Return an interval in brackets; empty where there is none or a single case makes it meaningless."""
    if interval is None or interval.cases < 2:
        return ""
    return f"[{number(interval.low, places)}, {number(interval.high, places)}]"


def percent(share: float) -> str:
    """Return a share as a whole percentage."""
    return f"{100 * share:.0f} %"


def seconds(value: float | None) -> str:
    """Return a time with three digits."""
    if value is None:
        return ""
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def memory(size: int | None) -> str:
    """Return bytes in MiB or GiB."""
    if size is None:
        return ""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def count(number_of: int, noun: str, plural: str = "") -> str:
    """Return ``1 case``, ``2 cases``."""
    return f"{number_of:,} {noun if number_of == 1 else plural or noun + 's'}".replace(",", "\u202f")
