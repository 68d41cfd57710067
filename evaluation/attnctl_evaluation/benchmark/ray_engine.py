"""A Ray cluster: actors load the model once each; the driver hands out cases and keeps what comes back.

Only the driver writes the run folder, so machines need not share a file system, apart from what the comparison reads:
the model and the data set must be where their names say on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnctl.compat import MissingPackageError
from attnctl.dataset import Case
from attnctl.errors import AttnctlError, InputError
from attnctl_evaluation.benchmark.bench import Facts, JobResult
from attnctl_evaluation.benchmark.crew import Queue, WorkerError, check_alike
from attnctl_evaluation.benchmark.plan import Job
from attnctl_evaluation.benchmark.spec import CompareSpec
from attnctl_evaluation.benchmark.workers import Make, Worker, make_bench

_STARTS = 3
"""How many actors in a row may end before they are ready."""


class _Seat:
    """What an actor runs; it loads nothing before it is asked, so that what cannot be loaded can be told."""

    def __init__(self, make: Make, index: int) -> None:
        self._make, self._index = make, index
        self._worker: Worker | None = None

    def facts(self) -> Facts | tuple[str, str]:
        """Load, and return what the header says of it, or message and hint of what cannot be loaded."""
        try:
            self._worker = self._make(self._index)
            return self._worker.facts
        except AttnctlError as error:
            return error.message, error.hint

    def run(self, case: str, seed: int) -> JobResult:
        """Work off a job."""
        assert self._worker is not None  # facts come first
        return self._worker.run(case, seed)


class RayEngine:
    """An engine of actors on a Ray cluster.

    Args:
        spec: The resolved comparison.
        cases: Cases by id.
        count: Number of actors.
        address: The cluster; None: the one that this machine is part of, else a new one on this machine.
        make: Builds a worker; by default a `Bench` for `spec`.

    Raises:
        MissingPackageError: Ray is not installed.
        InputError: The cluster cannot be reached.
    """

    def __init__(
        self,
        spec: CompareSpec,
        cases: Mapping[str, Case],
        count: int,
        address: str | None = None,
        make: Make | None = None,
    ) -> None:
        import functools

        self._spec, self._cases, self._count = spec, cases, count
        self._make = make or functools.partial(make_bench, spec)
        self._ray = _ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            _connect(self._ray, address, count, spec.threads or 1)
        self._actors: list[Any] = []
        self._waiting: dict[Any, tuple[Any, Job | None]] = {}
        self._idle: list[Any] = []
        self._lost = 0
        self._facts: Facts | None = None

    def facts(self) -> Facts:
        """Start all actors and return what the first says that is ready.

        Raises:
            AttnctlError: An actor cannot load what it needs.
        """
        while len(self._actors) < self._count:
            self._start()
        while self._facts is None:
            self._hear(None)
            while len(self._actors) < self._count:
                self._start()
        return self._facts

    def work(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobResult]]:
        """Yield what came of each job, as it comes.

        Raises:
            WorkerError: Actors keep ending before they are ready.
        """
        queue = Queue(self._spec, self._cases, jobs)
        while True:
            while self._idle and (job := queue.take()) is not None:
                actor = self._idle.pop()
                self._waiting[actor.run.remote(job.case, job.seed)] = (actor, job)
            if not len(queue) and not any(job for _, job in self._waiting.values()):
                return
            found = self._hear(queue)
            if found is not None:
                yield found
            starting = sum(job is None for _, job in self._waiting.values())
            while len(self._actors) < self._count and len(queue) > starting:
                self._start()
                starting += 1

    def close(self) -> None:
        """Stop the actors, and the cluster if it was made here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._own:
            self._ray.shutdown()

    def _start(self) -> None:
        needs = {"num_cpus": self._spec.threads or 1, "num_gpus": 0 if self._spec.device == "cpu" else self._gpus()}
        actor = self._ray.remote(_Seat).options(max_restarts=0, **needs).remote(self._make, 0)
        self._actors.append(actor)
        self._waiting[actor.facts.remote()] = (actor, None)

    def _gpus(self) -> float:
        """Return the share of a GPU that each actor gets; less than one where there are fewer GPUs than actors."""
        have = float(self._ray.cluster_resources().get("GPU", 0))
        return min(1.0, have / self._count) if have else 0

    def _hear(self, queue: Queue | None) -> tuple[Job, JobResult] | None:
        """Wait until an actor says something, or ends; return a finished job."""
        (reference,), _ = self._ray.wait(list(self._waiting), num_returns=1)
        actor, job = self._waiting.pop(reference)
        try:
            said = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._actors.remove(actor)
            how = _how(error)
            if job is None or queue is None:
                self._lost_at_start(how)
                return None
            result = queue.crashed(job, how)
            return None if result is None else (job, result)
        except self._ray.exceptions.RayTaskError as error:
            raise WorkerError(f"a Ray actor cannot work: {_how(error)}", hint="see Ray's logs") from error
        if isinstance(said, tuple):
            raise WorkerError(said[0], hint=said[1])
        self._idle.append(actor)
        if job is not None:
            return job, said
        self._lost = 0
        if self._facts is None:
            self._facts = said
        else:
            check_alike(self._facts, said)
        return None

    def _lost_at_start(self, how: str) -> None:
        self._lost += 1
        if self._lost >= _STARTS:
            raise WorkerError(
                f"{self._lost} Ray actors in a row ended before they were ready: {how}",
                hint="the same attnctl, model and data set must be on every machine of the cluster",
            )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "--engine ray needs the package ray, which is not installed",
            hint="pip install 'attnctl[ray]', or use --workers N on this machine",
        ) from error
    return ray


def _connect(ray: Any, address: str | None, count: int, threads: int) -> None:
    """Join a cluster, or make one on this machine that is just large enough."""
    import logging

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        try:
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError:
            ray.init(num_cpus=count * threads, **options)
    except Exception as error:  # Ray raises all kinds, plain `Exception` among them
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the Ray cluster cannot be reached: {text[:200]}", hint="`ray status` says what runs; check --ray-address"
        ) from error


def _how(error: BaseException) -> str:
    """Return what an exception of Ray's says, in a line without its ids and addresses."""
    cause = getattr(error, "cause", None)
    text = str(cause or error).strip().splitlines() or [type(error).__name__]
    return f"{type(cause or error).__name__}: {text[-1][:200]}" if cause else type(error).__name__
