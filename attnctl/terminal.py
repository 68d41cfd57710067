"""Writing to the terminal: results on stdout, everything else on stderr, one line for each message."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

PLAIN_WIDTH = 1000
"""Width of tables that go to a file or a pipe, in characters: nothing is wrapped for a screen that is not there."""

_COLOURS = {"error": "1;31", "warning": "33", "interrupted": "33", "hint": "36", "note": "36"}


def say(kind: str, text: str) -> None:
    """Write ``kind: text`` to stderr, always as one line.

    Args:
        kind: ``error``, ``hint``, ``warning``, ``note`` or ``interrupted``.
        text: Any text; line breaks and control characters become spaces.
    """
    label = f"{kind}:"
    if _coloured(sys.stderr):
        label = f"\x1b[{_COLOURS[kind]}m{label}\x1b[0m"
    sys.stderr.write(f"{label} {one_line(text)}\n")
    sys.stderr.flush()


def one_line(text: str) -> str:
    """Return text without line breaks and control characters, which could rewrite what the terminal shows.

    What would be invisible there, or would turn the direction of what follows, is shown as its code (`visible`).
    """
    kept = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in text)
    return " ".join(visible(kept).split())


def visible(text: str) -> str:
    """Return text in which every character that shows nothing is written as its code: ``<U+202E>``.

    Those are bidirectional controls, which make a text read as another one, zero-width and tag characters, fillers and
    unassigned codes, which hide text in a text. Joiners stay where they shape letters or pictographs, and so do the
    selectors that make a sign a pictograph. Control characters, line breaks and lone surrogates are not touched.
    """
    if text.isascii():
        return text
    return "".join(f"<U+{ord(c):04X}>" if _hidden(text, place) else c for place, c in enumerate(text))


_FILLERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0000-\U000e0fff]"
)
"""Characters that show nothing though Unicode counts them among letters, marks and symbols."""

_SHOWN_FORMATS = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd]")
"""Signs of Arabic and other scripts that are seen, though Unicode calls them formats."""


def _hidden(text: str, place: int) -> bool:
    c = text[place]
    if c.isascii() or not (_FILLERS.match(c) or unicodedata.category(c) in {"Cf", "Cn", "Co"}):
        return False
    before = unicodedata.category(text[place - 1]) if place else ""
    if c in "\u200c\u200d":
        after = unicodedata.category(text[place + 1]) if place + 1 < len(text) else ""
        joins = {"Lo", "Mn", "Mc", "So", "Sk"}
        return before not in joins or after not in joins
    if c in "\ufe0e\ufe0f":
        return not (before[:1] in {"S", "P"} or (place > 0 and text[place - 1] in "0123456789"))
    return not _SHOWN_FORMATS.match(c)


def shorten(text: str, length: int = 60) -> str:
    """Return text cut to `length` characters, with an ellipsis where something is missing."""
    return text if len(text) <= length else text[: length - 3] + "..."


def quoted(text: str, length: int = 60) -> str:
    """Return text on one line in double quotes, cut to `length` characters."""
    return f'"{shorten(one_line(text), length)}"'


def show(*parts: RenderableType) -> None:
    """Write tables and texts to stdout."""
    console = _console(sys.stdout)
    if sys.stdout.isatty():
        for part in parts:
            console.print(part)
        return
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    # Cells are padded to their column's width: nobody needs those spaces in a file.
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def show_json(data: Any) -> None:
    """Write one JSON value to stdout; infinite and undefined numbers become text, which JSON has no numbers for."""
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False)
    sys.stdout.write("".join(json.dumps(c)[1:-1] if _unseen(text, n) else c for n, c in enumerate(text)) + "\n")


def _unseen(text: str, place: int) -> bool:
    """Whether a character of JSON is better written as its escape, which says the same."""
    c = text[place]
    return (not c.isascii() and (unicodedata.category(c) in {"Cc", "Zl", "Zp"} or _hidden(text, place))) or c == "\x7f"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """Lay out rows as a table; cells are plain text, whatever brackets and line breaks they hold.

    Args:
        columns: Headings.
        rows: As many cells as headings in each row; None shows as an empty cell.
        right: Headings of columns with numbers, set flush right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        made.add_column(Text(one_line(name)), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*("" if cell is None else Text(one_line(str(cell))) for cell in row))
    return made


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Lay out names and values, one pair to a line, without headings."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True, style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(Text(one_line(name)), Text(one_line(str(value))))
    return made


def plain(text: str) -> RenderableType:
    """Return text for `show`, with its line breaks, brackets not read as markup."""
    from rich.text import Text

    return Text("\n".join(_one_row(line) for line in text.split("\n")))


def _one_row(line: str) -> str:
    """Return a line with its spaces, without what could rewrite the terminal."""
    return visible("".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in line))


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class Pipe(Console):
        """A console that lets the caller deal with a closed pipe."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    width = None if stream.isatty() else PLAIN_WIDTH
    return Pipe(file=stream, width=width, highlight=False, emoji=False, markup=False)


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data
