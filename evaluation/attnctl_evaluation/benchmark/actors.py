"""Workers as actors of a Ray cluster, which load the model once each.

Only the driver writes the run folder, so machines need not share a file system, apart from what the comparison reads:
the model and the data set must be where their names say on every machine.
"""

from __future__ import annotations

import time
from typing import Any

from attnctl.compat import MissingPackageError
from attnctl.errors import AttnctlError, InputError
from attnctl_evaluation.benchmark.plan import Job
from attnctl_evaluation.benchmark.pool import BEAT, Make, Message, Worker, WorkerError
from attnctl_evaluation.benchmark.spec import CompareSpec


class _Seat:
    """What an actor runs; it loads nothing before it is asked, so that what cannot be loaded can be told."""

    def __init__(self, make: Make, index: int) -> None:
        self._make, self._index = make, index
        self._worker: Worker | None = None

    def load(self) -> Message:
        """Load, and return what the header says of it, or message and hint of what cannot be loaded."""
        try:
            self._worker = self._make(self._index)
            return Message("ready", self._worker.record)
        except AttnctlError as error:
            return Message("refused", (error.message, error.hint))

    def run(self, case: str, seed: int) -> Message:
        """Work off a job."""
        assert self._worker is not None  # it is loaded first
        return Message("done", self._worker.run(case, seed))

    def beat(self) -> Message:
        """Give a sign of life, after a while; a thread of its own does this."""
        time.sleep(BEAT)
        return Message("alive")


class Actors:
    """A transport to actors of a Ray cluster.

    Args:
        spec: The resolved comparison.
        make: Builds a worker.
        count: Number of actors.
        address: The cluster; None: the one that this machine is part of, else a new one on this machine.

    Raises:
        MissingPackageError: Ray is not installed.
        InputError: The cluster cannot be reached.
    """

    starts = 3
    hint = "the same attnctl, model and data set must be on every machine of the cluster"

    def __init__(self, spec: CompareSpec, make: Make, count: int, address: str | None = None) -> None:
        self._spec, self._make, self._count = spec, make, count
        self._ray = _ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            _connect(self._ray, address, count, spec.threads or 1)
        self._waiting: dict[Any, Any] = {}

    def start(self, index: int) -> Any:
        """Start an actor."""
        needs = {"num_cpus": self._spec.threads or 1, "num_gpus": 0 if self._spec.device == "cpu" else self._gpus()}
        seat = self._ray.remote(concurrency_groups={"beat": 1})(_Seat)
        actor = seat.options(max_restarts=0, **needs).remote(self._make, 0)  # Ray itself says which GPU it sees
        self._waiting[actor.load.remote()] = actor
        self._ask_for_beat(actor)
        return actor

    def send(self, handle: Any, job: Job) -> None:
        """Give it a job."""
        self._waiting[handle.run.remote(job.case, job.seed)] = handle

    def hear(self, seconds: float) -> list[tuple[Any, Message]]:
        """Wait for messages."""
        found, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        return [(self._waiting[reference], self._read(reference)) for reference in found]

    def stop(self, handle: Any) -> None:
        """Kill it."""
        self._waiting = {reference: actor for reference, actor in self._waiting.items() if actor is not handle}
        self._ray.kill(handle)

    def close(self) -> None:
        """Stop the actors, and the cluster if it was made here."""
        for actor in list(dict.fromkeys(self._waiting.values())):
            self.stop(actor)
        if self._own:
            self._ray.shutdown()

    def _ask_for_beat(self, actor: Any) -> None:
        self._waiting[actor.beat.options(concurrency_group="beat").remote()] = actor

    def _gpus(self) -> float:
        """Return the share of a GPU that each actor gets; less than one where there are fewer GPUs than actors."""
        have = float(self._ray.cluster_resources().get("GPU", 0))
        return min(1.0, have / self._count) if have else 0

    def _read(self, reference: Any) -> Message:
        actor = self._waiting[reference]
        try:
            message: Message = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            return Message("ended", _how(error))
        except self._ray.exceptions.RayTaskError as error:
            raise WorkerError(f"a Ray actor cannot work: {_how(error)}", hint="see Ray's logs") from error
        del self._waiting[reference]
        if message.kind == "alive":
            self._ask_for_beat(actor)
        return message


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
