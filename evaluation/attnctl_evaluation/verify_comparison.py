"""Does a comparison reproduce? Its rows, or a sample of them, made again and held against the record."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnctl.errors import InputError
from attnctl.files import shown
from attnctl.trusting import inside
from attnctl_evaluation.integrity import check_integrity
from attnctl_evaluation.rows import Results, Row
from attnctl_evaluation.verify import Comparison, Replacements, Verdict, compare_pictures, environment_differences

if TYPE_CHECKING:
    from attnctl_evaluation.benchmark.setup import JobResult, Setup
    from attnctl_evaluation.benchmark.spec import CompareSpec
    from attnctl_evaluation.rows import Header

SAME_PICTURE, ROUNDED_PICTURE = 1e-6, 1e-2
"""Relative difference that a score may have: of equal pictures, and of pictures that are equal but for rounding."""

Job = tuple[str, int]
"""Case id and seed: what is made again in one go."""


def verify_comparison(
    folder: Path, replaced: Replacements, tolerance: float, out: Path, sample: int | None, seed: int
) -> Verdict:
    """Make a comparison's rows again, and compare pictures, outcomes and scores.

    Args:
        folder: The run's folder, with its ``run.json``.
        replaced: What lies elsewhere on this machine.
        tolerance: PSNR in dB from which pictures count as close.
        out: A folder for the pictures made again; it is made if need be.
        sample: How many cases to do; None: all.
        seed: Seed of the sample.

    Raises:
        AttnctlError: The record is damaged, or the comparison cannot be carried out here.
    """
    from attnctl.registry import Registry
    from attnctl_evaluation.benchmark.progress import CompareProgress
    from attnctl_evaluation.benchmark.resolve import resolve
    from attnctl_evaluation.benchmark.runner import run_case
    from attnctl_evaluation.benchmark.setup import Setup

    results = Results.read(folder)
    registry = Registry.load(list(replaced.plugins))
    spec = resolve(recorded_spec(results.header, replaced, folder), registry)
    jobs = chosen_jobs(results.records, sample, seed)
    recorded = {row.key: row for row in results.records}
    setup = Setup(spec, registry)
    differences = _differences(setup, results.header)
    pictures: list[Comparison] = []
    scores: list[str] = []
    record: list[str] = []
    made_keys = set()
    with CompareProgress(len(jobs) * len(spec.methods), 0, quiet=False) as progress:
        for case, job_seed in jobs:
            if case not in setup.cases:
                pictures.append(Comparison(case, "missing", note="the data set has no such case any more"))
                continue
            made = run_case(setup, case, job_seed)
            _write(made, out)
            for row in made.records:
                made_keys.add(row.key)
                if row.key in recorded:
                    record += _compare_fields(recorded[row.key], row)
                    picture = _compare_row(recorded[row.key], row, folder, out, tolerance)
                    pictures.append(picture)
                    scores += _compare_scores(recorded[row.key], row, picture)
            progress.advance(len(made.records), sum(row.status == "failed" for row in made.records), case)
    wanted = {row.key for row in results.records if (row.case, row.seed) in set(jobs)}
    record += [f"{_name(key)}: no such row in the run" for key in sorted(wanted - made_keys)]
    record += [f"{_name(key)}: no such row in the record" for key in sorted(made_keys - wanted)]
    skipped = len(results.records) - len(wanted)
    _, damaged = check_integrity(folder)
    return Verdict(str(folder), tolerance, pictures, record, scores, damaged, differences, skipped)


def recorded_spec(header: Header, replaced: Replacements, folder: Path) -> CompareSpec:
    """Return what a comparison was asked to do, with what lies elsewhere here.

    Raises:
        InputError: The pictures were made by other code, or plugin files were not named again.
    """
    from attnctl_evaluation.benchmark.spec import build_spec

    if not header.model:
        raise InputError(
            f"the pictures of {shown(folder)} were made by other code, so they cannot be made again here",
            hint="verify folders that `attnctl run` or `attnctl compare` wrote",
        )
    spec = build_spec(header.config, shown(folder))
    given = {Path(p).name for p in replaced.plugins}
    needed = [p for p in spec.plugins if Path(p).name not in given]
    if needed:
        raise InputError(
            f"the comparison used the plugin file {shown(needed[0])}, which verifying would execute",
            hint=f"look at it, then add --plugin {Path(needed[0]).name}",
        )
    changes = {name: value for name in ("model", "device") if (value := getattr(replaced, name)) is not None}
    return spec.model_copy(update={"plugins": tuple(replaced.plugins), **changes})


def chosen_jobs(records: Sequence[Row], sample: int | None, seed: int) -> list[Job]:
    """Return the cases and seeds to do again, in the order of the record.

    Args:
        records: The rows.
        sample: How many cases; None: all.
        seed: Seed of the sample.
    """
    cases = list(dict.fromkeys(row.case for row in records))
    if sample is not None and sample < len(cases):
        cases = random.Random(seed).sample(cases, sample)
    wanted = set(cases)
    return list(dict.fromkeys((row.case, row.seed) for row in records if row.case in wanted))


def _differences(setup: Setup, header: Header) -> list[str]:
    record = setup.record
    found = environment_differences(
        {"environment": header.environment, "device": header.device, "model": _identity(header.model)},
        {"environment": record.environment, "device": record.device, "model": _identity(record.model)},
    )
    found = [text.removeprefix("environment ") for text in found]
    for column, card in header.cards.items():
        now = record.cards.get(column)
        if now is None:
            found.append(f"metric {column}: {record.absent.get(column, 'not measured now')}")
        elif now["id"] != card.get("id"):
            found.append(f"metric {column}: {card.get('id')} then, {now['id']} now")
    return found


def _identity(model: dict[str, object]) -> dict[str, object]:
    return {name: model.get(name) for name in ("family", "prediction", "sha256")}


def _name(key: tuple[str, str, int]) -> str:
    case, method, seed = key
    return f"{case} {method} seed {seed}"


def _compare_fields(then: Row, now: Row) -> list[str]:
    """Say which plain fields of a row differ; scores and pictures are compared for themselves."""
    fields = ("edit_type", "source_prompt", "prompt", "real", "coverage", "rows", "warnings")
    before, after = (row.model_dump(mode="json", include=set(fields)) for row in (then, now))
    return [
        f"{_name(then.key)}, {name}: {before[name]!r} in the record, {after[name]!r} in the run"
        for name in fields
        if before[name] != after[name]
    ]


def _write(made: JobResult, out: Path) -> None:
    for name, data in made.pictures.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _compare_row(then: Row, now: Row, folder: Path, out: Path, tolerance: float) -> Comparison:
    """Compare what came of a row: its outcome, and its picture where it has one."""
    name = f"{then.case} {then.method} seed {then.seed}"
    if then.status != now.status:
        return Comparison(name, "different", note=f"{_outcome(then)} then, {_outcome(now)} now")
    if then.pictures.edit is None or now.pictures.edit is None:
        return Comparison(name, "identical", note=_outcome(then))
    try:
        inside(folder, then.pictures.edit)
    except InputError as error:
        return Comparison(name, "missing", note=error.message)
    return compare_pictures(name, folder / then.pictures.edit, out / now.pictures.edit, tolerance)


def _outcome(row: Row) -> str:
    return row.status if row.failure is None else f"{row.status} ({row.failure.kind})"


def _compare_scores(then: Row, now: Row, picture: Comparison) -> list[str]:
    """Say which scores differ by more than their picture explains."""
    if picture.outcome not in ("identical", "close"):
        return []
    allowed = SAME_PICTURE if picture.outcome == "identical" else ROUNDED_PICTURE
    found = []
    for column, score in then.scores.items():
        other = now.scores.get(column)
        before, after = score.value, None if other is None else other.value
        if before is None or after is None:
            same = before is None and after is None
        else:
            same = abs(before - after) <= allowed * max(1.0, abs(before))
        if other is not None and not same:
            found.append(f"{picture.name}, {column}: {before} then, {after} now")
    return found
