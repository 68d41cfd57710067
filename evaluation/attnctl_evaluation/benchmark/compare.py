"""Carrying out a comparison: what is left to do, who does it, and what it comes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from attnctl.dataset import Case, Dataset
from attnctl.files import slug
from attnctl.registry import Registry
from attnctl.runs.runfolder import DEFAULT_ROOT
from attnctl_evaluation.benchmark.header import make_header
from attnctl_evaluation.benchmark.inputs import check_unchanged
from attnctl_evaluation.benchmark.plan import Job, Shard, canonical, choose_cases, make_jobs
from attnctl_evaluation.benchmark.pool import CASE_TIMEOUT, Pool, Transport, Worker
from attnctl_evaluation.benchmark.progress import CompareProgress
from attnctl_evaluation.benchmark.resolve import with_threads
from attnctl_evaluation.benchmark.setup import JobResult, SetupRecord
from attnctl_evaluation.benchmark.spec import CompareSpec
from attnctl_evaluation.benchmark.store import RunStore
from attnctl_evaluation.rows import Results


class Engine(Protocol):
    """Whoever works off jobs."""

    def record(self) -> SetupRecord:
        """Load what is needed and say what the header is to say."""

    def work(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobResult]]:
        """Yield what came of each job, in any order."""

    def close(self) -> None:
        """Stop."""


class InProcess:
    """Works off jobs one after the other in this process."""

    def __init__(self, spec: CompareSpec, registry: Registry, cases: Mapping[str, Case]) -> None:
        self._spec, self._registry, self._cases = spec, registry, cases
        self._worker: Worker | None = None

    def record(self) -> SetupRecord:
        """Load the model and say what it is."""
        from attnctl_evaluation.benchmark.runner import make_worker
        from attnctl_evaluation.benchmark.setup import Setup

        self._worker = make_worker(Setup(self._spec, self._registry, cases=self._cases))
        return self._worker.record

    def work(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobResult]]:
        """Yield results in order."""
        assert self._worker is not None  # record come first
        for job in jobs:
            yield job, self._worker.run(job.case, job.seed)

    def close(self) -> None:
        """Nothing is left open."""
        self._worker = None


@dataclass(frozen=True)
class Options:
    """How a comparison is carried out; none of this changes what comes of it.

    Attributes:
        out: Folder; None: one whose name follows from what is asked, so that asking again continues.
        force: Start over.
        retry_failed: Make failed rows again.
        workers: Number of processes on this machine, or of actors on the cluster.
        engine: ``local`` or ``ray``.
        address: The Ray cluster; None: the one that this machine is part of, else a new one here.
        shard: Only this part.
        case_timeout: Seconds that a worker may take to load, or for one case, before it counts as stuck; None: a
            generous one, but none for one local process, which nobody watches.
        quiet: No progress.
    """

    out: Path | None = None
    force: bool = False
    retry_failed: bool = False
    workers: int = 1
    engine: str = "local"
    address: str | None = None
    shard: Shard | None = None
    case_timeout: float | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a comparison came to.

    Attributes:
        folder: The run folder.
        results: All of its rows.
        wanted: Rows that the run, or its shard, was to have.
        new: Rows that were made now.
    """

    folder: Path
    results: Results
    wanted: int
    new: int


class Interrupted(KeyboardInterrupt):
    """The user stopped it; the text says what is kept."""


def default_folder(spec: CompareSpec, shard: Shard | None = None) -> Path:
    """Return a folder named after what is asked: the same question finds its folder again."""
    text = json.dumps(spec.plain(), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    part = f"-shard-{shard.index}-of-{shard.count}" if shard is not None else ""
    return DEFAULT_ROOT / f"compare-{slug(spec.dataset)[:40]}-{digest}{part}"


def compare(spec: CompareSpec, registry: Registry, options: Options, engine: Engine | None = None) -> Outcome:
    """Carry out a comparison, or what is left of it.

    Args:
        spec: The resolved comparison; without a number of threads it gets that of the run that is continued, or this
            machine's cores divided by the workers.
        registry: Plugins.
        options: How.
        engine: Who does the work; None: as `options` say.

    Raises:
        AttnctlError: Something that the user can mend, before or after some rows.
        Interrupted: The user stopped it.
    """
    dataset = registry.make_dataset(spec.dataset, spec.dataset_settings)
    cases = choose_cases(dataset.cases(), spec.edit_types, spec.limit)
    ids, labels = [case.id for case in cases], list(spec.methods)
    jobs = make_jobs(ids, spec.seeds, options.shard)
    wanted = {(job.case, label, job.seed) for job in jobs for label in labels}
    folder = options.out or default_folder(spec, options.shard)
    with RunStore(folder, force=options.force) as store:
        spec = with_threads(spec, store.config(), options.workers)
        store.check_config(spec.plain())
        if options.retry_failed:
            store.forget([key for key, row in store.rows.items() if row.status == "failed"])
        before = len(store.rows)
        left = [job for job in jobs if any((job.case, label, job.seed) not in store.rows for label in labels)]
        if left or store.header is None:
            progress = CompareProgress(len(wanted), len(wanted & store.rows.keys()), quiet=options.quiet)
            try:
                _work(spec, registry, options, _Run(dataset, cases, left, engine), store, progress)
            except KeyboardInterrupt:
                kept = f"{progress.done} of {progress.total} rows are kept in {folder}; the same command continues"
                raise Interrupted("before anything was written" if store.header is None else kept) from None
        else:
            check_unchanged(folder, spec, dataset, cases, store.header)
        store.finish(canonical(ids, spec.seeds, labels))
        return Outcome(folder, Results.read(folder), len(wanted), len(store.rows) - before)


@dataclass(frozen=True)
class _Run:
    dataset: Dataset
    cases: Sequence[Case]
    jobs: Sequence[Job]
    engine: Engine | None


def _work(
    spec: CompareSpec, registry: Registry, options: Options, run: _Run, store: RunStore, progress: CompareProgress
) -> None:
    """Let an engine work off the jobs and keep every row as it comes."""
    with progress, closing(_engine(spec, registry, options, run)) as engine:
        header = make_header(spec, registry, run.dataset, run.cases, engine.record())
        store.begin(header, run.cases)
        for job, result in engine.work(run.jobs):
            new = store.add(result.records, result.timings, result.pictures)
            progress.advance(len(new), sum(row.status == "failed" for row in new), job.case)


def _engine(spec: CompareSpec, registry: Registry, options: Options, run: _Run) -> Engine:
    """Return who does the work; no more workers than there are jobs."""
    if run.engine is not None:
        return run.engine
    cases = {case.id: case for case in run.cases}
    workers = min(options.workers, max(1, len(run.jobs)))
    if options.engine == "local" and workers == 1 and options.case_timeout is None:
        return InProcess(spec, registry, cases)
    transport: Transport
    make = partial(_load_worker, spec)
    if options.engine == "ray":
        from attnctl_evaluation.benchmark.actors import Actors

        transport = Actors(spec, make, workers, options.address)
    else:
        from attnctl_evaluation.benchmark.processes import Processes

        transport = Processes(make)
    return Pool(spec, cases, workers, transport, case_timeout=options.case_timeout or CASE_TIMEOUT)


def _load_worker(spec: CompareSpec, index: int) -> Worker:
    """Load a worker where it is to work; only there are torch and the model needed."""
    from attnctl_evaluation.benchmark.runner import load_worker

    return load_worker(spec, index)
