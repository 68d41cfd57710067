"""Pictures of a report: inside the file while they are few and small, else in a folder beside it with thumbnails.

Whatever a record says, a picture is read from inside its run folder alone, decoded before it is passed on, and named by
the hash of its content: no path of a run reaches the report.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from attnctl.errors import InputError
from attnctl.files import MAX_PICTURE_BYTES, cannot_write, read_bytes, reason, write_atomic
from attnctl.trusting import inside

Mode = Literal["auto", "embed", "folder", "none"]
"""The ways that pictures can take."""

EMBED_LIMIT = 16_000_000
"""Bytes of picture files up to which ``auto`` puts them into the file itself."""

_EMBED_AS_IS = 400_000
"""Bytes of a single picture up to which it is embedded as it is; larger ones become WebP."""

_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_OURS = re.compile(r"[0-9a-f]{20}(?:-t)?\.(?:png|jpg|webp)")


@dataclass(frozen=True)
class Picture:
    """A picture as the page refers to it.

    Attributes:
        width: Pixels.
        height: Pixels.
        full: Address relative to the page, or a data URI.
        thumbnail: Address of a smaller one; empty where the full one serves.
    """

    width: int
    height: int
    full: str
    thumbnail: str = ""


@dataclass(frozen=True)
class _Source:
    """A file that was found good, before it is written anywhere."""

    path: Path
    digest: str
    kind: str
    width: int
    height: int
    size: int


class Gallery:
    """Collects pictures first and writes them at once.

    Args:
        mode: ``embed``: into the file; ``folder``: beside it; ``auto``: by `EMBED_LIMIT`; ``none``: no pictures.
        folder: Where they go if not into the file.
        thumbnail: Longer side of a thumbnail in pixels.
        limit: See `EMBED_LIMIT`.

    Attributes:
        problems: Per picture that cannot be shown, why.
    """

    def __init__(self, mode: Mode, folder: Path, *, thumbnail: int = 256, limit: int = EMBED_LIMIT) -> None:
        self.mode, self.folder, self.thumbnail, self.limit = mode, folder, thumbnail, limit
        self.problems: dict[str, str] = {}
        self._numbers: dict[tuple[Path, str], int | None] = {}
        self._waiting: list[tuple[Path, str]] = []

    def add(self, root: Path, name: str | None) -> int | None:
        """Ask for a picture of a run.

        Args:
            root: The run folder.
            name: Path relative to it.

        Returns:
            Its number, the same for the same file; None where there is no picture to show.
        """
        if name is None or self.mode == "none":
            return None
        key = (root, name)
        if key not in self._numbers:
            self._numbers[key] = len(self._waiting)
            self._waiting.append(key)
        return self._numbers[key]

    def write(self) -> list[Picture | None]:
        """Read, check and write everything that was asked for.

        Returns:
            By number, the picture; None where it cannot be shown, which `problems` explains.

        Raises:
            InputError: The folder cannot be written.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            sources = list(pool.map(self._looked_at, self._waiting))
            found = {source.digest: source for source in sources if source}
            total = sum(source.size for source in found.values())
            if self.mode == "embed" or (self.mode == "auto" and total <= self.limit):
                made = dict(zip(found, pool.map(_embedded, found.values()), strict=True))
                self._tidy([])
            elif found:
                try:
                    self.folder.mkdir(exist_ok=True)
                except OSError as error:
                    raise cannot_write(self.folder, error) from error
                made = dict(zip(found, pool.map(self._beside, found.values()), strict=True))
                self._tidy([name for p in made.values() for name in (p.full, p.thumbnail)])
            else:
                made = {}
        return [made[source.digest] if source else None for source in sources]

    def _looked_at(self, key: tuple[Path, str]) -> _Source | None:
        root, name = key
        try:
            return _read(root, name)
        except (InputError, OSError, ValueError) as error:
            self.problems[name] = error.message if isinstance(error, InputError) else reason(error)
            return None

    def _beside(self, source: _Source) -> Picture:
        """Write a picture, and a thumbnail where it is much smaller, into the folder; what is there is kept."""
        from attnctl.runs.decode import decode

        kind = source.kind or "png"
        full, small = f"{source.digest}.{kind}", f"{source.digest}-t.webp"
        image = None
        if not (self.folder / full).is_file():
            if source.kind:
                write_atomic(self.folder / full, read_bytes(source.path, limit=MAX_PICTURE_BYTES))
            else:
                image, _ = decode(source.path)
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                write_atomic(self.folder / full, buffer.getvalue())
        prefix = f"{quote(self.folder.name)}/"
        if max(source.width, source.height) <= 1.5 * self.thumbnail:
            return Picture(source.width, source.height, prefix + full)
        if not (self.folder / small).is_file():
            image = image or decode(source.path)[0]
            image.thumbnail((self.thumbnail, self.thumbnail), reducing_gap=2.0)
            buffer = io.BytesIO()
            image.save(buffer, format="WEBP", quality=80, method=2)
            write_atomic(self.folder / small, buffer.getvalue())
        return Picture(source.width, source.height, prefix + full, prefix + small)

    def _tidy(self, kept: Sequence[str]) -> None:
        """Remove pictures of an older report of this name; files that no report wrote stay."""
        if not self.folder.is_dir():
            return
        names = {Path(name).name for name in kept}
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in names:
                path.unlink(missing_ok=True)
        if not names and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _read(root: Path, name: str) -> _Source:
    from attnctl.runs.decode import decode, regular_file

    path = inside(root, name)
    regular_file(path)
    data = read_bytes(path, limit=MAX_PICTURE_BYTES)
    image, _ = decode(path)
    return _Source(path, hashlib.sha256(data).hexdigest()[:20], _kind(data), *image.size, len(data))


def _kind(data: bytes) -> str:
    """Suffix of a format that browsers show, by the first bytes; empty for another one."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _embedded(source: _Source) -> Picture:
    from attnctl.runs.decode import decode

    kind, data = source.kind, b""
    if source.kind and source.size <= _EMBED_AS_IS:
        data = read_bytes(source.path, limit=MAX_PICTURE_BYTES)
    else:
        buffer, kind = io.BytesIO(), "webp"
        decode(source.path)[0].save(buffer, format="WEBP", quality=90, method=4)
        data = buffer.getvalue()
    text = base64.b64encode(data).decode("ascii")
    return Picture(source.width, source.height, f"data:{_TYPES[kind]};base64,{text}")
