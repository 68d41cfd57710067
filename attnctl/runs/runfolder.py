"""The folder that a run writes into: fresh by default, overwritten only on request, names that stay in it."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from attnctl.errors import InputError
from attnctl.files import cannot_write, reason, shown, slug, write_atomic

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_ROOT = Path("attnctl-runs")
"""Where fresh run folders are made, relative to the working folder."""

MANIFEST_NAME = "manifest.json"
"""The run record's file name, `RunFolder.manifest`."""

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


class RunFolder:
    """An existing, writable folder for the files of one run.

    Every file is written whole or not at all, as soon as its content exists: what was computed before a run
    was interrupted stays.

    Args:
        path: The folder; use `open_run_folder` to make one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: dict[tuple[str, str], str] = {}

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def manifest(self) -> Path:
        """Where the run record goes."""
        return self.path / MANIFEST_NAME

    def file(self, stem: str, suffix: str = ".png") -> Path:
        """Return the path for a file of this run; writes nothing.

        The same `stem` and `suffix` always give the same path, different ones never do: where two stems
        become the same safe name (``"edit A"``, ``"edit/a"``), the later gets a number.

        Args:
            stem: Any text, for example a lane's name or a prompt; made safe with `attnctl.files.slug`.
            suffix: A dot and up to eight lower-case letters or digits.

        Raises:
            ValueError: If `suffix` has another form.
        """
        if not _SUFFIX.fullmatch(suffix):
            raise ValueError(f"suffix {suffix!r} must be a dot and 1 to 8 lower-case letters or digits")
        key = (stem, suffix)
        if key not in self._names:
            # Compared without case: on many file systems names that differ in case alone are one file.
            taken = {name.casefold() for name in (*self._names.values(), MANIFEST_NAME)}
            base, number = slug(stem), 1
            while (name := base + (f"-{number}" if number > 1 else "") + suffix).casefold() in taken:
                number += 1
            self._names[key] = name
        return self.path / self._names[key]

    def write_bytes(self, stem: str, suffix: str, data: bytes) -> Path:
        """Write one file atomically and return its path.

        Raises:
            InputError: If it cannot be written, for example because the disk is full.
        """
        path = self.file(stem, suffix)
        write_atomic(path, data)
        return path

    def write_picture(self, stem: str, picture: Image.Image) -> tuple[Path, str]:
        """Write a picture as PNG, atomically, and return its path and the SHA-256 of the file.

        Raises:
            InputError: If it cannot be written, for example because the disk is full.
        """
        from attnctl.pictures import save_png

        path = self.file(stem)
        return path, save_png(picture, path)


def open_run_folder(
    out: str | os.PathLike[str] | None = None,
    *,
    method: str = "run",
    seed: int = 0,
    root: str | os.PathLike[str] = DEFAULT_ROOT,
    force: bool = False,
) -> RunFolder:
    """Make the folder for a run, or say why it cannot be used, before anything is computed.

    Without `out`, a fresh folder ``<root>/<method>-<seed>-<n>`` is made, `n` counting up from 1. With `out`,
    that folder is made if need be, and must be empty unless `force` is given. Even then nothing is deleted:
    files of the same name are replaced one by one, and an older run record is set aside as
    ``manifest-replaced-<n>.json``, since it no longer describes what lies beside it.

    Args:
        out: The folder the user asked for, or None for a fresh one.
        method: Name of the method, for the fresh folder's name; made safe.
        seed: Seed of the run, for the fresh folder's name.
        root: Where fresh folders are made.
        force: Allow a folder that holds files already.

    Raises:
        InputError: If the folder holds files and `force` is false, is a file, or cannot be written to.
    """
    path = _fresh(Path(root), f"{slug(method, fallback='run')}-{seed}") if out is None else _given(Path(out), force)
    _probe(path)
    if force:
        _set_aside(path / MANIFEST_NAME)
    return RunFolder(path)


def _fresh(root: Path, prefix: str) -> Path:
    """Make and return the first unused ``root/prefix-n``."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        pattern = re.compile(re.escape(prefix) + r"-([0-9]{1,9})")
        used = [int(m[1]) for entry in root.iterdir() if (m := pattern.fullmatch(entry.name))]
        number = max(used, default=0) + 1
        while True:
            path = root / f"{prefix}-{number}"
            # mkdir alone decides who owns a number, so two runs started together cannot share a folder.
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
            number += 1
    except (OSError, ValueError) as error:
        raise cannot_write(root, error) from error


def _given(path: Path, force: bool) -> Path:
    """Make `path` if need be, and check that it is an empty folder or that `force` allows otherwise."""
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"--out {shown(path)} is a file, not a folder", hint="name a folder that is new or empty")
        path.mkdir(parents=True, exist_ok=True)
        held = sorted(entry.name for entry in path.iterdir())
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error
    if held and not force:
        raise InputError(
            f"--out {shown(path)} already holds files ({len(held)}, for example {held[0]!r})",
            hint="name a new folder, or allow files of the same name to be replaced with --force",
        )
    return path


def _probe(path: Path) -> None:
    """Write and remove a file, since permission bits alone do not tell (read-only mounts, quotas, root)."""
    probe = path / f".attnctl-probe-{os.getpid()}"
    try:
        probe.write_bytes(b"attnctl")
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _set_aside(manifest: Path) -> None:
    """Rename an older run record to a name that is free."""
    number = 1
    while (aside := manifest.with_name(f"{manifest.stem}-replaced-{number}{manifest.suffix}")).exists():
        number += 1
    try:
        manifest.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"cannot set aside the older run record {shown(manifest)}: {reason(error)}",
            hint="name a new folder",
        ) from error
