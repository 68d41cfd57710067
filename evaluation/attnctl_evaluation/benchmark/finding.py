"""Finding pictures that other codes made: which folder is whose, and which picture is which case's."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnctl.dataset import Case
from attnctl.errors import InputError, unknown
from attnctl.files import real, shown
from attnctl.trusting import check_inside
from attnctl_evaluation.benchmark.store import INPUT, MASK, TRUTH

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
"""Pictures that are looked for, in this order where one case has several."""

NOT_METHODS = {INPUT, TRUTH, MASK}
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


def find_outputs(spec: OutputsSpec, notes: list[str] | None = None) -> dict[str, dict[str, Path]]:
    """Return the pictures by method and case.

    Folders with pictures are methods; only where there are none, or where ``spec.methods`` names the folder itself,
    the pictures right in it are those of one method of the folder's name.

    Args:
        spec: What is looked for.
        notes: Gets a sentence for each choice that may surprise.

    Raises:
        InputError: There is no such folder or method, or no picture is named after a case.
    """
    root, said = spec.outputs, [] if notes is None else notes
    if not root.is_dir():
        raise InputError(f"there is no folder {shown(root)}", hint="name the folder that holds the pictures")
    wanted = {case.id for case in spec.cases}
    found, empty = {}, []
    places = sorted(p for p in root.iterdir() if p.is_dir() and p.name not in NOT_METHODS)
    for folder in (p for p in places if not p.name.startswith(".")):
        paths = [p for p in folder.rglob("*") if not _hidden(p.relative_to(folder))]
        pictures = by_case(paths, wanted, said)
        if pictures:
            found[folder.name] = pictures
        elif any(p.suffix.lower() in SUFFIXES for p in paths):
            empty.append(folder.name)
    single, own = by_case([p for p in root.iterdir() if not _hidden(p.relative_to(root))], wanted, said), ""
    if single:
        own = real(root).name or "outputs"
        if not found or (own in spec.methods and own not in found):
            found[own] = single
        else:
            some = next(iter(single.values())).name
            said.append(
                f"{len(single)} pictures right in {shown(root)} ({some}) belong to no method's folder and are left out"
            )
    for name in spec.methods:
        if name not in found:
            known = [*found, *([own] if own and own not in found else [])]
            fault = unknown("method's folder", name, known)
            why = f"; {shown(root / name)} holds no picture that is named after a case" if name in empty else ""
            raise InputError(fault.message + why, hint=fault.hint)
    found = {name: pictures for name, pictures in found.items() if not spec.methods or name in spec.methods}
    if not found:
        some = next(iter(spec.cases)).id
        raise InputError(
            f"{shown(root)} holds no picture that is named after a case of {spec.dataset}",
            hint=f"expected METHOD/CASE.png or CASE.png, for example METHOD/{some}.png",
        )
    check_inside(root, (str(p.relative_to(root)) for pictures in found.values() for p in pictures.values()))
    if empty and not spec.methods:
        said.append(f"folders whose pictures are named after no case are left out: {', '.join(empty)}")
    return found


def _hidden(path: Path) -> bool:
    """Tell what programs leave beside pictures: checkpoints of notebooks, thumbnails, shadows of archives."""
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def by_case(paths: Iterable[Path], wanted: set[str], notes: list[str]) -> dict[str, Path]:
    """Return pictures by case; of several of one case that with the first suffix, then the first in order.

    A name that differs from a case's in capitals alone, or in how accents are composed, is taken where no other is
    there, since no two cases differ in that.
    """
    alike = {_folded(case): case for case in wanted}
    pictures = [p for p in paths if p.suffix.lower() in SUFFIXES and _folded(p.stem) in alike and p.is_file()]
    order = sorted(pictures, key=lambda p: (p.stem not in wanted, SUFFIXES.index(p.suffix.lower()), p.as_posix()))
    found: dict[str, Path] = {}
    doubled: dict[str, Path] = {}
    for path in order:
        case = path.stem if path.stem in wanted else alike[_folded(path.stem)]
        if case in found:
            doubled.setdefault(case, path)
        found.setdefault(case, path)
    odd = [(case, path) for case, path in found.items() if path.stem != case]
    if odd:
        notes.append(
            f"{len(odd)} pictures are named after their case but for capitals: {shown(odd[0][1])} for {odd[0][0]}"
        )
    if doubled:
        case, path = next(iter(doubled.items()))
        notes.append(f"{len(doubled)} cases have several pictures: {shown(found[case])} is taken, {shown(path)} is not")
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
