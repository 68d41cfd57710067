"""What a file that somebody wrote may decide, in one place: the rule for every reader of records, runs and data sets.

What a person types is their word. What stands in a file, even in a run folder of one's own, may be a stranger's:

- a file that it names is read from inside its folder alone, symbolic links followed (`inside`);
- code that it names is not run unless the person names it, too (`unnamed_code`);
- a model that it names is not fetched from the network unless the person names it, too (`check_fetched`);
- how large it is and how it is built is bounded by the readers: `attnctl.files` for text, `attnctl.runs.decode` for
  pictures, `attnctl.budget` for numbers that decide what is allocated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from attnctl.errors import InputError
from attnctl.files import reason, shown
from attnctl.terminal import shorten


def inside(folder: str | os.PathLike[str], name: str, where: str = "") -> Path:
    """Return the path of a file that another file names, if it lies in the folder, links followed; it need not exist.

    A folder of the Hugging Face cache holds links to the files' contents, which lie beside it; those are followed.

    Args:
        folder: The folder that files of this record or data set lie in.
        name: The name as it was found, relative to the folder, with slashes of either kind.
        where: What messages begin with: the file and line that names it.

    Raises:
        InputError: It is absolute, climbs up, or is a link that leads out.
    """
    path = Path(name.replace("\\", "/"))
    start = f"{where}: " if where else ""
    hint = "name files inside it; copy there what a link leads to"
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or "\0" in name:
        raise InputError(f"{start}{shorten(repr(name))} leads out of the folder {shown(folder)}", hint=hint)
    try:
        base = Path(folder).resolve()
        target = (base / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # links in a circle
        raise InputError(f"{start}{shorten(repr(name))} cannot be followed: {reason(error)}", hint=hint) from error
    if not target.is_relative_to(base) and not target.is_relative_to(_cached_repository(base) or base):
        raise InputError(
            f"{start}{shorten(repr(name))} is a link that leads out of the folder {shown(folder)}", hint=hint
        )
    return Path(folder) / path


def check_inside(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Refuse a folder in which one of these names is a link that leads out.

    Raises:
        InputError: One is such.
    """
    for name in names:
        inside(folder, name)


def unnamed_code(recorded: Iterable[str], given: Iterable[str]) -> list[str]:
    """Return the plugin files of a record that the person did not name; they are the same file, not only named alike.

    Args:
        recorded: Plugin files that a file names.
        given: Plugin files that the person named.
    """
    known = {_place(path) for path in given}
    return [path for path in recorded if _place(path) not in known]


def check_code(recorded: Iterable[str], given: Iterable[str], doing: str) -> None:
    """Refuse a record whose plugin files would be run without the person's word.

    Args:
        recorded: Plugin files that a file names.
        given: Plugin files that the person named.
        doing: What would run them, for messages: ``continuing``.

    Raises:
        InputError: One was not named.
    """
    for path in unnamed_code(recorded, given):
        raise InputError(
            f"the record names the plugin file {shown(path)}, which {doing} would execute",
            hint=f"look at it, then add --plugin {path}",
        )


def check_fetched(model: str, revision: str | None, doing: str) -> None:
    """Refuse a model that only a record names and that would have to be fetched from the network.

    Raises:
        InputError: It is a hub id that is not on this machine.
    """
    from attnctl.families.hubcache import hub_snapshot
    from attnctl.loading import locate

    place, single_file = locate(model)
    if place is None and not single_file and hub_snapshot(model, revision) is None:
        raise InputError(
            f"the record names the model {shown(model)}, which is not on this machine and which {doing} would fetch",
            hint=f"if you trust it, add --model {model}",
        )


def _place(path: str) -> str:
    return os.path.realpath(Path(path).expanduser())


def _cached_repository(base: Path) -> Path | None:
    """Return the folder of the Hugging Face cache that a snapshot, or a folder in one, belongs to."""
    for folder in (base, *base.parents):
        above = folder.parent
        if above.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name):
            kept = re.fullmatch(r"(models|datasets|spaces)--.+", above.parent.name)
            return above.parent if kept and (above.parent / "blobs").is_dir() else None
    return None
