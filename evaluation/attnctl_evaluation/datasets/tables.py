"""What loaders of files share: finding files inside a folder, reading tables line by line, masks of any size."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnctl.dataset import MaskLoader, PictureLoader, Size
from attnctl.errors import InputError, unknown
from attnctl.files import reason, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


def read_text(path: Path) -> str:
    """Read a text file as UTF-8, with or without a byte order mark.

    Raises:
        InputError: There is no such file, or it is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is not UTF-8: byte {error.start}", hint="save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {reason(error)}", hint="check the path") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: It cannot be read, or is no JSON; the message names the line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(
            f"{shown(path)}, {where}: {error.msg}", hint="mend that line; the file must be JSON"
        ) from error


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a CSV file (first line: names of columns) or a JSONL file (one object per line).

    Yields:
        Where a row stands, such as ``/data/edits.csv, line 3``, and its values by column. Empty CSV cells are left out.

    Raises:
        InputError: A line is malformed; the message names it.
    """
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{shown(path)}, line {number}", _json_line(path, number, line)
        return
    lines = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        for row in lines:
            where = f"{shown(path)}, line {lines.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{where} has {len(row)} cells, expected {len(header)}", hint="put quotes around text with commas"
                )
            yield where, {name: cell.strip() for name, cell in zip(header, row, strict=True) if cell.strip()}
    except csv.Error as error:
        raise InputError(f"{shown(path)}, line {lines.line_num}: {error}", hint="mend that line") from error


def _json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{shown(path)}, line {number}: {error.msg}", hint="write one JSON object per line") from error
    if not isinstance(found, dict):
        raise InputError(f"{shown(path)}, line {number} is no JSON object", hint='write {"image": ..., "prompt": ...}')
    return {str(k): v for k, v in found.items() if v is not None}


def check_columns(where: str, row: Mapping[str, Any], known: Iterable[str], required: Sequence[str]) -> None:
    """Refuse a row with a column that nobody reads, or without one that is required.

    Raises:
        InputError: It is such; the message names the row.
    """
    for name in row:
        if name not in known:
            fault = unknown("column", name, known)
            raise InputError(f"{where}: {fault.message}", hint=fault.hint)
    for name in required:
        if name not in row:
            raise InputError(f"{where} has no {name}", hint=f"every row needs {', '.join(required)}")


def text_of(where: str, row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Return a text value.

    Raises:
        InputError: It is missing without a default, empty, or no text.
    """
    value = row.get(name, default)
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} is {_kind(value)}, expected text", hint="mend that entry")
    if not value.strip() and default is None:
        raise InputError(f"{where}: {name} is empty", hint="mend that entry")
    return value.strip()


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def inside(folder: Path, name: str, where: str) -> Path:
    """Return a file's path below a folder.

    Raises:
        InputError: The name is absolute or leaves the folder.
    """
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0:1]:
        raise InputError(f"{where}: {name!r} leads out of the folder {shown(folder)}", hint="name files inside it")
    return folder / path


def case_id(text: str, taken: set[str]) -> str:
    """Return a name for files that is not taken yet, made of letters, digits, ``-``, ``_`` and ``.``, and take it."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "case"
    name, n = stem[:100], 2
    while name.lower() in taken:
        name, n = f"{stem[:100]}-{n}", n + 1
    taken.add(name.lower())
    return name


def missing_picture(path: Path) -> str:
    """Return why a picture file cannot be used, or an empty string; looks at the file's existence alone."""
    from attnctl.runs.decode import regular_file

    try:
        regular_file(path)
    except InputError as error:
        return error.message
    return ""


def file_picture(path: Path) -> PictureLoader:
    """Return a loader of a picture file: upright sRGB, the largest centred part with the wanted aspect ratio."""

    def load(size: Size | None) -> Image:
        from attnctl.pictures import load_picture, to_image

        return to_image((load_picture(path, size).pixels + 1) / 2)

    return load


def bytes_picture(data: bytes, where: str) -> PictureLoader:
    """Return a loader of a picture that lies inside another file."""

    def load(size: Size | None) -> Image:
        import io

        from PIL import Image as Pillow
        from PIL import ImageOps

        try:
            picture = Pillow.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")).convert("RGB")
        except Exception as error:  # Pillow's decoders raise many kinds
            raise InputError(f"{where}: the picture is damaged: {error}", hint="download the file again") from error
        return picture if size is None else ImageOps.fit(picture, (size[1], size[0]), Pillow.Resampling.LANCZOS)

    return load


def array_mask(make: Callable[[], NDArray[np.bool_]]) -> MaskLoader:
    """Return a loader that brings a mask to any size as pictures are: centred part, then nearest neighbour."""

    def load(size: Size | None) -> NDArray[np.bool_]:
        import numpy as np
        from PIL import Image as Pillow
        from PIL import ImageOps

        mask = make()
        if size is None or size == mask.shape:
            return mask
        picture = Pillow.fromarray(mask.astype(np.uint8) * 255)
        fitted = ImageOps.fit(picture, (size[1], size[0]), Pillow.Resampling.NEAREST)
        return np.asarray(np.asarray(fitted) > 127)

    return load


def file_mask(path: Path) -> MaskLoader:
    """Return a loader of a mask picture: white (above half) is to change."""

    def make() -> NDArray[np.bool_]:
        import numpy as np

        from attnctl.runs.decode import decode, regular_file

        levels = np.asarray(decode(regular_file(path))[0].convert("L"))
        return np.asarray(levels > 127)

    return array_mask(make)
