"""Writing files so that a reader never sees half of one, and naming them so that they stay in place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import unicodedata
from pathlib import Path

from attnctl.errors import InputError

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


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits; memory use does not grow with the file.

    Raises:
        OSError: If the file cannot be read.
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    return hashlib.sha256(data).hexdigest()


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
