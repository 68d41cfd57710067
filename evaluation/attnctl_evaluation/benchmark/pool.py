"""Several workers: who has which job, and what happens to a job whose worker died or hangs.

Where the workers are, and how one speaks with them, is a `Transport`: processes of this machine or actors of a cluster.
Only this process writes the run folder, so a worker may die at any moment without harm to it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from attnctl.dataset import Case
from attnctl.errors import AttnctlError
from attnctl.terminal import say
from attnctl_evaluation.benchmark.plan import Job
from attnctl_evaluation.benchmark.setup import JobResult, SetupRecord
from attnctl_evaluation.benchmark.spec import CompareSpec, differences
from attnctl_evaluation.rows import Failure, Row

TRIES = 2
"""How often a job may take its worker down before it is recorded as failed."""

BEAT = 5.0
"""Seconds between two signs of life of a worker."""

SILENCE = 60.0
"""Seconds without a sign of life after which a worker that is ready counts as stopped."""

CASE_TIMEOUT = 4 * 3600.0
"""Seconds after which a worker that is alive, but does not finish its case, counts as stuck."""

_HINTS = {
    "WorkerCrash": "it may have run out of memory: use fewer --workers, or --max-rows",
    "WorkerHang": "if such a case honestly takes longer, raise --case-timeout; then use --retry-failed",
}


class WorkerError(AttnctlError):
    """Workers cannot be started, or differ from each other."""


class Worker(Protocol):
    """What is built where the work is done, and then asked."""

    @property
    def record(self) -> SetupRecord:
        """What the header says of it."""

    def run(self, case: str, seed: int) -> JobResult:
        """Work off a job; faults of methods, pictures and metrics become rows."""


Make = Callable[[int], Worker]
"""Builds the worker number so-and-so; must be picklable."""


@dataclass(frozen=True)
class Message:
    """What a worker says, or what is heard of it.

    Attributes:
        kind: ``alive``; ``ready`` with its setup's record; ``refused`` with message and hint of what it cannot load;
            ``done`` with the job's result; ``ended`` with words on how it died.
        content: As the kind says.
    """

    kind: Literal["alive", "ready", "refused", "done", "ended"]
    content: Any = None


class Transport(Protocol):
    """Where workers are and how to speak with them; a handle is what it calls a worker by.

    Attributes:
        starts: How many workers in a row may end before they are ready.
        hint: What to do if they do.
    """

    starts: int
    hint: str

    def start(self, index: int) -> Any:
        """Start the worker number so-and-so and return its handle; it loads at once and says when it is ready."""

    def send(self, handle: Any, job: Job) -> None:
        """Give a worker its job; if it died just now, that is heard next."""

    def hear(self, seconds: float) -> list[tuple[Any, Message]]:
        """Wait until some workers say something or end, or the time is over; one message of each at most."""

    def stop(self, handle: Any) -> None:
        """End a worker by force, also one that is stopped; nothing is heard of it any more."""

    def close(self) -> None:
        """End all workers."""


@dataclass(eq=False)
class _Member:
    """A worker as the pool sees it."""

    handle: Any
    ready: bool = False
    job: Job | None = None
    since: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)


class Pool:
    """An engine of several workers.

    Args:
        spec: The resolved comparison.
        cases: Cases by id.
        count: Number of workers.
        transport: Where they are.
        case_timeout: Seconds that a worker may take to load, or for one job.
        silence: Seconds that a worker that is ready may give no sign of life.
    """

    def __init__(
        self,
        spec: CompareSpec,
        cases: Mapping[str, Case],
        count: int,
        transport: Transport,
        *,
        case_timeout: float = CASE_TIMEOUT,
        silence: float = SILENCE,
    ) -> None:
        self._spec, self._cases, self._count, self._transport = spec, cases, count, transport
        self._case_timeout, self._silence = case_timeout, silence
        self._members: dict[Any, _Member] = {}
        self._started = self._lost = 0
        self._facts: SetupRecord | None = None
        self._left: deque[Job] = deque()
        self._tries: Counter[int] = Counter()

    def record(self) -> SetupRecord:
        """Start all workers and return what the first says that is ready.

        Raises:
            AttnctlError: A worker cannot load what it needs.
        """
        while self._facts is None:
            while len(self._members) < self._count:
                self._start()
            self._hear()
        return self._facts

    def work(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobResult]]:
        """Yield what came of each job, as it comes.

        Raises:
            WorkerError: Workers keep dying before they are ready.
        """
        self._left, self._tries = deque(jobs), Counter()
        while True:
            for member in self._members.values():
                if member.ready and member.job is None and self._left:
                    member.job, member.since = self._left.popleft(), time.monotonic()
                    self._transport.send(member.handle, member.job)
            if not self._left and not any(member.job for member in self._members.values()):
                return
            yield from self._hear()
            idle = sum(member.job is None for member in self._members.values())
            while len(self._members) < self._count and len(self._left) > idle:
                self._start()
                idle += 1

    def close(self) -> None:
        """Stop all workers."""
        self._members = {}
        self._transport.close()

    def _start(self) -> None:
        handle = self._transport.start(self._started)
        self._started += 1
        self._members[handle] = _Member(handle)

    def _hear(self) -> list[tuple[Job, JobResult]]:
        """Wait until something happens; return the jobs that are finished, well or badly."""
        began = time.monotonic()
        said = self._transport.hear(BEAT)
        away = time.monotonic() - began - 2 * BEAT
        if away > 0:  # this process was stopped itself, perhaps with the workers: nobody is to blame
            for member in self._members.values():
                member.since, member.heard = member.since + away, time.monotonic()
        found = []
        while said:  # whoever hangs has nothing waiting here, however long ago this process last looked
            found += [self._receive(self._members[handle], word) for handle, word in said if handle in self._members]
            said = self._transport.hear(0)
        hung = [(member, how) for member in self._members.values() if (how := self._hangs(member))]
        found += [self._end(member, how, "WorkerHang") for member, how in hung]
        return [one for one in found if one is not None]

    def _receive(self, member: _Member, message: Message) -> tuple[Job, JobResult] | None:
        member.heard = time.monotonic()
        if message.kind == "refused":
            text, hint = message.content
            raise WorkerError(text, hint=hint)
        if message.kind == "ended":
            return self._end(member, f"ended with {message.content}", "WorkerCrash")
        if message.kind == "ready":
            member.ready, self._lost = True, 0
            if self._facts is None:
                self._facts = message.content
            else:
                check_alike(self._facts, message.content)
        if message.kind == "done" and member.job is not None:
            job, member.job = member.job, None
            return job, message.content
        return None

    def _hangs(self, member: _Member) -> str | None:
        """Say how a worker hangs; None if it works, or waits for work."""
        now = time.monotonic()
        if member.ready and now - member.heard > self._silence:
            return f"gave no sign of life for {self._silence:g} seconds"
        if (member.job is not None or not member.ready) and now - member.since > self._case_timeout:
            return f"did not finish within {self._case_timeout:g} seconds"
        return None

    def _end(self, member: _Member, how: str, kind: str) -> tuple[Job, JobResult] | None:
        """Let a worker go that died or hangs; return its job if it was tried often enough."""
        del self._members[member.handle]
        self._transport.stop(member.handle)
        if not member.ready:
            self._lost += 1
            if self._lost >= self._transport.starts:
                raise WorkerError(f"a worker {how} before it was ready", hint=self._transport.hint)
        job = member.job
        if job is None:
            return None
        self._tries[job.number] += 1
        again = self._tries[job.number] < TRIES
        end = "it is tried again" if again else "it is recorded as failed"
        say("warning", f"a worker {how} while it worked on {job.case}; {end}")
        if again:
            self._left.appendleft(job)
            return None
        text = f"the process that worked on this case was lost {TRIES} times; the last one {how}"
        failure = Failure(kind=kind, message=text, hint=_HINTS[kind])
        return job, failed_result(self._spec, self._cases[job.case], job.seed, failure)


def failed_result(spec: CompareSpec, case: Case, seed: int, failure: Failure) -> JobResult:
    """Return rows that say the same of every entry of a case."""
    rows = [
        Row(
            case=case.id,
            method=label,
            seed=seed,
            status="failed",
            edit_type=case.edit_type,
            source_prompt=case.source_prompt,
            prompt=case.prompt,
            real=case.real,
            failure=failure,
        )
        for label in spec.methods
    ]
    return JobResult(rows, [], {})


def check_alike(first: SetupRecord, other: SetupRecord) -> None:
    """Refuse workers whose rows could differ.

    Raises:
        WorkerError: They differ; the message says in what.
    """
    found = differences(first.model_dump(mode="json"), other.model_dump(mode="json"))
    if found:
        raise WorkerError(
            f"the workers are not alike: {'; '.join(found[:3])}",
            hint="run on machines of one kind with the same installation, or compare each kind by itself",
        )
