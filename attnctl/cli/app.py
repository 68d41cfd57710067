"""Where every command starts and ends: what is thrown becomes one line on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from attnctl.cli.ending import end, hearing_signals
from attnctl.cli.parser import build_parser
from attnctl.cli.streams import guarded_streams
from attnctl.command import CORE_COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``attnctl``; by default this process's own.

    Returns:
        0 for success, 2 for faults that the user can mend, 1 for faults of attnctl itself or of the installation,
        130 after an interrupt, 143 and 129 after a request to end (SIGTERM, SIGHUP), 141 when whoever read the output
        went away.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    sent: list[int] = []
    with guarded_streams():
        try:
            with hearing_signals(sent):
                code = _run(words)
                sys.stdout.flush()
            return code
        except BaseException as error:  # `end` names what may end a command; nothing passes it
            return end(error, sent)


def _run(words: list[str]) -> int:
    # The core's own commands do not wait for plugins that they do not need.
    parser = build_parser({} if words and words[0] in CORE_COMMANDS else None)
    try:
        arguments = parser.parse_args(words)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    if arguments.command is None:
        parser.print_help()
        return 0
    arguments.words = words
    return int(arguments.execute(arguments))
