"""Errors that are worth showing to a person as they are: one line of fact, one line of advice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AttnctlError(Exception):
    """A fault of input or environment that the user can mend; the command line prints it without a traceback.

    Args:
        message: What was found and what was expected, in one line.
        hint: What to do about it, in one line; empty when the message already says it.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(AttnctlError):
    """A value, prompt, picture or path given by the user cannot be used."""


class ModelError(AttnctlError):
    """A model cannot be loaded, is of an unsupported family, or cannot be hooked."""


class PluginError(AttnctlError):
    """A plugin is broken, unknown, or breaks the contract it signed."""


class SelectionError(AttnctlError):
    """A selector (`Where`, `When`, lane name) selects nothing that exists."""


class CoverageError(AttnctlError):
    """An edit did not act where it said it would, so its picture is not what it claims to be."""


class NumericsError(AttnctlError):
    """Latents or pictures became NaN or infinite."""


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """Return `known` ordered by likeness to `name`, most alike first, ties in alphabetical order."""
    return sorted(known, key=lambda k: (-difflib.SequenceMatcher(None, name.lower(), k.lower()).ratio(), k))


def unknown(kind: str, name: str, known: Iterable[str], *, cls: type[AttnctlError] = InputError) -> AttnctlError:
    """Build the error for a name that does not exist: says the nearest, lists them all.

    Args:
        kind: What sort of thing was named, for example ``"method"``.
        name: The name as the user gave it.
        known: The names that do exist.
        cls: The error class to build.
    """
    ordered = nearest_first(name, known)
    if not ordered:
        return cls(f"unknown {kind} {name!r}: there are none", hint=f"install or register a {kind} first")
    return cls(f"unknown {kind} {name!r}: known are {', '.join(ordered)}", hint=f"did you mean {ordered[0]!r}?")
