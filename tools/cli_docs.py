"""Write the options of every command into docs/cli.md, below its mark: `python tools/cli_docs.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
MARK = "<!-- below: written by tools/cli_docs.py -->\n"


def render(parser: argparse.ArgumentParser) -> str:
    """Return one Markdown section for each command: what it does, and a table of its arguments and options."""
    return "\n".join(line for name, command in commands(parser) for line in _section(name, command))


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the commands of a command line and their parsers, in the order of its help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def updated(page: str, parser: argparse.ArgumentParser) -> str:
    """Return the page with everything below its mark written anew.

    Raises:
        ValueError: The page has no mark.
    """
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"no line {MARK.strip()!r} in the page")
    return f"{head}{MARK}\n{render(parser)}"


def _section(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    yield from (f"## attnctl {name}", "", (command.description or "").strip(), "")
    yield from ("| argument | what it does |", "| --- | --- |")
    for action in command._actions:
        if action.dest != "help":
            about = command._get_formatter()._expand_help(action).replace("|", "\\|")
            yield f"| {_spelling(action)} | {about} |"
    yield ""


def _spelling(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else ""
    spelled = " ".join(filter(None, (max(action.option_strings, key=len, default=""), value)))
    return f"`{spelled or action.dest}`".replace("|", "\\|")


def main() -> None:
    """Write the page."""
    from attnctl.cli import build_parser

    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), build_parser()), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()
