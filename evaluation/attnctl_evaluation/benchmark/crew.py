"""What engines with several workers share: the queue of jobs, and what happens to a job whose worker died."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

from attnctl.dataset import Case
from attnctl.errors import AttnctlError
from attnctl.terminal import say
from attnctl_evaluation.benchmark.bench import Facts, JobResult
from attnctl_evaluation.benchmark.plan import Job
from attnctl_evaluation.benchmark.spec import CompareSpec, differences
from attnctl_evaluation.records import Failure, Record

TRIES = 2
"""How often a job may take its worker down before it is recorded as failed."""


class WorkerError(AttnctlError):
    """Workers cannot be started, or differ from each other."""


class Queue:
    """Jobs that are left, and how often each was tried.

    Args:
        spec: The comparison.
        cases: Cases by id.
        jobs: What is to be done, in order.
    """

    def __init__(self, spec: CompareSpec, cases: Mapping[str, Case], jobs: Sequence[Job]) -> None:
        self._spec, self._cases = spec, cases
        self._left = deque(jobs)
        self._tries: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._left)

    def take(self) -> Job | None:
        """Return the next job; None when there is none."""
        return self._left.popleft() if self._left else None

    def crashed(self, job: Job, how: str) -> JobResult | None:
        """Take back a job whose worker died.

        Args:
            job: The job.
            how: How the worker ended, for example ``signal 9``.

        Returns:
            Failed rows if it was tried often enough; None if it will be tried again.
        """
        self._tries[job.number] += 1
        again = self._tries[job.number] < TRIES
        end = "it is tried again" if again else "it is recorded as failed"
        say("warning", f"a worker ended with {how} while it worked on {job.case}; {end}")
        if again:
            self._left.appendleft(job)
            return None
        failure = Failure(
            kind="WorkerCrash",
            message=f"the process that worked on this case ended {TRIES} times, at last with {how}",
            hint="it may have run out of memory: use fewer --workers, or --max-rows",
        )
        return failed_result(self._spec, self._cases[job.case], job.seed, failure)


def failed_result(spec: CompareSpec, case: Case, seed: int, failure: Failure) -> JobResult:
    """Return rows that say the same of every entry of a case."""
    rows = [
        Record(
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


def check_alike(first: Facts, other: Facts) -> None:
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
