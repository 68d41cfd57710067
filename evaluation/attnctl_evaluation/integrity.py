"""Is a folder what was written? Told without a model, by the digests that records and rows hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attnctl.errors import InputError
from attnctl.files import read_json, sha256_of_file, shown
from attnctl.trusting import inside

if TYPE_CHECKING:
    from attnctl.runs.manifest import FileRecord


def check_integrity(folder: Path) -> tuple[int, list[str]]:
    """Look at every file of a run folder or of a comparison.

    Returns:
        How many files were looked at, and sentences about those that are not what was written.

    Raises:
        InputError: The folder holds no run, or its record cannot be read.
    """
    if (folder / "manifest.json").is_file():
        return _of_run(folder)
    if (folder / "run.json").is_file():
        return _of_comparison(folder)
    raise InputError(
        f"{shown(folder)} holds no run: there is neither a manifest.json nor a run.json",
        hint="name a folder that `attnctl run` or `attnctl compare` wrote",
    )


def damaged_record(folder: Path) -> list[str]:
    """Say whether a run's record was changed after it was written; records of schema 1 cannot tell."""
    from attnctl.runs.manifest import record_digest

    plain = read_json(folder / "manifest.json")
    if isinstance(plain, dict) and plain.get("digest") not in (None, record_digest(plain)):
        return ["manifest.json was changed after the run"]
    if isinstance(plain, dict) and plain.get("digest") is None and plain.get("schema_version") != 1:
        return ["manifest.json has lost its digest"]
    return []


def damaged_files(folder: Path, records: Mapping[str, FileRecord]) -> list[str]:
    """Say which files of a run are not what its record says.

    Args:
        folder: The run's folder.
        records: File records by what they are.
    """
    found = []
    for record in records.values():
        path = folder / record.file
        # A record from elsewhere must not make us read other places.
        if Path(record.file).name != record.file or path.is_symlink():
            found.append(f"{shown(record.file)} is no file of the run's folder")
        elif not path.is_file():
            found.append(f"{record.file} is not there any more")
        elif sha256_of_file(path) != record.sha256:
            found.append(f"{record.file} was changed after the run")
    return found


def _of_run(folder: Path) -> tuple[int, list[str]]:
    from attnctl.runs.manifest import Manifest

    manifest = Manifest.read(folder / "manifest.json")
    named = {f"lane {i}": lane.picture for i, lane in enumerate(manifest.lanes) if lane.picture is not None}
    files = {**named, **{f"file {name}": record for name, record in manifest.files.items()}}
    found = [*damaged_record(folder), *damaged_files(folder, files)]
    if not named:
        found.append("there are no pictures")
    known = {record.file for record in files.values()} | {"manifest.json"}
    return len(files) + 1, [*found, *_strangers(folder, known)]


def _of_comparison(folder: Path) -> tuple[int, list[str]]:
    from attnctl.runs.decode import decode_stored, regular_file
    from attnctl_evaluation.rows import Results

    results = Results.read(folder)
    found, looked = [], 1
    size = results.header.settings.get("size")
    for row in results.records:
        for role, name in row.pictures.model_dump().items():
            if name is None:
                continue
            looked += 1
            try:
                path = inside(folder, name)
                image, _ = decode_stored(regular_file(path))
            except InputError as error:
                found.append(f"the {role} picture of {row.case} {row.method} seed {row.seed}: {error.message}")
                continue
            if role == "edit" and results.header.model and size not in (None, [image.height, image.width]):
                found.append(f"{shown(name)} is {image.height} x {image.width}, not the run's {size}")
            wanted = row.sha256.get(role)
            if wanted is not None and sha256_of_file(path) != wanted:
                found.append(f"{shown(name)} was changed after the run")
    if not results.records:
        found.append("there are no rows")
    return looked, list(dict.fromkeys(found))


def _strangers(folder: Path, known: Iterable[str]) -> list[str]:
    """Say which files lie in a run's folder that no run wrote."""
    wanted = set(known)
    found = [p.name for p in sorted(folder.iterdir()) if p.name not in wanted]
    # Records of earlier runs, which --force set aside.
    return [f"{name} is not the run's" for name in found if not re.fullmatch(r"manifest-replaced-[0-9]+\.json", name)]
