"""Every hook that a plugin may implement. Hooks take nothing and return classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from attnctl.inversion import Inversion
    from attnctl.method import EditMethod

hookspec = pluggy.HookspecMarker("attnctl")
hookimpl = pluggy.HookimplMarker("attnctl")


@hookspec
def attnctl_methods() -> list[type[EditMethod]]:  # type: ignore[empty-body]
    """Return edit methods."""


@hookspec
def attnctl_inversions() -> list[type[Inversion]]:  # type: ignore[empty-body]
    """Return inversions."""
