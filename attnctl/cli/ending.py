"""How a command ends: the one place that says what may end it, with which exit code and which words.

Every way out is here, and nothing passes: what is not named is a fault of attnctl or of a plugin, and said to be.

| what ends it | exit code | words |
| --- | --- | --- |
| an `AttnctlError` | its `exit_code`, 2 | ``error:`` and ``hint:`` |
| Ctrl-C, SIGTERM, SIGHUP | 128 plus the signal's number | ``interrupted:`` and what is kept |
| whoever read stdout went away | 141 | none |
| stdout is closed, or its disk full | 2 | ``error:`` and ``hint:`` |
| the operating system refuses something | 2 | ``error:`` and ``hint:`` |
| memory runs out | 2 | ``error:`` and ``hint:`` |
| anything else, ``sys.exit`` in a plugin too | 1 | ``error: internal:`` and ``hint:`` |
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Iterator

from attnctl.cli.streams import OutputError, drop_stdout
from attnctl.errors import AttnctlError
from attnctl.files import reason, shown
from attnctl.terminal import say, shorten

DEBUG = "ATTNCTL_DEBUG"
"""Environment variable: with any value but 0, errors come with their traceback."""

INTERNAL, MENDABLE, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141
"""Exit codes beside 0; those of signals are 128 plus the signal's number."""

_ASKED_TO_END = ("SIGTERM", "SIGHUP")
"""What batch systems and closed terminals send; Windows has no second one."""


def end(error: BaseException, sent: list[int]) -> int:
    """Say why a command ended, and return its exit code.

    Args:
        error: What was thrown.
        sent: Numbers of the signals that asked it to end.
    """
    if isinstance(error, KeyboardInterrupt):
        say("interrupted", _words(error) or "before anything was done")
        return 128 + sent[0] if sent else INTERRUPTED
    if isinstance(error, BrokenPipeError):  # of a stream that somebody put in place of stdout
        drop_stdout()
        return CLOSED_PIPE
    if isinstance(error, OutputError) and error.reader_gone:
        return CLOSED_PIPE
    shown_already = _trace()
    code, message, hint = _said(error)
    if code == INTERNAL and shown_already:
        hint = ""
    say("error", message)
    if hint:
        say("hint", hint)
    return code


def _said(error: BaseException) -> tuple[int, str, str]:
    """Return exit code, message and hint."""
    if isinstance(error, AttnctlError):
        return error.exit_code, error.message, error.hint
    if isinstance(error, OutputError):
        return (
            MENDABLE,
            f"cannot write the output to stdout: {reason(error.cause)}",
            "what was written to files before is kept; make room, or send the output elsewhere",
        )
    if isinstance(error, MemoryError):
        return MENDABLE, "there is not enough memory", "choose a smaller size, or fewer edits at once with --max-rows"
    if isinstance(error, OSError) and error.errno is not None:
        named = isinstance(error.filename, str | bytes | os.PathLike)
        place = f" for {shown(os.fsdecode(error.filename))}" if named else ""
        return (
            MENDABLE,
            shorten(f"the operating system refused something{place}: {reason(error)}", 300),
            f"what was finished before is kept; run again with {DEBUG}=1 to see where",
        )
    if isinstance(error, SystemExit):
        return INTERNAL, f"internal: something called sys.exit({_words(error)})", _FAULT
    return INTERNAL, shorten(f"internal: {type(error).__name__}: {_words(error)}", 300), _FAULT


_FAULT = f"this is a fault of attnctl or of a plugin; run again with {DEBUG}=1 to see where"


def _words(error: BaseException) -> str:
    """Return an error's own words; a stranger's class may fail even at that."""
    try:
        return str(error)
    except Exception:
        return "(it cannot say what)"


def _trace() -> bool:
    """Print the traceback of the current exception if the user asked for it, and say whether."""
    wanted = os.environ.get(DEBUG, "0") not in {"", "0"}
    if wanted:
        with contextlib.suppress(Exception):
            traceback.print_exc()
    return wanted


@contextlib.contextmanager
def hearing_signals(sent: list[int]) -> Iterator[None]:
    """Treat a request to end like Ctrl-C: finished work is kept, the rest tidied up.

    A signal that whoever started the command asked to ignore, as ``nohup`` does, stays ignored.

    Args:
        sent: Takes the signal's number when it comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change what signals do
        return

    def stop(number: int, frame: object) -> None:
        sent.append(number)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _ASKED_TO_END if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
