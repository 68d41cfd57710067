"""Several processes: they may refuse to start and die at work; no model takes part here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from attnctl_evaluation.benchmark.compare import Options, compare
from attnctl_evaluation.benchmark.plan import choose_cases
from attnctl_evaluation.benchmark.pool import Pool, WorkerError
from attnctl_evaluation.benchmark.processes import Processes
from attnctl_evaluation.benchmark.resolve import resolve


@pytest.fixture
def spec(light, registry):
    return resolve(light.light_spec(limit=6), registry)


@pytest.fixture
def cases(spec, registry):
    found = choose_cases(registry.make_dataset(spec.dataset).cases(), limit=spec.limit)
    return {case.id: case for case in found}


def test_workers_leave_what_one_process_leaves(light, registry, spec, cases, content, tmp_path: Path) -> None:
    """One of them is killed in the middle of a case, which another takes over."""
    deaths = {[*cases][2]: str(tmp_path / "died")}
    pool = Pool(spec, cases, 2, Processes(light.maker(spec, 0.01, deaths)))
    compare(spec, registry, Options(tmp_path / "pool", quiet=True), pool)
    assert (tmp_path / "died").exists()
    compare(spec, registry, Options(tmp_path / "one", quiet=True), light.LightEngine(light.LightBench(spec)))
    assert content(tmp_path / "pool") == content(tmp_path / "one")


def test_a_case_that_kills_every_worker_is_recorded_and_the_rest_goes_on(
    light, registry, spec, cases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deadly = [*cases][1]
    pool = Pool(spec, cases, 1, Processes(light.maker(spec, 0.0, {deadly: "always"})))
    outcome = compare(spec, registry, Options(tmp_path / "run", quiet=True), pool)
    failed = [row for row in outcome.results.records if row.status == "failed"]
    assert {row.case for row in failed} == {deadly}
    assert {row.method for row in failed} == {"none", "fpe"}
    assert failed[0].failure.kind == "WorkerCrash"
    assert failed[0].failure.message.endswith("lost 2 times; the last one ended with signal 9 (SIGKILL)")
    assert failed[0].prompt == cases[deadly].prompt
    assert sum(row.status == "ok" for row in outcome.results.records) == 10
    said = capsys.readouterr().err
    assert f"worked on {deadly}; it is tried again" in said
    assert f"worked on {deadly}; it is recorded as failed" in said


def test_a_worker_that_is_stopped_is_noticed_and_another_takes_its_case(
    light, registry, spec, cases, content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by a debugger or a file system that does not answer: the process is there, and nothing comes of it."""
    stopped = {[*cases][2]: f"stop:{tmp_path / 'stopped'}"}
    transport = Processes(light.maker(spec, 0.01, stopped))
    compare(spec, registry, Options(tmp_path / "pool", quiet=True), Pool(spec, cases, 2, transport, silence=8.0))
    assert (tmp_path / "stopped").exists()
    assert f"no sign of life for 8 seconds while it worked on {[*cases][2]}; it is tried" in capsys.readouterr().err
    compare(spec, registry, Options(tmp_path / "one", quiet=True), light.LightEngine(light.LightBench(spec)))
    assert content(tmp_path / "pool") == content(tmp_path / "one")
    assert transport.pids == []


def test_a_case_that_never_ends_is_recorded_and_the_rest_goes_on(light, registry, spec, cases, tmp_path: Path) -> None:
    """Its worker is alive and gives signs of it, as in a deadlock of two threads."""
    endless = [*cases][1]
    pool = Pool(spec, cases, 1, Processes(light.maker(spec, 0.0, {endless: "sleep"})), case_timeout=20.0)
    outcome = compare(spec, registry, Options(tmp_path / "run", quiet=True), pool)
    failed = [row for row in outcome.results.records if row.status == "failed"]
    assert {(row.case, row.failure.kind) for row in failed} == {(endless, "WorkerHang")}
    assert failed[0].failure.message.endswith("did not finish within 20 seconds")
    assert "--case-timeout" in failed[0].failure.hint
    assert sum(row.status == "ok" for row in outcome.results.records) == 10


def test_a_worker_that_cannot_start_says_why(light, spec, cases) -> None:
    pool = Pool(spec, cases, 2, Processes(light.maker(spec, 0.0, {"refuse": ""})))
    with pytest.raises(WorkerError, match="there is no such model") as caught:
        pool.record()
    assert caught.value.hint == "name another"
    pool.close()


def test_no_worker_is_left_when_the_pool_closes(light, spec, cases) -> None:
    transport = Processes(light.maker(spec, 30.0))
    pool = Pool(spec, cases, 1, transport)
    pool.record()
    processes = transport.pids
    pool.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_end_with_a_parent_that_is_killed(fixtures_dir: Path, tmp_path: Path) -> None:
    """Even in the middle of a long case."""
    import subprocess
    import sys

    script = f"""
import sys; sys.path.insert(0, {str(fixtures_dir)!r})
if __name__ == "__main__":
    from light_bench import light_spec, maker
    from attnctl_evaluation.benchmark.plan import Job
    from attnctl_evaluation.benchmark.pool import Pool
    from attnctl_evaluation.benchmark.processes import Processes
    spec = light_spec()
    transport = Processes(maker(spec, 600.0))
    pool = Pool(spec, {{}}, 1, transport)
    pool.record()
    print(transport.pids[0], flush=True)
    list(pool.work([Job(0, "c", 0)]))
"""
    (tmp_path / "parent.py").write_text(script)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split(")")[1][:3]:
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")
