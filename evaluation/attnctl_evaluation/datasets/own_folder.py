"""A folder of your own pictures with a table that says what to make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError
from attnctl.files import shown
from attnctl.hookspecs import hookimpl
from attnctl.method import MethodConfig
from attnctl.terminal import shorten
from attnctl_evaluation.datasets.tables import (
    case_id,
    check_columns,
    file_mask,
    file_picture,
    inside,
    missing_picture,
    read_lines,
    text_of,
)

COLUMNS: tuple[str, ...] = (
    "image", "prompt", "source_prompt", "edit_type", "mask", "truth",
    "source_word", "target_word", "instruction", "seed", "id",
)  # fmt: skip
"""Columns that a table may have; ``prompt`` is required, and ``image`` or ``source_prompt``."""


class Folder(Dataset):
    """A table, CSV or JSONL, and the picture files that it names, relative to it."""

    name = "folder"
    summary = (
        "Your own pictures: a folder with edits.csv or edits.jsonl (columns image, prompt, source_prompt, mask, ...)."
    )
    needs_path = True

    class Config(MethodConfig):
        """Where the table is."""

        path: str = Field("", description="A .csv or .jsonl file, or a folder with edits.csv or edits.jsonl in it.")

    def cases(self) -> Sequence[Case]:
        """Read the table.

        Raises:
            InputError: It is missing, empty or malformed; the message names the line.
        """
        table = _find(Path(self.config.path).expanduser())
        taken: set[str] = set()
        found = [_case(where, row, table.parent, taken) for where, row in read_lines(table)]
        if not found:
            raise InputError(f"{shown(table)} holds no rows", hint=f"columns are {', '.join(COLUMNS)}")
        return found


def _find(path: Path) -> Path:
    if not path.is_dir():
        if path.suffix.lower() not in {".csv", ".jsonl"}:
            raise InputError(f"{shown(path)} is neither a folder nor a .csv or .jsonl file", hint="check the path")
        return path
    for name in ("edits.csv", "edits.jsonl"):
        if (path / name).is_file():
            return path / name
    raise InputError(f"{shown(path)} holds neither edits.csv nor edits.jsonl", hint="name the table itself")


def _case(where: str, row: Mapping[str, Any], folder: Path, taken: set[str]) -> Case:
    check_columns(where, row, COLUMNS, ("prompt",))
    if "image" not in row and "source_prompt" not in row:
        raise InputError(f"{where} has neither image nor source_prompt", hint="one of them says what the source is")
    files = {k: inside(folder, text_of(where, row, k), where) for k in ("image", "mask", "truth") if k in row}
    for kind in ("mask", "truth"):
        if kind in files and (why := missing_picture(files[kind])):
            raise InputError(f"{where}: the {kind} cannot be used: {why}", hint="mend the row or leave the cell empty")
    prompt = text_of(where, row, "prompt")
    wanted = str(row.get("id", f"{files['image'].stem if 'image' in files else 'drawn'}-{prompt[:40]}"))
    if "id" in row and case_id(wanted, set()) != wanted:
        raise InputError(
            f"{where}: id {shorten(repr(wanted))} cannot name a file", hint="use letters, digits, '-', '_' and '.'"
        )
    if "id" in row and wanted.lower() in taken:
        raise InputError(f"{where}: id {wanted!r} is there twice", hint="give every row its own, or none")
    return Case(
        id=case_id(wanted, taken),
        prompt=prompt,
        source_prompt=text_of(where, row, "source_prompt") if "source_prompt" in row else None,
        edit_type=text_of(where, row, "edit_type", "edit"),
        picture=file_picture(files["image"]) if "image" in files else None,
        missing=missing_picture(files["image"]) if "image" in files else "",
        mask=file_mask(files["mask"], files.get("image")) if "mask" in files else None,
        truth=file_picture(files["truth"]) if "truth" in files else None,
        blend_words=(text_of(where, row, "source_word", ""), text_of(where, row, "target_word", "")),
        instruction=text_of(where, row, "instruction", ""),
        seed=_seed(where, row.get("seed")),
    )


def _seed(where: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        seed = int(str(value))
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**63:
        raise InputError(
            f"{where}: seed is {shorten(repr(value))}, expected a whole number from 0 up", hint="mend that cell"
        )
    return seed


@hookimpl
def attnctl_datasets() -> list[type[Dataset]]:
    """Return the data set."""
    return [Folder]
