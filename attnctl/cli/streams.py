"""The three standard streams, whatever state a command finds them in: closed, full, gone, of another encoding.

A command's result goes to stdout, and a result that cannot be delivered is a failure: writing raises `OutputError`.
What goes to stderr is a courtesy, and losing it changes nothing: errors of writing there are dropped.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any


class OutputError(Exception):
    """What a command has to say cannot be written to stdout.

    Deliberately no `OSError`: code that looks after its own files must not take this for one of them.

    Args:
        cause: What the operating system said.
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.cause = cause

    @property
    def reader_gone(self) -> bool:
        """Whether whoever read the output went away, as ``head`` does when it has enough."""
        return self.cause.errno in {errno.EPIPE, errno.ECONNRESET}


class _Patient(io.FileIO):
    """A file descriptor that is written to until all is written; one that would block is waited for."""

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        total = len(left)
        while left:
            done = super().write(left)
            if done is None:  # the other end made this descriptor non-blocking, as some terminals' programs do
                select.select([], [self], [])
                continue
            left = left[done:]
        return total


class _Result(_Patient):
    """Stdout: says once that something was lost, then takes the rest, so that nothing fails a second time."""

    lost = False

    def write(self, data: Any, /) -> int:
        if self.lost:
            return len(memoryview(data).cast("B"))
        try:
            return super().write(data)
        except OSError as error:
            self.lost = True
            raise OutputError(error) from error


class _Courtesy(_Patient):
    """Stderr: what cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data).cast("B"))


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Make stdout and stderr keep their promises while a command runs.

    Streams that somebody put in place of the process's own, as test runners do, stay; only what their encoding lacks
    is written as escapes. On leaving, the interpreter's own streams are back, and stdout points nowhere if it was lost,
    so that the interpreter's last flush does not fail again.
    """
    _fill_gaps()
    before = sys.stdout, sys.stderr
    result: _Result | None = None
    if _own(sys.stdout, sys.__stdout__):
        result = _Result(1, "w", closefd=False)
        sys.stdout = _text(io.BufferedWriter(result), before[0])
    if _own(sys.stderr, sys.__stderr__):
        sys.stderr = _text(_Courtesy(2, "w", closefd=False), before[1], write_through=True)
    for stream in (sys.stdout, sys.stderr):
        # A prompt may hold letters that the terminal's encoding lacks: write them as escapes rather than fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OutputError, OSError, ValueError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before
        if result is not None and result.lost:
            drop_stdout()


def drop_stdout() -> None:
    """Point stdout at nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1 if sys.stdout is None else sys.stdout.fileno())
        os.close(nothing)


def _fill_gaps() -> None:
    """Take the numbers 0, 1 and 2 where they are closed: the next file that is opened would get them otherwise.

    A closed stdout then refuses what is written there, as it should; a closed stderr takes it and forgets it.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, flags)
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
                os.set_inheritable(number, True)


def _own(stream: Any, original: Any) -> bool:
    """Whether a stream is the process's own, not what somebody put in its place; both are None where it was closed."""
    return stream is original


def _text(raw: Any, old: Any, *, write_through: bool = False) -> io.TextIOWrapper:
    """Return a text stream with the encoding of the one that it stands in for."""
    return io.TextIOWrapper(
        raw,
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=raw.isatty(),
        write_through=write_through,
    )
