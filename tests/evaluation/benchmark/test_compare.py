"""A comparison from beginning to end, whatever interrupts it; no model takes part here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnctl.errors import InputError
from attnctl_evaluation.benchmark.compare import Interrupted, Options, compare, default_folder
from attnctl_evaluation.benchmark.plan import Shard
from attnctl_evaluation.benchmark.resolve import resolve
from attnctl_evaluation.rows import Results


@pytest.fixture
def spec(light, registry):
    return resolve(light.light_spec(limit=4, seeds=[0, 5]), registry)


@pytest.fixture
def go(light, registry, spec):
    """Compare with the light bench; `bench` replaces it."""

    def compare_light(folder: Path, asked=None, bench=None, **options):
        asked = asked or spec
        engine = light.LightEngine(bench or light.LightBench(asked))
        return compare(asked, registry, Options(folder, quiet=True, **options), engine)

    return compare_light


def test_every_case_method_and_seed_has_one_row_in_order(go, spec, tmp_path: Path) -> None:
    outcome = go(tmp_path / "run")
    keys = [row.key for row in outcome.results.records]
    cases = [json.loads(line)["id"] for line in (tmp_path / "run/cases.jsonl").read_text().splitlines()]
    assert keys == [(case, label, seed) for case in cases for seed in (0, 5) for label in ("none", "fpe")]
    assert (outcome.wanted, outcome.new, len(cases)) == (16, 16, 4)
    assert outcome.results.header.seeds == [0, 5]
    assert outcome.results.header.dataset.cases == 4
    assert set(outcome.results.timings) == set(keys)
    for row in outcome.results.records:
        assert (tmp_path / "run" / row.pictures.edit).is_file()


def test_the_same_command_again_changes_nothing(go, content, tmp_path: Path) -> None:
    go(tmp_path / "run")
    before = content(tmp_path / "run")
    assert go(tmp_path / "run").new == 0
    assert content(tmp_path / "run") == before


def test_an_interrupt_keeps_what_is_there_and_says_how_to_go_on(go, light, spec, content, tmp_path: Path) -> None:
    class Stopped(light.LightBench):
        count = 0

        def run(self, case, seed):
            self.count += 1
            if self.count == 4:
                raise KeyboardInterrupt
            return super().run(case, seed)

    with pytest.raises(Interrupted, match=r"^6 of 16 rows are kept in .*run; the same command continues$"):
        go(tmp_path / "run", bench=Stopped(spec))
    assert len(Results.read(tmp_path / "run").records) == 6  # a report can be made of it
    assert go(tmp_path / "run").new == 10
    go(tmp_path / "whole")
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def kill(fixtures_dir: Path, folder: Path, *words: str) -> int:
    done = subprocess.run(
        [sys.executable, fixtures_dir / "kill_compare.py", folder, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(fixtures_dir), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_it_comes_out_the_same(fixtures_dir: Path, tmp_path: Path) -> None:
    assert kill(fixtures_dir, tmp_path, "moments", "0", "4") >= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_between_writes_it_comes_out_the_same(fixtures_dir: Path, tmp_path: Path) -> None:
    assert kill(fixtures_dir, tmp_path, "writes", "1", "9") >= 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("words", [("writes", "1", "1"), ("moments", "1", "20"), ("moments", "2", "20")])
def test_killed_anywhere_it_comes_out_the_same(words: tuple[str, ...], fixtures_dir: Path, tmp_path: Path) -> None:
    assert kill(fixtures_dir, tmp_path, *words) >= 2


def test_another_question_is_refused_and_force_starts_over(go, spec, light, content, tmp_path: Path) -> None:
    go(tmp_path / "run")
    other = spec.model_copy(update={"steps": 7})
    with pytest.raises(InputError, match=r"was asked for something else: steps: 1, now 7$") as caught:
        go(tmp_path / "run", other)
    assert "--out" in caught.value.hint
    assert "--force" in caught.value.hint
    assert go(tmp_path / "run", other, force=True).new == 16
    go(tmp_path / "fresh", other)
    assert content(tmp_path / "run") == content(tmp_path / "fresh")


def test_failed_rows_stay_until_they_are_asked_for_again(go, light, spec, content, tmp_path: Path) -> None:
    class Failing(light.LightBench):
        def run(self, case, seed):
            result = super().run(case, seed)
            bad = {"status": "failed", "failure": {"kind": "E", "message": "m"}, "scores": {}, "pictures": {}}
            rows = [type(r).model_validate({**r.model_dump(), **bad}) for r in result.records]
            return type(result)(rows if seed == 5 else result.records, result.timings, result.pictures)

    outcome = go(tmp_path / "run", bench=Failing(spec))
    assert sum(row.status == "failed" for row in outcome.results.records) == 8
    assert go(tmp_path / "run").new == 0
    assert go(tmp_path / "run", retry_failed=True).new == 8
    go(tmp_path / "whole")
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def test_shards_hold_their_part_alone_under_one_header(go, tmp_path: Path) -> None:
    whole = go(tmp_path / "whole").results
    parts = [go(tmp_path / f"part-{i}", shard=Shard(i, 3)).results for i in (1, 2, 3)]
    assert [part.header for part in parts] == [whole.header] * 3
    assert sorted(r.key for part in parts for r in part.records) == sorted(r.key for r in whole.records)
    assert all(len({r.case for r in part.records}) in {1, 2} for part in parts)


def test_the_folder_follows_from_the_question(spec) -> None:
    assert default_folder(spec) == default_folder(spec.model_copy())
    assert default_folder(spec) != default_folder(spec.model_copy(update={"steps": 3}))
    assert default_folder(spec, Shard(1, 2)).name.endswith("-shard-1-of-2")
    assert default_folder(spec).name.startswith("compare-microbench-tiny-")


def test_a_worker_that_is_made_otherwise_is_refused(go, light, spec, tmp_path: Path) -> None:
    class Newer(light.LightBench):
        @property
        def record(self):
            return super().record.model_copy(update={"environment": {"packages": {"torch": "9.9"}}})

    go(tmp_path / "run")
    row = json.loads((tmp_path / "run/records.jsonl").read_text().splitlines()[0])
    (tmp_path / "run" / row["pictures"]["edit"]).unlink()  # so that there is something to do
    with pytest.raises(InputError, match=r'made in another way: environment\.packages: not set, now {"torch"'):
        go(tmp_path / "run", bench=Newer(spec))
