"""Where every command starts and ends: what is thrown becomes one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence

from attnctl.cli.parser import build_parser
from attnctl.command import CORE_COMMANDS
from attnctl.errors import AttnctlError
from attnctl.terminal import say, shorten

DEBUG = "ATTNCTL_DEBUG"
"""Environment variable: with any value but 0, errors come with their traceback."""

INTERNAL, INTERRUPTED, CLOSED_PIPE, TERMINATED = 1, 130, 141, 143
"""Exit codes beside 0 and 2 (the user can mend it); the last three are 128 plus the signal's number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``attnctl``; by default this process's own.

    Returns:
        0 for success, 2 for faults that the user can mend, 1 for faults of attnctl itself or of the installation,
        130 after an interrupt, 143 after a request to end (SIGTERM), 141 when whoever read the output went away.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A prompt may hold letters that the terminal's encoding lacks: write them as escapes rather than fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    ended: list[int] = []
    try:
        try:
            with _hearing_sigterm(ended):
                return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        return CLOSED_PIPE
    except KeyboardInterrupt as stop:
        say("interrupted", str(stop) or "before anything was done")
        return TERMINATED if ended else INTERRUPTED
    except AttnctlError as error:
        _trace()
        say("error", error.message)
        if error.hint:
            say("hint", error.hint)
        return error.exit_code
    except Exception as error:
        shown = _trace()
        say("error", shorten(f"internal: {type(error).__name__}: {error}", 300))
        if not shown:
            say("hint", f"this is a fault of attnctl or of a plugin; run again with {DEBUG}=1 to see where")
        return INTERNAL


@contextlib.contextmanager
def _hearing_sigterm(ended: list[int]) -> Iterator[None]:
    """Treat a request to end, as batch systems send it, like Ctrl-C: finished work is kept, the rest tidied up.

    Args:
        ended: Takes the signal's number when it comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change what signals do
        return

    def end(number: int, frame: object) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: list[str]) -> int:
    # The core's own commands do not wait for plugins that they do not need.
    parser = build_parser({} if words and words[0] in CORE_COMMANDS else None)
    try:
        arguments = parser.parse_args(words)
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    if arguments.command is None:
        parser.print_help()
        return 0
    arguments.words = words
    return int(arguments.execute(arguments))


def _trace() -> bool:
    """Print the traceback of the current exception if the user asked for it, and say whether."""
    wanted = os.environ.get(DEBUG, "0") not in {"", "0"}
    if wanted:
        traceback.print_exc()
    return wanted


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail on the closed pipe again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
