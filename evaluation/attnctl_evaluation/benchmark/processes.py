"""Workers as processes of this machine, each with its own model."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from attnctl.errors import AttnctlError
from attnctl_evaluation.benchmark.plan import Job
from attnctl_evaluation.benchmark.pool import BEAT, Make, Message


class _Line:
    """The worker's end of the connection; two threads speak on it."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def say(self, message: Message) -> None:
        with self._lock:
            self._connection.send(message)

    def beat(self) -> None:
        """Give signs of life until the parent is gone."""
        with contextlib.suppress(OSError):
            while True:
                time.sleep(BEAT)
                self.say(Message("alive"))


def _serve(connection: Connection, make: Make, index: int) -> None:
    """Run in the worker process: load, then work off jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops its workers
    line = _Line(connection)
    for task in (_end_with_parent, line.beat):
        threading.Thread(target=task, daemon=True).start()
    try:
        try:
            worker = make(index)
            line.say(Message("ready", worker.record))
        except AttnctlError as error:
            line.say(Message("refused", (error.message, error.hint)))
            return
        except Exception as error:  # whatever strangers' plugins raise when they are loaded
            line.say(Message("refused", (f"a worker cannot start: {type(error).__name__}: {error}", "")))
            return
        while (job := connection.recv()) is not None:
            line.say(Message("done", worker.run(job.case, job.seed)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def _end_with_parent() -> None:
    """End this process when its parent is killed, even in the middle of a long case."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class Processes:
    """A transport to processes of this machine; a handle is the connection to one.

    Args:
        make: Builds a worker.
    """

    starts = 1
    hint = "it may have run out of memory while loading the model: use fewer --workers"

    def __init__(self, make: Make) -> None:
        self._make = make
        self._processes: dict[Connection, Any] = {}

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that are there."""
        return [process.pid for process in self._processes.values()]

    def start(self, index: int) -> Connection:
        """Start a process."""
        context = multiprocessing.get_context("spawn")  # forked processes cannot use CUDA, nor torch's threads
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._make, index), daemon=True)
        process.start()
        theirs.close()
        self._processes[ours] = process
        return ours

    def send(self, handle: Connection, job: Job) -> None:
        """Give it a job."""
        with contextlib.suppress(OSError):  # it died just now, which is heard of next
            handle.send(job)

    def hear(self, seconds: float) -> list[tuple[Connection, Message]]:
        """Wait for messages."""
        return [(handle, self._read(handle)) for handle in wait([*self._processes], seconds)]  # type: ignore[arg-type,misc]

    def stop(self, handle: Connection) -> None:
        """Kill it; only this signal reaches a process that is stopped."""
        process = self._processes.pop(handle)
        handle.close()
        process.kill()
        process.join(5)

    def close(self) -> None:
        """Stop all processes."""
        for handle, process in self._processes.items():
            handle.close()
            process.terminate()
        for process in self._processes.values():
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join(5)
        self._processes = {}

    def _read(self, handle: Connection) -> Message:
        try:
            message: Message = handle.recv()
        except (EOFError, OSError):
            return Message("ended", _ending(self._processes[handle]))
        return message


def _ending(process: Any) -> str:
    """Say how a process ended."""
    process.join(10)
    code = process.exitcode
    if code is None or code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"
