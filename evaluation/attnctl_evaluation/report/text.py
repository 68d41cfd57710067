"""Text from prompts, file names and plugins, made harmless for each place that it may go to."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from attnctl.terminal import visible

_UNSAFE_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MARKDOWN = re.compile(r"[\\`*_{}\[\]|~$]|(?<=:)//|(?<=[Ww]{3})\.|^[-+=#]|^\d+(?=[.)])|#(?=\d)")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a spreadsheet take a cell for a formula, full-width forms included."""


def clean(text: str) -> str:
    """Return text that any encoder takes: lone surrogates become escapes, control characters the replacement sign."""
    sound = text.encode("utf-8", "backslashreplace").decode("utf-8") if _SURROGATE.search(text) else text
    return _CONTROL.sub("\ufffd", sound)


def one_line(text: str) -> str:
    """Return `clean` text with every run of white space and every line break as one space."""
    return " ".join(clean(text.replace("\r", "\n")).split())


def cut(text: str, length: int) -> str:
    """Return text of at most `length` characters, with an ellipsis where something is missing."""
    return text if len(text) <= length else text[: length - 1] + "\u2026"


def script_json(data: Any) -> str:
    """Return JSON that can stand in an HTML script element: nothing in it can end the element or open a comment."""
    text = json.dumps(_cleaned(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for found, written in _UNSAFE_IN_SCRIPT.items():
        text = text.replace(found, written)
    return text


def _cleaned(data: Any) -> Any:
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, dict):
        return {clean(str(k)): _cleaned(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_cleaned(v) for v in data]
    return data


def pretty_json(data: Any) -> str:
    """Return JSON for reading; numbers that JSON has no sign for become text."""
    try:
        return json.dumps(_cleaned(data), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(_cleaned(data)), indent=2, ensure_ascii=False, default=str)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if abs(data) < float("inf") else str(data)
    if isinstance(data, dict):
        return {k: _finite(v) for k, v in data.items()}
    return [_finite(v) for v in data] if isinstance(data, list) else data


def markdown(text: str) -> str:
    """Return text for a line or a table cell of Markdown, in which it stands for itself: no mark, link or mention.

    What shows nothing or steers the direction of what follows is written as its code (`attnctl.terminal.visible`).
    """
    escaped = _MARKDOWN.sub(lambda found: _escaped(found[0]), visible(one_line(text)))
    return re.sub("[&<>@]", lambda found: _ENTITIES[found[0]], escaped)


def _escaped(found: str) -> str:
    return f"{found}\\" if found.isdigit() else f"\\{found}"


def latex(text: str) -> str:
    """Return text for a LaTeX document, in which it stands for itself.

    What shows nothing or steers direction is written as its code; joiners that shape letters, which fonts of papers
    need not have, are dropped.
    """
    kept = "".join(c for c in visible(one_line(text)) if unicodedata.category(c) not in ("Cf", "Co", "Cn"))
    return "".join(_LATEX.get(c, c) for c in kept).replace("--", "-{}-{}")


def csv_cell(value: object) -> str:
    """Return a value for a CSV cell; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    text = clean(str(value))
    return f"'{text}" if _seen_first(text) in _FORMULA else text


def _seen_first(text: str) -> str:
    """Return the first character that is seen; spreadsheets skip what is before it."""
    shown = (c for c in text if c in _FORMULA or not (c.isspace() or unicodedata.category(c)[0] == "C"))
    return next(shown, "")


def web_address(text: str) -> str:
    """Return the address that a source such as ``arXiv:2208.01626`` or ``https://...`` means, or an empty string."""
    stripped = text.strip()
    if found := re.fullmatch(r"arXiv:\s*(\d{4}\.\d{4,5}(?:v\d+)?)", stripped, re.IGNORECASE):
        return f"https://arxiv.org/abs/{found[1]}"
    return stripped if re.fullmatch(r"https://[\w.-]+(?:/[\w./~%#?=&+-]*)?", stripped, re.ASCII) else ""
