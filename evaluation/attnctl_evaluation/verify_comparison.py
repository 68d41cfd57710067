"""Does a comparison reproduce? Its rows, or a sample of them, made again and held against the record."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnctl.errors import InputError
from attnctl.files import shown
from attnctl.trusting import inside
from attnctl_evaluation.integrity import check_integrity
from attnctl_evaluation.record_differences import differences
from attnctl_evaluation.rows import Results, Row
from attnctl_evaluation.verify import (
    Comparison,
    Replacements,
    Verdict,
    check_plugins,
    compare_pictures,
    environment_differences,
    name_here,
)

if TYPE_CHECKING:
    from attnctl_evaluation.benchmark.setup import JobResult, Setup
    from attnctl_evaluation.benchmark.spec import CompareSpec
    from attnctl_evaluation.rows import Header

SAME_PICTURE, ROUNDED_PICTURE = 1e-6, 1e-2
"""Relative difference that a score may have: of equal pictures, and of pictures that are equal but for rounding."""

HEADER_MAY_DIFFER = (
    "absent",  # listed among what differs between then and now
    "config.config",  # where things lie on this machine
    "config.device",
    "config.model",
    "config.plugins",
    "device",
    "environment",
    "schema_version",
)
"""What may differ between two headers of one comparison; everything else is a difference of the comparisons."""

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
    now = _header_now(setup)
    environment = _environment(now, results.header)
    pictures: list[Comparison] = []
    scores: list[str] = []
    record = [*_missing_rows(results), *_compare_headers(results.header, now, replaced)]
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
                    record += _compare_fields(recorded[row.key], row, now.absent)
                    record += _compare_others(recorded[row.key], row, folder, out, tolerance)
                    picture = _compare_row(recorded[row.key], row, folder, out, tolerance)
                    pictures.append(picture)
                    scores += _compare_scores(recorded[row.key], row, picture, now.absent)
            progress.advance(len(made.records), sum(row.status == "failed" for row in made.records), case)
    again = set(jobs)
    wanted = {row.key for row in results.records if (row.case, row.seed) in again}
    record += [f"{_name(key)}: no such row in the run" for key in sorted(wanted - made_keys)]
    record += [f"{_name(key)}: no such row in the record" for key in sorted(made_keys - wanted)]
    skipped = len(results.records) - len(wanted)
    _, damaged = check_integrity(folder)
    return Verdict(str(folder), tolerance, pictures, record, scores, damaged, environment, skipped)


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
    check_plugins(spec.plugins, replaced, "comparison")
    changes = {name: value for name in ("model", "device") if (value := getattr(replaced, name)) is not None}
    if replaced.model is None:
        changes["model"] = name_here(spec.model, spec.revision)
        if spec.config is not None:  # a single file's configuration, which may be a hub name, too
            changes["config"] = name_here(spec.config, None)
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


def _header_now(setup: Setup) -> Header:
    """Return the header that the comparison gets when it is done here."""
    from attnctl_evaluation.benchmark.header import make_header

    spec = setup.spec
    dataset = setup.registry.make_dataset(spec.dataset, spec.dataset_settings)
    return make_header(spec, setup.registry, dataset, list(setup.cases.values()), setup.record)


def _environment(now: Header, then: Header) -> list[str]:
    """Say what differs between the two machines."""
    found = environment_differences(
        {"environment": then.environment, "device": then.device},
        {"environment": now.environment, "device": now.device},
    )
    missing = [f"metric {column}: {now.absent[column]}" for column in then.cards if column in now.absent]
    return [*found, *missing]


def _missing_rows(results: Results) -> list[str]:
    """Say where a record holds fewer rows, or more, than its header promises."""
    header = results.header
    wanted = header.dataset.cases * len(header.seeds) * len(header.methods)
    found = len(results.records)
    if found == wanted:
        return []
    return [
        f"rows: {found} in the record, {wanted} in the run; it was not finished, is a part to be merged, or lost some"
    ]


def _compare_headers(then: Header, now: Header, replaced: Replacements) -> list[str]:
    """Say where two headers differ in what does not depend on the machine."""
    old, new = (header.model_dump(mode="json") for header in (then, now))
    for header in (old, new):
        header["methods"] = {entry["label"]: entry for entry in header["methods"]}
        header["columns"] = [column for column in header["columns"] if column not in now.absent]
        header["cards"] = {column: card for column, card in header["cards"].items() if column not in now.absent}
    new["config"] = {name: value for name, value in new["config"].items() if name in old["config"]}
    ignored = [*HEADER_MAY_DIFFER]
    if replaced.model is not None or old["model"].get("id") != new["model"].get("id"):
        ignored += ["model.id", "model.revision", "model.commit"]
    if then.environment.get("attnctl") != now.environment.get("attnctl"):  # what other versions say of themselves
        ignored += [f"{of}.{text}" for of in ("dataset", "methods.*") for text in ("summary", "paper", "bibtex")]
    return [f"header, {line}" for line in differences(old, new, tuple(ignored))]


def _name(key: tuple[str, str, int]) -> str:
    case, method, seed = key
    return f"{case} {method} seed {seed}"


def _compare_fields(then: Row, now: Row, absent: Mapping[str, str]) -> list[str]:
    """Say which plain fields of a row differ; outcome, scores and pictures are compared for themselves."""
    apart = {"status", "scores", "inputs", "sha256"}
    before, after = (row.model_dump(mode="json", exclude=apart) for row in (then, now))
    for row in (before, after):
        row["cards"] = {column: card for column, card in row["cards"].items() if column not in absent}
    return [f"{_name(then.key)}, {line}" for line in differences(before, after)]


def _compare_others(then: Row, now: Row, folder: Path, out: Path, tolerance: float) -> list[str]:
    """Say which pictures of a row beside the edit are not those of the run: source, truth and mask."""
    found = []
    for role in ("source", "truth", "mask"):
        before, after = getattr(then.pictures, role), getattr(now.pictures, role)
        if before is None or before != after:  # which `_compare_fields` tells
            continue
        compared = _compare_file(role, folder, before, out / after, tolerance)
        if compared.outcome not in ("identical", "close"):
            found.append(f"{_name(then.key)}: its {role} picture is {compared.outcome}; {compared.note}".rstrip("; "))
    return found


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
    if then.pictures.edit is None and now.pictures.edit is None:
        return Comparison(name, "identical", note=_outcome(then))
    if then.pictures.edit is None or now.pictures.edit is None:
        which = "record" if then.pictures.edit is None else "run"
        return Comparison(name, "missing", note=f"there is no picture in the {which}")
    return _compare_file(name, folder, then.pictures.edit, out / now.pictures.edit, tolerance)


def _compare_file(name: str, folder: Path, recorded: str, again: Path, tolerance: float) -> Comparison:
    """Compare a picture that the record names, if it lies in the run's folder, with the one that was made again."""
    try:
        path = inside(folder, recorded)
    except InputError as error:
        return Comparison(name, "missing", note=error.message)
    return compare_pictures(name, path, again, tolerance)


def _outcome(row: Row) -> str:
    return row.status if row.failure is None else f"{row.status} ({row.failure.kind})"


def _compare_scores(then: Row, now: Row, picture: Comparison, absent: Mapping[str, str]) -> list[str]:
    """Say which scores differ by more than their picture explains; columns that cannot be measured here are listed."""
    if picture.outcome not in ("identical", "close"):
        return []
    allowed = SAME_PICTURE if picture.outcome == "identical" else ROUNDED_PICTURE
    found = []
    for column in [*then.scores, *(name for name in now.scores if name not in then.scores)]:
        score, other = then.scores.get(column), now.scores.get(column)
        if score is None or other is None:
            if column not in absent:
                found.append(f"{picture.name}, {column}: not in the {'record' if score is None else 'run'}")
            continue
        before, after = score.value, other.value
        if before is None or after is None:
            same = before is None and after is None
        else:
            same = abs(before - after) <= allowed * max(1.0, abs(before))
        if not same:
            found.append(f"{picture.name}, {column}: {before} then, {after} now")
    return found
