"""One case with a real, tiny model: who shares what, whose fault is whose, and what is written down."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.loading import load_model
from attnctl.method import EditMethod, EditPlan, Source
from attnctl.metric import Metric, MetricCard, Score
from attnctl.registry import Registry
from attnctl_evaluation.benchmark.resolve import resolve
from attnctl_evaluation.benchmark.runner import run_case
from attnctl_evaluation.benchmark.setup import Setup, failure_of
from attnctl_evaluation.benchmark.spec import build_spec

PROMPTS = {"source_prompt": "a red cat on grass", "prompt": "a blue cat on grass"}


def picture(size):
    from PIL import Image

    height, width = size
    levels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def broken(size):
    raise OSError("the file ends too early at 0x7f3a55e01230")


class Bad(EditMethod):
    """Raises when it plans, in two ways."""

    name = "bad"

    def plan(self, request, model):
        if "leave" in request.prompt:
            raise SystemExit(3)
        raise ZeroDivisionError("division\nby zero")


class Late(EditMethod):
    """Plans well, and raises in the middle of a run."""

    name = "late"

    def plan(self, request, model):
        from attnctl.controller import Controller

        def fail(call):
            raise ValueError("late fault at 0xdeadbeef12")

        return EditPlan(Source(request.source_prompt or ""), (Controller("late", on_step_end=fail),), ddim(request))


class Idle(EditMethod):
    """Controls nothing that would change a number."""

    name = "idle"

    def plan(self, request, model):
        from attnctl.controller import Controller

        plan = Controller("idle", on_step_end=lambda call: None)
        return EditPlan(Source(request.source_prompt or ""), (plan,), ddim(request))


def ddim(request):
    from attnctl.inversion import InversionSpec

    return InversionSpec("ddim", request.source_prompt or "") if request.real else None


class Cases(Dataset):
    """One case of every kind."""

    name = "kinds"

    def cases(self):
        blue = np.zeros((64, 64), bool)
        blue[:32] = True
        return [
            Case(id="real", picture=picture, mask=lambda size: blue, **PROMPTS),
            Case(id="drawn", seed=3, **PROMPTS),
            Case(id="missing", missing="there is no picture 'x.png'", **PROMPTS),
            Case(id="broken", picture=broken, **PROMPTS),
            Case(id="leave", picture=picture, source_prompt=None, prompt="leave"),
        ]


class Moody(Metric):
    """Fails on the first picture that it sees."""

    name = "moody"
    summary = "x"
    better = "higher"

    def card(self):
        return MetricCard("moody", "moody", "x", "higher", 0, 1, "", "")

    def measure(self, sample):
        if sample.prompt == "leave":
            raise RuntimeError("not today")
        return Score(float(sample.edited.mean()))


@pytest.fixture(scope="module")
def plugged() -> Registry:
    found = Registry.load()
    plugin = SimpleNamespace(
        attnctl_methods=hookimpl(lambda: [Bad, Late, Idle]),
        attnctl_datasets=hookimpl(lambda: [Cases]),
        attnctl_metrics=hookimpl(lambda: [Moody]),
    )
    assert not found.register(plugin, "of this test").error
    return found


@pytest.fixture(scope="module")
def make_bench(plugged: Registry, tiny_model_folder: Path):
    model = load_model(str(tiny_model_folder), device="cpu")

    def make(methods, **more) -> Setup:
        data = {"dataset": "kinds", "methods": methods, "model": str(tiny_model_folder), "size": [64, 64]}
        data |= {"steps": 2, "guidance": 2.0, "metrics": ["psnr", "psnr.outside", "moody"], "threads": 1, **more}
        return Setup(resolve(build_spec(data, "a test"), plugged), plugged, model=model)

    return make


@pytest.fixture(scope="module")
def bench(make_bench) -> Setup:
    return make_bench(["none", "bad", "fpe", "late", "idle", "p2p"])


def rows(result) -> dict:
    return {row.method: row for row in result.records}


@pytest.mark.parametrize("case", ["real", "drawn"])
def test_every_fault_is_that_of_the_lane_that_has_it(bench: Setup, case: str) -> None:
    result = run_case(bench, case, 0)
    found = rows(result)
    assert {m: r.status for m, r in found.items()} == {
        **dict.fromkeys(("none", "fpe", "p2p"), "ok"),
        **dict.fromkeys(("bad", "late", "idle"), "failed"),
    }
    assert found["bad"].failure.model_dump() == {"kind": "ZeroDivisionError", "message": "division by zero", "hint": ""}
    assert found["late"].failure.kind == "ValueError"
    assert found["late"].failure.message == "late fault at 0x..."
    assert found["late"].pictures.edit is None
    assert found["idle"].failure.kind == "NoOpError"
    assert "idle" in found["idle"].failure.message
    assert found["idle"].pictures.edit in result.pictures  # it is there all the same
    assert not found["idle"].scores


def test_the_same_job_gives_the_same_bytes(make_bench) -> None:
    bench = make_bench(["none", "p2p"])
    first, second = run_case(bench, "real", 0), run_case(bench, "real", 0)
    assert first.pictures == second.pictures
    assert first.records == second.records


def test_rows_hold_scores_with_cards_coverage_and_pictures(make_bench) -> None:
    bench = make_bench(["fpe"])
    result = run_case(bench, "real", 0)
    row = rows(result)["fpe"]
    assert set(row.scores) == {"psnr", "psnr.outside", "moody"}
    assert row.cards == {k: bench.panel.cards[k].id for k in row.scores}
    assert row.scores["psnr"].value > 0
    assert row.coverage[0]["acted"] == row.coverage[0]["expected"] > 0
    assert row.pictures.model_dump() == {
        "edit": "ddim+fpe/real.png",
        "source": "input/real.png",
        "truth": None,
        "mask": "mask/real.png",
    }
    timing = next(t for t in result.timings if t.method == "fpe")
    assert timing.score_seconds > 0
    assert {"inversion", "edit", "decode"} <= set(timing.seconds)


def test_what_lanes_share_costs_as_much_as_alone(make_bench) -> None:
    """Rows are counted as if each method had run by itself, also those that ask the denoiser for more."""
    methods = ["none", "fpe", "pnp", "pix2pix-zero"]
    together = make_bench(methods, steps=3)
    for case in ("real", "drawn"):
        found = rows(run_case(together, case, 0))
        for method in methods:
            alone = rows(run_case(make_bench([method], steps=3), case, 0))[method]
            assert found[method].status == alone.status == "ok"
            assert found[method].rows == alone.rows, (case, method)


def test_one_request_serves_all_lanes_that_can_share(make_bench) -> None:
    bench = make_bench(["none", "fpe", "masactrl"])
    seen = []
    run = bench.session.run
    bench.session.run = lambda request: seen.append([e.name for e in request.edits]) or run(request)
    run_case(bench, "drawn", 0)
    assert seen == [["none", "fpe", "masactrl"]]
    seen.clear()
    run_case(bench, "real", 0)
    assert seen == [["none", "fpe", "masactrl"]]


def test_entries_may_differ_in_settings_inversion_and_mask(make_bench) -> None:
    methods = {
        "plain": {"method": "masactrl"},
        "masked": {"method": "masactrl", "mask": True},
        "direct": {"method": "fpe", "inversion": "direct"},
        "weak": {"method": "fpe", "settings": {"self_replace": 0.5}, "modifiers": ["proximal"]},
    }
    bench = make_bench(methods)
    result = run_case(bench, "real", 0)
    found = rows(result)
    assert all(row.status == "ok" for row in found.values()), [r.failure for r in found.values()]
    assert found["direct"].pictures.edit == "direct+direct/real.png"
    assert found["weak"].pictures.edit == "ddim+weak/real.png"
    assert len({result.pictures[row.pictures.edit] for row in found.values()}) == 4


def test_an_inversion_for_all_is_taken_where_there_is_a_choice(make_bench) -> None:
    bench = make_bench(["fpe", "sdedit"], inversion="direct")
    assert {label: entry.inversion for label, entry in bench.entries.items()} == {
        "fpe": "direct",
        "sdedit": "noising",
    }
    assert all(row.status == "ok" for row in run_case(bench, "real", 0).records)
    with pytest.raises(InputError, match="sdedit works with the inversion noising alone, not with direct"):
        _ = make_bench({"sdedit": {"inversion": "direct"}}).entries


def test_missing_and_broken_pictures_are_rows(bench: Setup) -> None:
    missing = run_case(bench, "missing", 0)
    assert {row.status for row in missing.records} == {"missing"}
    assert {row.failure.message for row in missing.records} == {"there is no picture 'x.png'"}
    assert not missing.pictures
    assert not missing.timings
    found = run_case(bench, "broken", 0).records
    assert {row.status for row in found} == {"failed"}
    assert {row.failure.message for row in found} == {"the file ends too early at 0x..."}


def test_a_case_without_a_source_prompt_runs_where_it_can(bench: Setup) -> None:
    found = rows(run_case(bench, "leave", 0))
    assert found["none"].status == "ok"
    assert found["p2p"].failure.kind == "InputError"
    assert found["bad"].failure.kind == "SystemExit"
    assert found["none"].scores["moody"].value is None
    assert found["none"].scores["moody"].reason == "failed: RuntimeError: not today"
    assert found["none"].scores["psnr.outside"].reason == "no mask"


def test_a_seed_of_the_run_moves_a_cases_own(make_bench) -> None:
    bench = make_bench(["none"], seeds=[0, 1])
    first, second = run_case(bench, "drawn", 0), run_case(bench, "drawn", 1)
    assert first.records[0].pictures.source == "input/drawn-seed0.png"
    assert second.records[0].pictures.edit == "ddim+none/drawn-seed1.png"
    assert [*first.pictures.values()] != [*second.pictures.values()]


def test_running_out_of_memory_is_recorded_and_the_others_run(make_bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(["none", "fpe", "p2p"])
    run = bench.session.run

    def short_of_memory(request):
        if any(edit.name == "fpe" for edit in request.edits):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return run(request)

    monkeypatch.setattr(bench.session, "run", short_of_memory)
    found = rows(run_case(bench, "drawn", 0))
    assert [found[m].status for m in ("none", "fpe", "p2p")] == ["ok", "failed", "ok"]
    assert "can't allocate memory" in found["fpe"].failure.message


def test_failures_are_one_line_and_the_same_in_every_run() -> None:
    assert failure_of(InputError("a\nb", hint="c")).model_dump() == {
        "kind": "InputError",
        "message": "a b",
        "hint": "c",
    }
    assert failure_of(KeyError()).message == "KeyError"
    assert len(failure_of(ValueError("x" * 9999)).message) == 500
