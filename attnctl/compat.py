"""Optional packages that are missing, or worse than missing: looked for, and kept from doing harm.

torchvision is the one that matters. attnctl never calls it, but diffusers and transformers import it
whenever it can be *found*, and a torchvision built for another torch raises while it is imported:
``operator torchvision::nms does not exist``. That error then comes out of ``from diffusers import
StableDiffusionPipeline``. A missing torchvision hurts nobody, so a broken one is made to look missing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from attnctl.errors import AttnctlError

State = Literal["works", "missing", "broken"]


@dataclass(frozen=True)
class PackageState:
    """Whether one optional package can be used.

    Attributes:
        name: Import name, for example ``torchvision``.
        state: ``works`` (it was imported), ``missing`` (not installed) or ``broken`` (its import raises).
        version: Version of the installed distribution; empty when there is none.
        error: First line of what its import raised; empty unless ``broken``.
    """

    name: str
    state: State
    version: str = ""
    error: str = ""


class MissingPackageError(AttnctlError):
    """A part of attnctl was asked for whose optional package is missing or cannot be imported."""


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, or an empty string; imports nothing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def package_state(name: str, distribution: str = "") -> PackageState:
    """Import one optional package and say how that went.

    Args:
        name: Import name.
        distribution: Name it is installed under, where that differs.

    Returns:
        The state; whatever the import raised is in `PackageState.error`, never propagated.
    """
    if name == "torchvision":
        return guard_torchvision()
    return _try_import(name, installed_version(distribution or name))


@functools.cache
def guard_torchvision() -> PackageState:
    """Make `import diffusers` safe beside a torchvision that cannot be imported.

    Call it before the first import of diffusers or transformers; calling it again costs nothing. Where
    torchvision works it costs no time, because diffusers' pipelines import torchvision themselves.

    A broken torchvision is hidden for the rest of the process: ``import torchvision`` then raises
    `ModuleNotFoundError`, and diffusers and transformers go their way without it. One that works is left
    alone. Where there is none to use, transformers' advice to install one is not printed: nothing that
    attnctl does with a pipeline would be any different.

    Returns:
        The state of torchvision.
    """
    version = installed_version("torchvision")
    if "torchvision" in sys.modules and sys.modules["torchvision"] is None:
        return PackageState("torchvision", "missing", version, "hidden by this program")
    state = _try_import("torchvision", version)
    if state.state == "broken":
        _hide("torchvision")
        _forget_availability()
    if state.state != "works":
        logging.getLogger("transformers.utils.import_utils").addFilter(_is_no_torchvision_advice)
    return state


def require(name: str, *, purpose: str, extra: str = "eval") -> ModuleType:
    """Import an optional package, or say in one line why not and what to install.

    Args:
        name: Import name, for example ``open_clip``.
        purpose: What needs it, for example ``the CLIP score``; it opens the message.
        extra: The extra of attnctl that installs it.

    Raises:
        MissingPackageError: It is not installed, or its import raises.
    """
    state = package_state(name)
    if state.state == "works":
        return sys.modules[name]
    if state.state == "missing":
        message = f"{purpose} needs {name}, which is not installed"
        raise MissingPackageError(message, hint=f"pip install 'attnctl[{extra}]'")
    vision = guard_torchvision()  # open_clip and lpips stumble over it and say so less clearly
    if vision.state == "broken":
        message = f"{purpose} needs {name}, which needs torchvision, which cannot be imported: {vision.error}"
        found = f"torch {installed_version('torch') or 'none'}, torchvision {vision.version or 'none'}"
        hint = f"install a torch and a torchvision built for each other, in one command; found {found}"
        raise MissingPackageError(message, hint=hint)
    message = f"{purpose} needs {name}, which cannot be imported: {state.error}"
    raise MissingPackageError(message, hint=f"pip install --force-reinstall 'attnctl[{extra}]'")


def _try_import(name: str, version: str) -> PackageState:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return PackageState(name, "missing", version)
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken extension may raise anything: RuntimeError, OSError, ImportError
        text = str(error).strip() or type(error).__name__
        return PackageState(name, "broken", version, text.splitlines()[0])
    return PackageState(name, "works", version)


def _is_no_torchvision_advice(record: logging.LogRecord) -> bool:
    return "requires torchvision (not installed)" not in record.getMessage()


def _hide(name: str) -> None:
    """Drop what a failed import left behind and make every later import of `name` fail as not found."""
    for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[module]
    sys.modules[name] = None  # type: ignore[assignment]  # documented: None makes the import raise


def _forget_availability() -> None:
    """Let transformers and diffusers look again, where they were imported before and found torchvision."""
    for module_name in ("transformers.utils.import_utils", "diffusers.utils.import_utils"):
        module = sys.modules.get(module_name)
        for attribute in dir(module) if module is not None else ():
            if "torchvision" not in attribute:
                continue
            value = getattr(module, attribute)
            if hasattr(value, "cache_clear"):
                value.cache_clear()
            elif attribute == "_torchvision_available":
                setattr(module, attribute, False)
