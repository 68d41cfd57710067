"""From run folders to a report in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from attnctl.errors import InputError, unknown
from attnctl.files import shown, write_atomic
from attnctl_evaluation.report.contents import collect
from attnctl_evaluation.report.gallery import EMBED_LIMIT, Gallery, Mode
from attnctl_evaluation.report.joining import read_runs

Format = Literal["html", "md", "csv", "latex"]

FORMATS: dict[Format, tuple[str, ...]] = {
    "html": (".html", ".htm"),
    "md": (".md", ".markdown"),
    "csv": (".csv",),
    "latex": (".tex", ".latex"),
}
"""Formats, and the suffixes that mean them, the usual one first."""


def format_of(path: Path) -> Format:
    """Return the format that a file name means.

    Raises:
        InputError: Its suffix means none.
    """
    for name, suffixes in FORMATS.items():
        if path.suffix.lower() in suffixes:
            return name
    known = ", ".join(suffixes[0] for suffixes in FORMATS.values())
    raise InputError(
        f"{shown(path)} does not say which format the report is to have", hint=f"end it in {known}, or say --format"
    )


def build(
    runs: Sequence[str | Path],
    format: Format = "html",  # noqa: A002  (the word that users know from the command line)
    *,
    out: Path | None = None,
    title: str = "",
    pictures: Mode = "auto",
    thumbnail: int = 256,
    limit: int = EMBED_LIMIT,
) -> tuple[str, list[str]]:
    """Return a report as text.

    Args:
        runs: Run folders over the same data set.
        format: One of `FORMATS`.
        out: Where the text will be written, which decides where an HTML report's folder of pictures is; None where it
            is not written: pictures are then embedded.
        title: Heading; by default the first run's.
        pictures: See `attnctl_evaluation.report.gallery.Gallery`.
        thumbnail: Longer side of thumbnails, pixels.
        limit: Bytes of pictures up to which ``auto`` embeds them.

    Returns:
        The text, and a line for each picture that cannot be shown.

    Raises:
        InputError: A run cannot be read, or they are not over the same data set.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    joined = read_runs(runs)
    if format == "csv":
        from attnctl_evaluation.report.spreadsheet import render_csv

        return render_csv(joined), []
    contents = collect(joined, title=title)
    if format == "md":
        from attnctl_evaluation.report.plain import render_markdown

        return render_markdown(contents), []
    if format == "latex":
        from attnctl_evaluation.report.plain import render_latex

        return render_latex(contents), []
    from attnctl_evaluation.report.page import files_folder, render

    mode: Mode = "embed" if out is None and pictures != "none" else pictures
    gallery = Gallery(mode, files_folder(out or Path("report.html")), thumbnail=thumbnail, limit=limit)
    return render(contents, gallery), [f"{name}: {why}" for name, why in gallery.problems.items()]


def write(text: str, path: Path) -> None:
    """Write a report so that its file is never half one.

    Raises:
        InputError: The place cannot be written to.
    """
    write_atomic(path, text.encode("utf-8", "backslashreplace"))
