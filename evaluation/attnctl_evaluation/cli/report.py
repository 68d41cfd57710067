"""`attnctl report`: from run folders to a file that people open."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attnctl.command import Command
from attnctl.hookspecs import hookimpl

if TYPE_CHECKING:
    from attnctl.arguments import Parser

_SHOWN_PROBLEMS = 3


class Report(Command):
    """Write a report of one or more comparisons."""

    name: ClassVar[str] = "report"
    help: ClassVar[str] = "write a report of comparisons: one HTML file, or tables"
    description: ClassVar[str] = (
        "Write what comparisons found: one HTML file that asks no server for anything, with tables, intervals and "
        "every case side by side; or its tables as Markdown or LaTeX; or every row as CSV. Several runs over the same "
        "data become one report.\n\nNo model is run. Pictures go into the HTML file while they are few and small, else "
        "into a folder beside it."
    )
    examples: ClassVar[str] = (
        "  attnctl report RUN\n  attnctl report RUN_A RUN_B -o both.html\n  attnctl report RUN -o table.tex"
    )

    def add_arguments(self, parser: Parser) -> None:
        """Add what the command takes."""
        parser.add_argument(
            "runs", nargs="+", metavar="RUN", help="folder that `attnctl compare` or `attnctl eval` wrote"
        )
        parser.add_argument(
            "-o", "--out", metavar="FILE", type=Path,
            help="where to write it (default: report with the format's suffix); - is stdout",
        )  # fmt: skip
        parser.add_argument(
            "--format", metavar="FORMAT", choices=("html", "md", "csv", "latex"),
            help="html, md, csv or latex (default: by the name of FILE, else html)",
        )  # fmt: skip
        parser.add_argument("--title", metavar="TEXT", default="", help="heading (default: the first run's)")
        parser.add_argument(
            "--pictures", metavar="WHERE", choices=("auto", "embed", "folder", "none"), default="auto",
            help="auto (default): in the HTML file up to --embed-limit, else beside it; embed; folder; none",
        )  # fmt: skip
        parser.add_argument(
            "--embed-limit", metavar="MB", type=_megabytes, default=16.0, help="see --pictures (default 16)"
        )
        parser.add_argument(
            "--thumbnail", metavar="PIXELS", type=_pixels, default=256, help="longer side of thumbnails (default 256)"
        )

    def run(self, arguments: Namespace) -> int:
        """Write it."""
        import sys

        from attnctl.terminal import say
        from attnctl_evaluation.report.writer import FORMATS, build, format_of, write

        out: Path | None = arguments.out
        to_terminal = out is not None and str(out) == "-"
        form = arguments.format or ("html" if out is None or to_terminal else format_of(out))
        place = None if to_terminal else (out or Path(f"report{FORMATS[form][0]}")).absolute()
        if place is not None:
            _check(place)
        text, problems = build(
            arguments.runs, form, out=place, title=arguments.title, pictures=arguments.pictures,
            thumbnail=arguments.thumbnail, limit=int(arguments.embed_limit * 1e6),
        )  # fmt: skip
        for line in problems[:_SHOWN_PROBLEMS]:
            say("warning", f"a picture cannot be shown: {line}")
        if len(problems) > _SHOWN_PROBLEMS:
            say("warning", f"so do {len(problems) - _SHOWN_PROBLEMS} others; the report lists them")
        if place is None:
            sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
            sys.stdout.flush()
            return 0
        write(text, place)
        sys.stdout.write(f"{out or place.name}\n")
        return 0


def _check(place: Path) -> None:
    """Refuse a place that cannot take the report before any work is done."""
    from attnctl.errors import InputError
    from attnctl.files import shown

    if place.is_dir():
        raise InputError(f"{shown(place)} is a folder", hint="name a file, for example report.html in it")
    if not place.parent.is_dir():
        raise InputError(
            f"the folder {shown(place.parent)} does not exist", hint="make it first, or choose another --out"
        )


def _megabytes(text: str) -> float:
    from attnctl.arguments import number

    value = number(text)
    if not 0 <= value <= 2000:
        raise ArgumentTypeError(f"expected 0 to 2000 megabytes, found {text}")
    return value


def _pixels(text: str) -> int:
    from attnctl.arguments import whole

    value = whole(text)
    if not 16 <= value <= 4096:
        raise ArgumentTypeError(f"expected 16 to 4096 pixels, found {text}")
    return value


@hookimpl
def attnctl_commands() -> list[type[Command]]:
    """Return the command."""
    return [Report]
