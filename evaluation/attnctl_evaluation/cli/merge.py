"""`attnctl merge`: parts of one comparison become one."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attnctl.command import Command
from attnctl.hookspecs import hookimpl

if TYPE_CHECKING:
    from attnctl.arguments import Parser


class Merge(Command):
    """Put shards together."""

    name: ClassVar[str] = "merge"
    help: ClassVar[str] = "put the shards of a comparison together"
    description: ClassVar[str] = (
        "Put parts of one comparison together, as --shard makes them: rows in order, pictures copied. The result has "
        "the bytes of a run that was never divided. Parts that were asked for, or made, in different ways are refused; "
        "so are two that say different things of one row."
    )
    examples: ClassVar[str] = "  attnctl merge FOLDER-1 FOLDER-2 -o FOLDER"

    def add_arguments(self, parser: Parser) -> None:
        """Add what the command takes."""
        parser.add_argument("parts", nargs="+", metavar="FOLDER", help="run folders, finished or not")
        parser.add_argument("-o", "--out", metavar="FOLDER", required=True, help="folder to write to")
        parser.add_argument("--force", action="store_true", help="start over where FOLDER holds a run")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: Namespace) -> int:
        """Merge."""
        from attnctl.terminal import plain, say, show, show_json
        from attnctl_evaluation.benchmark.merge import merge

        parts = [Path(part).expanduser() for part in arguments.parts]
        out = Path(arguments.out).expanduser()
        done = merge(parts, out, force=arguments.force)
        rows = len(done.results.records)
        if arguments.json:
            show_json({"folder": str(out), "rows": rows, "missing": done.missing})
        else:
            show(plain(f"{rows} rows of {len(parts)} parts written to {out}"))
        if done.missing:
            say("warning", f"{done.missing} rows are in no part; `attnctl compare {out}` makes them")
        return 0


@hookimpl
def attnctl_commands() -> list[type[Command]]:
    """Return it."""
    return [Merge]
