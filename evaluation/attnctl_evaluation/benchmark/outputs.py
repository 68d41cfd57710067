"""Scoring pictures that any other code made: measure them, keep the same run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError
from attnctl.files import reason, shown, slug
from attnctl.pictures import png_bytes
from attnctl.terminal import say
from attnctl_evaluation.benchmark.finding import NOT_METHODS, by_case
from attnctl_evaluation.benchmark.finding import OutputsSpec as OutputsSpec
from attnctl_evaluation.benchmark.finding import find_outputs as find_outputs
from attnctl_evaluation.benchmark.header import describe_dataset
from attnctl_evaluation.benchmark.inputs import digest_of, inputs_of, say_stale, stale_rows
from attnctl_evaluation.benchmark.plan import canonical
from attnctl_evaluation.benchmark.progress import CompareProgress
from attnctl_evaluation.benchmark.score import Reference, mask_picture, mask_warnings, read_reference, score
from attnctl_evaluation.benchmark.setup import failure_of
from attnctl_evaluation.benchmark.store import INPUT, MASK, TRUTH, RunStore
from attnctl_evaluation.rows import Failure, Header, Key, MethodEntry, Pictures, Results, Row, Timing

if TYPE_CHECKING:
    from PIL.Image import Image

    from attnctl_evaluation.metrics.protocols import Panel


def evaluate(
    spec: OutputsSpec, dataset: Dataset, panel: Panel, out: Path, *, force: bool = False, quiet: bool = False
) -> Results:
    """Score pictures and write a run folder; of one that is there, what fits no more is measured anew.

    Args:
        spec: What is to be scored.
        dataset: The data set.
        panel: Columns.
        out: The run folder; what is there is kept where it was measured on the same files.
        force: Start over where it holds a run.
        quiet: Say nothing on the way.

    Raises:
        InputError: Nothing can be found, or the folder cannot be written.
    """
    notes: list[str] = []
    pictures = find_outputs(spec, notes)
    header = _header(spec, dataset, panel, list(pictures))
    folders = {entry.label: entry.folder for entry in header.methods}
    order = canonical([case.id for case in spec.cases], header.seeds, list(pictures))
    inputs = _inputs(spec, pictures)
    with RunStore(out, force=force) as store:
        notes += _start(store, header, spec.cases, inputs, folders)
        for text in notes:
            say("note", text)
        with CompareProgress(len(order), len(store.rows), quiet=quiet) as progress:
            for case in spec.cases:
                left = [label for label in pictures if (case.id, label, 0) not in store.rows]
                rows = []
                for label, opened in _open(case, pictures, spec.strip).items() if left else ():
                    if label in left:
                        row, timing, files = _score_one(spec, panel, case, label, folders[label], opened)
                        row = row.model_copy(update={"inputs": inputs[row.key]})
                        rows += store.add([row], [timing] if timing is not None else [], files)
                progress.advance(len(rows), sum(row.status == "failed" for row in rows), case.id)
        store.finish(order)
    return Results.read(out)


def _inputs(spec: OutputsSpec, pictures: Mapping[str, Mapping[str, Path]]) -> dict[Key, dict[str, str]]:
    """Return the digests of all that is measured, by row."""
    found: dict[Key, dict[str, str]] = {}
    sources = _sources(spec)
    for case in spec.cases:
        shared = inputs_of(case, sources.get(case.id))
        for label, paths in pictures.items():
            edit = {"edit": digest_of(paths[case.id])} if case.id in paths else {}
            found[case.id, label, 0] = {**shared, **edit}
    return found


def _start(
    store: RunStore,
    header: Header,
    cases: Sequence[Case],
    inputs: Mapping[Key, Mapping[str, str]],
    folders: Mapping[str, str],
) -> list[str]:
    """Begin a folder, or take out of one what does not fit what is there now; say what was taken out.

    What may differ from last time are the files: the data set's, and which methods and pictures there are.

    Raises:
        InputError: The run that is there was asked for something else.
    """
    if store.header is None:
        store.begin(header, cases)
        return []
    kept = {name: getattr(store.header, name) for name in ("dataset", "methods", "baseline", "title")}
    store.adopt(header.model_copy(update=kept))
    total = len(store.rows)
    stale = stale_rows(store.rows, inputs, folders)
    store.forget(stale)
    store.renew(header, cases)
    return [say_stale(stale, total)] if stale else []


@dataclass(frozen=True, eq=False)
class _Opened:
    """One picture, or why there is none.

    Attributes:
        picture: The edited picture.
        error: What went wrong.
        suffix: Of files that belong to its size, where a case's pictures have several.
    """

    picture: Image | None = None
    error: BaseException | None = None
    suffix: str = ""


def _open(case: Case, pictures: Mapping[str, Mapping[str, Path]], strip: bool) -> dict[str, _Opened]:
    """Read all pictures of a case; those that are not there are neither picture nor error."""
    found: dict[str, _Opened] = {}
    for label, paths in pictures.items():
        if case.missing or case.id not in paths:
            found[label] = _Opened()
            continue
        try:
            found[label] = _Opened(read_output(paths[case.id], strip=strip))
        except (Exception, SystemExit) as error:  # damaged pictures raise nearly anything
            found[label] = _Opened(error=error)
    if len({one.picture.size for one in found.values() if one.picture is not None}) < 2:
        return found
    return {
        label: one if one.picture is None else replace(one, suffix=f"-{one.picture.height}x{one.picture.width}")
        for label, one in found.items()
    }


def _score_one(
    spec: OutputsSpec, panel: Panel, case: Case, label: str, folder: str, opened: _Opened
) -> tuple[Row, Timing | None, dict[str, bytes]]:
    """Measure one picture."""
    common = {
        "case": case.id,
        "method": label,
        "seed": 0,
        "edit_type": case.edit_type,
        "source_prompt": case.source_prompt,
        "prompt": case.prompt,
        "real": case.real,
    }
    edited = opened.picture
    if opened.error is not None:
        return Row.model_validate({**common, "status": "failed", "failure": failure_of(opened.error)}), None, {}
    if edited is None:
        failure = Failure(kind="MissingPicture", message=case.missing or "there is no picture of this case")
        return Row.model_validate({**common, "status": "missing", "failure": failure}), None, {}
    began = time.perf_counter()
    try:
        size = (edited.height, edited.width)
        reference = read_reference(case, size, _source(spec, case, size))
        files, pictures = _files(case, f"{folder}/{case.id}.png", edited, reference, opened.suffix)
        scores = score(panel, case, edited, reference)
    except (Exception, SystemExit) as error:  # strangers' data sets raise nearly anything
        return Row.model_validate({**common, "status": "failed", "failure": failure_of(error)}), None, {}
    cards = {name: panel.cards[name].id for name in scores}
    done = {**common, "status": "ok", "scores": scores, "cards": cards, "pictures": pictures,
            "warnings": mask_warnings(reference)}  # fmt: skip
    timing = Timing(case=case.id, method=label, seed=0, score_seconds=time.perf_counter() - began)
    return Row.model_validate(done), timing, files


def read_output(path: Path, *, strip: bool = False) -> Image:
    """Read a picture; of a strip of several pictures of one height, if `strip`, the rightmost square.

    Raises:
        InputError: It cannot be read.
    """
    from attnctl.runs.decode import decode, regular_file

    picture, _ = decode(regular_file(path))
    if strip and picture.width > picture.height:
        picture = picture.crop((picture.width - picture.height, 0, picture.width, picture.height))
    return picture


def _sources(spec: OutputsSpec) -> dict[str, Path]:
    """Return the pictures of the folder of sources by case."""
    if spec.source_folder is None:
        return {}
    return by_case(spec.source_folder.iterdir(), {case.id for case in spec.cases}, [])


def _source(spec: OutputsSpec, case: Case, size: tuple[int, int]) -> Image | None:
    if case.picture is not None:
        return case.picture(size).convert("RGB")
    found = _sources(spec).get(case.id)
    if found is None:
        return None
    from attnctl.pictures import load_picture, to_image

    return to_image((load_picture(found, size).pixels + 1) / 2)


def _files(
    case: Case, name: str, edited: Image, reference: Reference, suffix: str
) -> tuple[dict[str, bytes], Pictures]:
    files = {name: png_bytes(edited)}
    roles = {"edit": name}
    mask = None if reference.mask is None else mask_picture(reference.mask)
    for role, folder, image in (
        ("source", INPUT, reference.source),
        ("truth", TRUTH, reference.truth),
        ("mask", MASK, mask),
    ):
        if image is not None:
            roles[role] = f"{folder}/{case.id}{suffix}.png"
            files[roles[role]] = png_bytes(image)
    return files, Pictures(**roles)


def _header(spec: OutputsSpec, dataset: Dataset, panel: Panel, labels: Sequence[str]) -> Header:
    """Return the header; what the other code did is not known, and nothing is said of it."""
    import torch

    from attnctl.runs.describing import describe_device
    from attnctl.runs.manifest import environment

    entries: list[MethodEntry] = []
    for label in labels:
        folder = base = slug(label)
        number = 1
        while folder in {entry.folder for entry in entries} | NOT_METHODS:
            number += 1
            folder = f"{base}-{number}"
        entries.append(
            MethodEntry(label=label, folder=folder, method="", summary=f"pictures in {spec.outputs / label}")
        )
    return Header(
        title=spec.title or f"{', '.join(labels)} on {spec.dataset}",
        dataset=describe_dataset(spec.dataset, dataset, spec.cases),
        methods=entries,
        baseline="none" if "none" in labels else labels[0],
        seeds=[0],
        columns=list(panel.metrics),
        cards={label: card.as_dict() for label, card in panel.cards.items()},
        absent=dict(panel.absent),
        environment=environment().model_dump(mode="json"),
        device=describe_device(torch.device(spec.device), torch.float32).model_dump(mode="json"),
        config=dict(spec.config or {}),
    )


def check_folder(path: Path | None) -> None:
    """Refuse a folder of sources that cannot be listed.

    Raises:
        InputError: It cannot.
    """
    if path is None:
        return
    try:
        next(path.iterdir(), None)
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {reason(error)}", hint="check --source-folder") from error
