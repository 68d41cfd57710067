"""Several processes on one machine: each has its own model; this one hands out cases and keeps what comes back.

Only this process writes the run folder, so a worker may die at any moment without harm to it.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from attnctl.dataset import Case
from attnctl.errors import AttnctlError
from attnctl_evaluation.benchmark.bench import Bench, Facts, JobResult
from attnctl_evaluation.benchmark.crew import Queue, WorkerError, check_alike
from attnctl_evaluation.benchmark.plan import Job
from attnctl_evaluation.benchmark.spec import CompareSpec


class Worker(Protocol):
    """What a process builds and then asks; `Bench` is one."""

    @property
    def facts(self) -> Facts:
        """What the header says of it."""

    def run(self, case: str, seed: int) -> JobResult:
        """Work off a job."""


Make = Callable[[int], Worker]
"""Builds the worker number so-and-so; must be picklable."""


def make_bench(spec: CompareSpec, index: int) -> Worker:
    """Load what a worker needs; several workers share several GPUs evenly.

    Raises:
        AttnctlError: It cannot be loaded.
    """
    import torch

    if spec.device in (None, "cuda") and torch.cuda.device_count() > 1:
        torch.cuda.set_device(index % torch.cuda.device_count())
    return Bench(spec)


def _serve(connection: Connection, make: Make, index: int) -> None:
    """Run in the worker process: load, then work off jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        try:
            worker = make(index)
            connection.send(("ready", worker.facts))
        except AttnctlError as error:
            connection.send(("refused", (error.message, error.hint)))
            return
        except Exception as error:  # whatever strangers' plugins raise when they are loaded
            connection.send(("refused", (f"a worker cannot start: {type(error).__name__}: {error}", "")))
            return
        while (job := connection.recv()) is not None:
            connection.send(("done", worker.run(job.case, job.seed)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def _end_with_parent() -> None:
    """End this process when its parent is killed, even in the middle of a long case."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@dataclass(eq=False)
class _Hand:
    """One worker process as the parent sees it."""

    process: Any
    connection: Connection
    ready: bool = False
    job: Job | None = None

    def ending(self) -> str:
        """Say how it ended."""
        self.process.join(10)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"signal {-code} ({signal.Signals(-code).name})"
        return f"signal {-code}"


class WorkerPool:
    """An engine of several processes.

    Args:
        spec: The resolved comparison.
        cases: Cases by id.
        count: Number of processes.
        make: Builds a worker; by default a `Bench` for `spec`.
    """

    def __init__(self, spec: CompareSpec, cases: Mapping[str, Case], count: int, make: Make | None = None) -> None:
        self._spec, self._cases, self._count = spec, cases, count
        self._make = make or functools.partial(make_bench, spec)
        self._hands: list[_Hand] = []
        self._started = 0
        self._facts: Facts | None = None

    def facts(self) -> Facts:
        """Start all processes and return what the first says that is ready.

        Raises:
            AttnctlError: A process cannot load what it needs.
        """
        while len(self._hands) < self._count:
            self._start()
        while self._facts is None:
            for hand in self._heard():
                self._receive(hand)
        return self._facts

    def work(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobResult]]:
        """Yield what came of each job, as it comes.

        Raises:
            WorkerError: Workers keep dying before they are ready.
        """
        queue = Queue(self._spec, self._cases, jobs)
        while True:
            for hand in self._hands:
                if hand.ready and hand.job is None and (job := queue.take()) is not None:
                    hand.job = job
                    with contextlib.suppress(OSError):  # it died just now, which is heard of next
                        hand.connection.send(job)
            if not len(queue) and not any(hand.job for hand in self._hands):
                return
            for hand in self._heard():
                job = hand.job
                how, result = self._receive(hand)
                if job is not None and how:
                    result = queue.crashed(job, how)
                if job is not None and result is not None:
                    yield job, result
            while len(self._hands) < self._count and len(queue) > sum(h.job is None for h in self._hands):
                self._start()

    def close(self) -> None:
        """Stop all processes."""
        for hand in self._hands:
            hand.connection.close()
            hand.process.terminate()
        for hand in self._hands:
            hand.process.join(5)
            if hand.process.is_alive():
                hand.process.kill()
                hand.process.join()
        self._hands = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # forked processes cannot use CUDA, nor torch's threads
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._make, self._started), daemon=True)
        process.start()
        theirs.close()
        self._started += 1
        self._hands.append(_Hand(process, ours))

    def _heard(self) -> list[_Hand]:
        """Wait until a worker says something, or ends."""
        heard = wait([hand.connection for hand in self._hands])
        return [hand for hand in self._hands if hand.connection in heard]

    def _receive(self, hand: _Hand) -> tuple[str, JobResult | None]:
        """Take a worker's word; return how it ended, if it did, and the result, if it is one."""
        try:
            kind, said = hand.connection.recv()
        except (EOFError, ConnectionResetError):
            self._hands.remove(hand)
            hand.connection.close()
            how = hand.ending()
            if not hand.ready:
                raise WorkerError(
                    f"a worker ended with {how} before it was ready",
                    hint="it may have run out of memory while loading the model: use fewer --workers",
                ) from None
            return how, None
        if kind == "refused":
            raise WorkerError(said[0], hint=said[1])
        if kind == "ready":
            hand.ready = True
            if self._facts is None:
                self._facts = said
            else:
                check_alike(self._facts, said)
            return "", None
        hand.job = None
        return "", said
