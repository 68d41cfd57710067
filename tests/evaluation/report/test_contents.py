"""What a report concludes from cards and records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnctl_evaluation.report.contents import _about, collect
from attnctl_evaluation.report.joining import read_runs
from attnctl_evaluation.rows import Results
from attnctl_evaluation.statistics import Draws

Make = Callable[..., Path]
QUICK = Draws(samples=100)


@pytest.mark.parametrize(
    ("name", "settings", "about"),
    [
        ("clip-directional", {}, "editing"),
        ("attribute-accuracy", {"which": "edited"}, "editing"),
        ("attribute-accuracy", {"which": "kept"}, "preservation"),
        ("clip-score", {"of": "source"}, "other"),
        ("psnr", {"region": "outside", "against": "source"}, "preservation"),
        ("psnr", {"region": "inside"}, "other"),
        ("psnr", {"against": "truth"}, "likeness to the exact edit"),
        ("a-strangers-metric", {}, "other"),
        ("a-strangers-metric", None, "other"),
    ],
)
def test_what_a_column_is_about_follows_from_its_card(name: str, settings: dict[str, Any] | None, about: str) -> None:
    assert _about("heading", {"heading": {"name": name, "settings": settings}}) == about
    assert _about("heading", {}) == "other"


def test_the_axes_are_the_most_telling_columns(make_run: Make, tmp_path: Path) -> None:
    contents = collect(read_runs([make_run(tmp_path / "run", size=16)]), draws=QUICK)
    assert contents.axes[0] == ["attribute-accuracy.edited", "clip-directional", "clip-score"]
    assert contents.axes[1] == ["lpips.outside", "psnr.outside", "ssim.outside"]


def test_strange_metrics_have_axes_too(make_run: Make, tmp_path: Path) -> None:
    columns = ("clip-score", "psnr.outside")
    run = make_run(tmp_path / "run", size=16, columns=columns)
    cards = {n: card | {"name": f"my-{n}"} for n, card in Results.read(run).header.cards.items()}
    strange = make_run(tmp_path / "strange", size=16, columns=columns, header={"cards": cards})
    assert collect(read_runs([strange]), draws=QUICK).axes == (["clip-score"], ["psnr.outside"])


def test_why_nobody_leads_is_said(make_run: Make, tmp_path: Path) -> None:
    few = collect(read_runs([make_run(tmp_path / "few", cases=3, size=16, fail_every=0)]), draws=QUICK)
    assert {verdict.why for verdict in few.verdicts} == {"too few cases"}
    alone = make_run(tmp_path / "alone", size=16, methods=("none",))
    assert {verdict.why for verdict in collect(read_runs([alone]), draws=QUICK).verdicts} == {"one method"}


def test_failures_with_one_message_are_one_group(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=14, size=16, fail_every=2, columns=("clip-score",))
    contents = collect(read_runs([run]), draws=QUICK)
    failed = [r for r in Results.read(run).records if r.status == "failed"]
    assert len(contents.failures) == 2
    assert sum(len(group.rows) for group in contents.failures) == len(failed)
    assert sum(sum(group.methods.values()) for group in contents.failures) == len(failed)


def test_who_lacks_pictures_that_others_have_is_said(make_run: Make, tmp_path: Path) -> None:
    def fairness(name: str, **options: Any) -> str:
        return "\n".join(collect(read_runs([make_run(tmp_path / name, size=16, **options)]), draws=QUICK).fairness)

    assert "No method has all the pictures" in fairness("all", fail_every=3)
    assert "fpe, p2p and pnp have not all the pictures" in fairness("unfinished", fail_every=0, unfinished=3)
    assert "pictures that others have" not in fairness("whole", fail_every=0)


def test_missing_numbers_and_conventions_are_said(make_run: Make, tmp_path: Path) -> None:
    contents = collect(read_runs([make_run(tmp_path / "run", cases=60, size=16)]), draws=QUICK)
    (gap,) = contents.gaps
    assert gap.startswith("lpips.outside: no number since \u201cnothing is outside the mask\u201d: ")


def test_an_entry_shared_by_methods_is_cited_once(make_run: Make, tmp_path: Path) -> None:
    contents = collect(read_runs([make_run(tmp_path / "run", size=16)]), draws=QUICK)
    assert [c.what for c in contents.citations] == ["none", "fpe", "p2p", "pnp", "synthetic"]
