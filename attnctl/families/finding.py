"""Finding families: every entry point of the group ``attnctl.families`` is loaded alone, once per process.

They have a group of their own, because models need families where no other plugin is wanted, and a family should be
found without importing every method there is.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnctl.entrypoints import first_line, points_of
from attnctl.errors import ModelError, PluginError, unknown

if TYPE_CHECKING:
    from attnctl.families.base import Family

GROUP = "attnctl.families"


_added: dict[str, type[Family]] = {}
"""Families that did not come by an entry point: those of a plugin file that the user named."""


def families() -> Mapping[str, type[Family]]:
    """Return all families by name; one whose module is broken is left out, and `attnctl plugins` says why."""
    found = {kind.name: kind for entry in reversed(entries()) for kind in entry.kinds}
    return {**_added, **found}


def add(kind: type[Family]) -> None:
    """Make a family known for the rest of the process."""
    _added[kind.name] = kind


@dataclass(frozen=True)
class FamilyEntry:
    """One entry point that was looked at.

    Attributes:
        point: The entry point.
        kinds: Its families.
        error: Why it could not be used; empty when it works.
    """

    point: importlib.metadata.EntryPoint
    kinds: tuple[type[Family], ...] = ()
    error: str = ""


@functools.cache
def entries() -> tuple[FamilyEntry, ...]:
    """Load every entry point of families alone, attnctl's own first; one that is broken harms no other."""
    found = []
    for point in points_of(GROUP):
        try:
            found.append(FamilyEntry(point, tuple(_families_in(point.load()))))
        except Exception as fault:  # a stranger's module may raise anything
            found.append(FamilyEntry(point, error=first_line(fault)))
    return tuple(found)


def _families_in(module: Any) -> list[type[Family]]:
    from attnctl.families.base import Family

    kinds = list(module.attnctl_families())
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Family)):
            raise PluginError(f"its family {kind!r} is not a subclass of Family")
    return kinds


def family_named(name: str) -> type[Family]:
    """Return a family by name.

    Raises:
        ModelError: There is no such family.
    """
    if name not in families():
        raise unknown("family", name, families(), cls=ModelError)
    return families()[name]


def family_of(pipe: Any, name: str) -> type[Family]:
    """Return the family of a loaded pipeline.

    Raises:
        ModelError: None knows it.
    """
    found = next((kind for kind in families().values() if kind.suits(pipe)), None)
    if found is None:
        raise _unsupported(name, type(pipe).__name__)
    return found


def family_of_class(kind: str, name: str) -> type[Family]:
    """Return the family of a pipeline class as ``model_index.json`` names it.

    Raises:
        ModelError: None knows it.
    """
    found = next((family for family in families().values() if kind in family.pipelines), None)
    if found is None:
        raise _unsupported(name, kind)
    return found


def family_of_file(tensors: Collection[str]) -> type[Family] | None:
    """Return the family that a single file with these tensors belongs to; None if none claims it."""
    return next((family for family in families().values() if family.claims(tensors)), None)


def _unsupported(name: str, kind: str) -> ModelError:
    known = sorted(cls for family in families().values() for cls in family.pipelines)
    return ModelError(f"{name} is a {kind}, a family that is not supported", hint=f"supported are {', '.join(known)}")
