"""Every hook that a plugin may implement. Hooks take nothing and return classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from attnctl.dataset import Dataset
    from attnctl.families.base import Family
    from attnctl.inversion import Inversion
    from attnctl.method import EditMethod
    from attnctl.metric import Metric
    from attnctl.modifier import Modifier

hookspec = pluggy.HookspecMarker("attnctl")
hookimpl = pluggy.HookimplMarker("attnctl")


@hookspec
def attnctl_methods() -> list[type[EditMethod]]:  # type: ignore[empty-body]
    """Return edit methods."""


@hookspec
def attnctl_inversions() -> list[type[Inversion]]:  # type: ignore[empty-body]
    """Return inversions."""


@hookspec
def attnctl_modifiers() -> list[type[Modifier]]:  # type: ignore[empty-body]
    """Return modifiers."""


@hookspec
def attnctl_metrics() -> list[type[Metric]]:  # type: ignore[empty-body]
    """Return metrics."""


@hookspec
def attnctl_datasets() -> list[type[Dataset]]:  # type: ignore[empty-body]
    """Return data sets."""


@hookspec
def attnctl_families() -> list[type[Family]]:  # type: ignore[empty-body]
    """Return model families; entry points of the group ``attnctl.families``."""
