"""Reading strangers' files within bounds, writing ours whole, and naming them so that they stay in place."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import unicodedata
from pathlib import Path
from typing import Any

from attnctl.errors import InputError

MAX_TEXT_BYTES = 64 * 2**20
"""Bytes that a table, list or configuration may have; the largest published one has 2 MiB."""

MAX_PICTURE_BYTES = 2**28
"""Bytes that a picture file may have; as many as the largest one takes that is decoded."""

MAX_DEPTH = 64
"""Levels that values of a file may be nested in."""

MAX_DIGITS = 400
"""Digits that a whole number of a file may have."""

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
"""Device names of Windows, which no file there may have, whatever its suffix."""

_MAX_SLUG_BYTES = 80
"""Leaves room for a folder's own suffixes under the 255 bytes that file systems allow a name."""


def slug(text: str, *, fallback: str = "unnamed") -> str:
    """Turn any text into one safe path component, the same on every platform.

    Letters, digits and combining marks of every script are kept (lower case, so that a file system that
    ignores case cannot merge two names); everything else becomes a single ``-``. The result holds no
    separator, no dot and no control character, so it cannot leave the folder it is joined to, and is at most
    80 bytes of UTF-8.

    Args:
        text: Anything, for example a prompt.
        fallback: The answer when nothing of `text` can be kept; not changed itself.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in folded)
    joined = "-".join(kept.split())
    short = joined.encode("utf-8")[:_MAX_SLUG_BYTES].decode("utf-8", "ignore").strip("-")
    short = unicodedata.normalize("NFKC", short)
    return f"{short}-" if short in _RESERVED else short or fallback


def irregular(status: os.stat_result) -> str:
    """Return what a path leads to that is no regular file, for example ``"a folder"``; empty for a regular file.

    Pipes and devices may never end or never begin, so nothing that a stranger named is read without this look.
    """
    mode = status.st_mode
    kinds = (
        (stat.S_ISREG, ""),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((kind for test, kind in kinds if test(mode)), "something odd")


def real(path: str | os.PathLike[str]) -> Path:
    """Return where a path leads to, links followed; one that leads in a circle leads to itself."""
    return Path(os.path.realpath(path))


def read_bytes(path: str | os.PathLike[str], *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes; never waits for a pipe, never fills the memory.

    Raises:
        InputError: It is not there, cannot be read, is no regular file, or is larger.
    """
    try:
        kind = irregular(Path(path).stat())  # a device is not even opened
        if not kind:
            # It may have become something else since: opening must not wait, and the open file is looked at.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(path, flags), "rb") as stream:
                kind = irregular(os.fstat(stream.fileno()))
                data = b"" if kind else stream.read(limit + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {shown(path)}: {reason(error)}", hint="check the path") from error
    if kind:
        raise InputError(f"cannot read {shown(path)}: it is {kind}, not a regular file", hint="name a file")
    if len(data) > limit:
        raise InputError(
            f"{shown(path)} is too large: more than {limit / 2**20:g} MiB", hint="is it the file that was meant?"
        )
    return data


def read_text(path: str | os.PathLike[str], *, limit: int = MAX_TEXT_BYTES) -> str:
    """Read a text file as UTF-8, with or without a byte order mark; line breaks stay as they are.

    Raises:
        InputError: As `read_bytes`, or it is no UTF-8.
    """
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is not UTF-8: byte {error.start}", hint="save it as UTF-8") from error


def parse_json(text: str, where: str, *, lines: bool = True) -> Any:
    """Read JSON that a stranger wrote.

    Args:
        text: The JSON.
        where: What messages call it, for example a quoted path.
        lines: Whether messages name the line and column inside `text`.

    Raises:
        InputError: It is no JSON, is nested deeper than `MAX_DEPTH`, or has a number of more than `MAX_DIGITS` digits.
    """
    depth = _depth(text)
    if depth > MAX_DEPTH:
        raise InputError(
            f"{where}: values are nested {depth} deep, at most {MAX_DEPTH} are read",
            hint="is it the file that was meant?",
        )

    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise InputError(f"{where}: a number has {len(digits)} digits, at most {MAX_DIGITS} are read",
                             hint="mend that number")  # fmt: skip
        return int(digits)

    try:
        return json.loads(text, parse_int=whole)
    except json.JSONDecodeError as error:
        place = f", line {error.lineno}, column {error.colno}" if lines else ""
        raise InputError(f"{where}{place}: {error.msg}", hint="mend that line; it must be JSON") from error


def read_json(path: str | os.PathLike[str], *, limit: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file that a stranger wrote.

    Raises:
        InputError: As `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit=limit), shown(path))


def read_toml(path: str | os.PathLike[str], *, limit: int = 2**20) -> dict[str, Any]:
    """Read a TOML file that a stranger wrote.

    Raises:
        InputError: As `read_text`; or it is no TOML, is nested too deep, or holds a number that is too long.
    """
    import tomllib

    text = read_text(path, limit=limit)
    hint = "mend the file"
    if _LONG_KEY.search(text) or _depth(text) > MAX_DEPTH:
        raise InputError(f"{shown(path)}: values are nested too deep, at most {MAX_DEPTH} levels are read", hint=hint)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, dates that do not exist
        raise InputError(f"{shown(path)} is not TOML: {reason(error)}", hint=hint) from error


_PART = r"""(?:[\w-]{1,200}|"[^"\n]{0,200}"|'[^'\n]{0,200}')[ \t]{0,9}\.[ \t]{0,9}"""
_LONG_KEY = re.compile(rf"""(?<![\w"'-])(?:{_PART}){{{MAX_DEPTH}}}""")
"""A dotted key of very many parts: tomllib's time grows with the square of their number."""


def _depth(text: str) -> int:
    """Return how deep brackets are nested, those inside of quoted text left out."""
    depth = deepest = 0
    for token in _BRACKETS.finditer(text):
        if token[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in "]}":
            depth -= 1
    return deepest


_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{\]}]', re.DOTALL)
"""Quoted text, closed or not, and brackets; matches in one pass, whatever the text is."""


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits; memory use does not grow with the file.

    Raises:
        OSError: If the file cannot be read, or is a pipe or a device, which may never end.
    """
    if kind := irregular(Path(path).stat()):
        raise OSError(f"it is {kind}, not a regular file")
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of bytes, 64 hexadecimal digits, as `sha256_of_file` gives it for a file that holds them."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: str | os.PathLike[str], data: bytes) -> str:
    """Write `data` so that `path` holds its old content or all of the new, whatever interrupts.

    The bytes go to a temporary file in the same folder, which then takes the place of `path`.

    Args:
        path: Where to write; its folder must exist.
        data: The whole content.

    Returns:
        The SHA-256 of `data`, 64 hexadecimal digits.

    Raises:
        InputError: If the place cannot be written to; an older file there is then unchanged.
    """
    target = Path(path)
    # Own name rather than tempfile's: that one is readable by its owner alone, whatever the umask says.
    temporary = target.parent / f".attnctl-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except (OSError, ValueError) as error:
        raise cannot_write(target, error) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
    return sha256_of(data)


def cannot_write(path: str | os.PathLike[str], error: Exception) -> InputError:
    """Build the error for a place that refused a write."""
    return InputError(f"cannot write {shown(path)}: {reason(error)}", hint="choose another place with --out")


def reason(error: BaseException) -> str:
    """Say in a few words, without the path, why the operating system refused something."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def shown(path: str | os.PathLike[str]) -> str:
    """Quote a path for a message of one line, whatever bytes are in its name."""
    return repr(os.fspath(path))
