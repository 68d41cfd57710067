"""Scoring pictures that any other code made: find them by case, measure them, keep the same run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError, unknown
from attnctl.files import reason, shown, slug
from attnctl.pictures import png_bytes
from attnctl_evaluation.benchmark.header import describe_dataset
from attnctl_evaluation.benchmark.plan import canonical
from attnctl_evaluation.benchmark.progress import CompareProgress
from attnctl_evaluation.benchmark.score import Reference, mask_picture, read_reference, score
from attnctl_evaluation.benchmark.setup import failure_of
from attnctl_evaluation.benchmark.store import INPUT, MASK, TRUTH, RunStore
from attnctl_evaluation.rows import Failure, Header, MethodEntry, Pictures, Results, Row, Timing

if TYPE_CHECKING:
    from PIL.Image import Image

    from attnctl_evaluation.metrics.protocols import Panel

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
"""Pictures that are looked for, in this order where one case has several."""

_NOT_METHODS = {INPUT, TRUTH, MASK}
"""Folders beside methods' folders that hold no edits."""


@dataclass(frozen=True, eq=False)
class OutputsSpec:
    """What is to be scored.

    Attributes:
        outputs: Folder with ``<method>/<case>.png`` or ``<case>.png``, other suffixes and folders between included.
        dataset: The data set as it was asked for.
        cases: Its cases.
        source_folder: Folder with ``<case>.png``: the sources of cases that have none, such as generated ones.
        strip: Take the rightmost square of pictures that are wider than high.
        methods: Only these folders; empty: all.
        device: Where the metrics' networks run.
        title: A line for the report's heading.
        config: What was asked for, as plain data.
    """

    outputs: Path
    dataset: str
    cases: Sequence[Case]
    source_folder: Path | None = None
    strip: bool = False
    methods: Sequence[str] = ()
    device: str = "cpu"
    title: str = ""
    config: Mapping[str, object] | None = None


def find_outputs(spec: OutputsSpec) -> dict[str, dict[str, Path]]:
    """Return the pictures by method and case.

    Pictures right in the folder belong to one method of the folder's name; else every folder in it is a method.

    Raises:
        InputError: There is no such folder or method, or no picture is named after a case.
    """
    root = spec.outputs
    if not root.is_dir():
        raise InputError(f"there is no folder {shown(root)}", hint="name the folder that holds the pictures")
    wanted = {case.id for case in spec.cases}
    single = _by_case(root.iterdir(), wanted)
    if single:
        label = root.resolve().name or "outputs"
        return {label: single}
    found = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and p.name not in _NOT_METHODS):
        pictures = _by_case(folder.rglob("*"), wanted)
        if pictures:
            found[folder.name] = pictures
    for name in spec.methods:
        if name not in found:
            raise unknown("method's folder", name, found)
    found = {name: pictures for name, pictures in found.items() if not spec.methods or name in spec.methods}
    if not found:
        some = next(iter(spec.cases)).id
        raise InputError(
            f"{shown(root)} holds no picture that is named after a case of {spec.dataset}",
            hint=f"expected METHOD/CASE.png or CASE.png, for example METHOD/{some}.png",
        )
    return found


def _by_case(paths: Iterator[Path], wanted: set[str]) -> dict[str, Path]:
    """Return pictures by case; of several of one case that with the first suffix, then the first in order."""
    found: dict[str, Path] = {}
    pictures = (p for p in paths if p.suffix.lower() in SUFFIXES and p.stem in wanted and p.is_file())
    for path in sorted(pictures, key=lambda p: (SUFFIXES.index(p.suffix.lower()), p.as_posix())):
        found.setdefault(path.stem, path)
    return found


def evaluate(
    spec: OutputsSpec, dataset: Dataset, panel: Panel, out: Path, *, force: bool = False, quiet: bool = False
) -> Results:
    """Score pictures and write a run folder.

    Args:
        spec: What is to be scored.
        dataset: The data set.
        panel: Columns.
        out: The run folder; one that is not finished is continued.
        force: Start over where it holds a run.
        quiet: Say nothing on the way.

    Raises:
        InputError: Nothing can be found, or the folder cannot be written.
    """
    pictures = find_outputs(spec)
    header = _header(spec, dataset, panel, list(pictures))
    folders = {entry.label: entry.folder for entry in header.methods}
    order = canonical([case.id for case in spec.cases], header.seeds, list(pictures))
    with RunStore(out, force=force) as store:
        store.begin(header, spec.cases)
        with CompareProgress(len(order), len(store.rows), quiet=quiet) as progress:
            for case in spec.cases:
                left = [label for label in pictures if (case.id, label, 0) not in store.rows]
                rows = []
                for label, opened in _open(case, pictures, spec.strip).items() if left else ():
                    if label in left:
                        row, timing, files = _score_one(spec, panel, case, label, folders[label], opened)
                        rows += store.add([row], [timing] if timing is not None else [], files)
                progress.advance(len(rows), sum(row.status == "failed" for row in rows), case.id)
        store.finish(order)
    return Results.read(out)


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
    done = {**common, "status": "ok", "scores": scores, "cards": cards, "pictures": pictures}
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


def _source(spec: OutputsSpec, case: Case, size: tuple[int, int]) -> Image | None:
    if case.picture is not None:
        return case.picture(size).convert("RGB")
    if spec.source_folder is None:
        return None
    found = _by_case(spec.source_folder.iterdir(), {case.id}).get(case.id)
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
        while folder in {entry.folder for entry in entries} | _NOT_METHODS:
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
