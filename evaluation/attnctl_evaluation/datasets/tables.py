"""What loaders of files share: finding files inside a folder, reading tables line by line, masks of any size."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnctl.dataset import MaskLoader, PictureLoader, Size
from attnctl.errors import InputError, unknown
from attnctl.files import parse_json, read_text, sha256_of, sha256_of_file, shown
from attnctl.trusting import inside as attnctl_inside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a CSV file (first line: names of columns) or a JSONL file (one object per line).

    Yields:
        Where a row stands, such as ``/data/edits.csv, line 3``, and its values by column. Empty CSV cells are left out.

    Raises:
        InputError: A line is malformed; the message names it.
    """
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        # Lines end at line feeds alone: other separators of Unicode may stand inside of JSON's text.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{shown(path)}, line {number}", _json_line(path, number, line)
        return
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
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
    found = parse_json(line, f"{shown(path)}, line {number}", lines=False)
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
        InputError: The name is absolute, leaves the folder, or is a link that does.
    """
    return attnctl_inside(folder, name, where)


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
        alike = _alike(path)
        return f"{error.message}, but {alike!r}: capitals count" if alike else error.message
    return ""


def _alike(path: Path) -> str:
    """Return a file beside it whose name differs in capitals alone."""
    try:
        names = [p.name for p in path.parent.iterdir() if p.name != path.name]
    except (OSError, ValueError):
        return ""
    return next((name for name in sorted(names) if name.casefold() == path.name.casefold()), "")


@dataclass(frozen=True)
class FilePicture:
    """Loads a picture file: upright sRGB, the largest centred part with the wanted aspect ratio.

    Attributes:
        path: The file.
    """

    path: Path

    def __call__(self, size: Size | None) -> Image:
        """Load it."""
        from attnctl.pictures import load_picture, to_image

        return to_image((load_picture(self.path, size).pixels + 1) / 2)

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return sha256_of_file(self.path)


@dataclass(frozen=True)
class InnerPicture:
    """Loads a picture that lies inside another file, exactly as `FilePicture` loads one of its own.

    Attributes:
        data: The bytes of the picture file.
        where: What messages call it.
    """

    data: bytes
    where: str

    def __call__(self, size: Size | None) -> Image:
        """Load it."""
        from attnctl.pictures import load_picture, to_image
        from attnctl.runs.decode import PictureData

        return to_image((load_picture(PictureData(self.data, self.where), size).pixels + 1) / 2)

    def digest(self) -> str:
        """Return the SHA-256 of the bytes."""
        return sha256_of(self.data)


@dataclass(frozen=True)
class FileMask:
    """Loads a mask file, see `attnctl.masks.load_mask`; it comes to a size as its picture does.

    Attributes:
        path: The file.
        picture: The picture that it belongs to, whose shape it must have; None: a generated one.
    """

    path: Path
    picture: Path | None = None

    def __call__(self, size: Size | None) -> NDArray[np.bool_]:
        """Load it."""
        from attnctl.masks import load_mask

        return load_mask(self.path, size, picture=self.picture).values

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return sha256_of_file(self.path)


def file_picture(path: Path) -> PictureLoader:
    """Return a loader of a picture file: upright sRGB, the largest centred part with the wanted aspect ratio."""
    return FilePicture(path)


def bytes_picture(data: bytes, where: str) -> PictureLoader:
    """Return a loader of a picture that lies inside another file; it loads what `file_picture` would load."""
    return InnerPicture(data, where)


def file_mask(path: Path, picture: Path | None = None) -> MaskLoader:
    """Return a loader of a mask picture, white where the edit belongs; full and empty ones are refused."""
    return FileMask(path, picture)


@dataclass(frozen=True)
class ArrayMask:
    """Brings a mask to any size as pictures are: centred part, then nearest neighbour.

    Attributes:
        make: Draws the mask, bool (H, W).
    """

    make: Callable[[], NDArray[np.bool_]]

    def __call__(self, size: Size | None) -> NDArray[np.bool_]:
        """Draw it."""
        import numpy as np
        from PIL import Image as Pillow

        from attnctl.pictures import crop_box

        mask = self.make()
        if size is None or size == mask.shape:
            return mask
        picture = Pillow.fromarray(mask.astype(np.uint8) * 255).crop(crop_box(mask.shape[0], mask.shape[1], *size))
        return np.asarray(np.asarray(picture.resize((size[1], size[0]), Pillow.Resampling.NEAREST)) > 127)

    def digest(self) -> str:
        """Return the SHA-256 of the drawn mask."""
        import numpy as np

        return sha256_of(np.packbits(self.make()).tobytes())


def array_mask(make: Callable[[], NDArray[np.bool_]]) -> MaskLoader:
    """Return a loader that brings a mask to any size as pictures are: centred part, then nearest neighbour."""
    return ArrayMask(make)
