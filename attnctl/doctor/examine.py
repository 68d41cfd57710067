"""Looking at an installation: what is there, what works, and what to do about what does not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from attnctl.doctor.importing import probe
from attnctl.families.hubcache import hub_cache
from attnctl.files import reason
from attnctl.runs.manifest import processor_name

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["ok", "warn", "fail"]

OPTIONAL = {
    "peft": ("LoRA weights", "lora"),
    "open_clip": ("the CLIP scores", "eval"),
    "lpips": ("the LPIPS score", "eval"),
    "torchmetrics": ("some scores", "eval"),
}
"""Optional packages: what they are for, and the extra that installs them."""

PROBED = ("torch", "torchvision", "transformers", "diffusers", *OPTIONAL, "model", "plugins")
_GIB = 2**30
_RUN_SPACE = 1 * _GIB
_MODEL_SPACE = 10 * _GIB


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: ``ok``; ``warn``: something will not work or may surprise; ``fail``: nothing will work.
        detail: What was found, in one line.
        advice: What to do about it, in one line; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


def examine(*, timeout: float = 300.0, imports: bool = True) -> list[Check]:
    """Look at the whole installation. Never raises, downloads nothing, changes nothing.

    Everything heavy is imported in another process, so that a broken extension cannot take this one down.

    Args:
        timeout: Seconds that one part may take to import.
        imports: Whether to import anything; without, only versions and folders are looked at.

    Returns:
        The findings, in the order in which things build on each other.
    """
    checks = [check_python(), *check_versions()]
    if imports:
        found = probe(PROBED, timeout=timeout)
        checks += check_torch(found["torch"])
        checks.append(check_torchvision(found["torchvision"]))
        checks += [check_import(name, found[name]) for name in ("transformers", "diffusers")]
        checks += [check_optional(name, found[name]) for name in OPTIONAL]
        checks += [check_model(found["model"]), *check_plugins(found["plugins"])]
    cache = hub_cache()
    checks += [check_writable("hub cache", cache), check_writable("working folder", Path.cwd())]
    checks += [
        check_space("space for models", cache, _MODEL_SPACE),
        check_space("space for runs", Path.cwd(), _RUN_SPACE),
    ]
    return checks


def worst(checks: Iterable[Check]) -> Status:
    """Return the most serious status among the findings; ``ok`` for none."""
    order: list[Status] = ["ok", "warn", "fail"]
    return max((check.status for check in checks), key=order.index, default="ok")


def as_data(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the findings as plain data for ``--json``: ``{"status": ..., "checks": [{...}, ...]}``."""
    return {"status": worst(checks), "checks": [asdict(check) for check in checks]}


def render(checks: Sequence[Check]) -> Table:
    """Return the findings as a table for the terminal, advice below the detail it belongs to."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for check in checks:
        text = Text(_printable(check.detail))
        if check.advice:
            text.append(f"\n-> {_printable(check.advice)}", style="dim" if check.status == "ok" else "italic")
        table.add_row(Text(check.status, style=styles[check.status]), Text(_printable(check.name)), text)
    return table


def check_python() -> Check:
    """Check that the interpreter is not newer than those that attnctl is tested with."""
    detail = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info >= (3, 14):
        return Check("python", "warn", f"{detail}; not tested above 3.13", "use Python 3.13 if something fails")
    return Check("python", "ok", detail)


def check_versions(distribution: str = "attnctl") -> list[Check]:
    """Check every required distribution against the range that a distribution's own metadata states."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        advice = "install it with pip, in a checkout with `pip install -e .`: without, there are no plugins"
        return [Check(distribution, "fail", "runs, but is not installed", advice)]
    checks = [Check(distribution, "ok", f"{importlib.metadata.version(distribution)} at {Path(__file__).parent}")]
    for line in lines:
        with contextlib.suppress(InvalidRequirement):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                checks.append(_check_version(requirement))
    return checks


def _check_version(requirement: Requirement) -> Check:
    """Check one distribution against its range: below or missing fails, above is a warning."""
    wanted = str(requirement.specifier) or "any"
    name, advice = requirement.name, f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        found = importlib.metadata.version(name)
        version = Version(found)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", f"not installed, expected {wanted}", advice)
    except (InvalidVersion, TypeError):
        return Check(
            name,
            "warn",
            "installed, but its metadata states no version",
            f"pip install --force-reinstall {name}",
        )
    if requirement.specifier.contains(version, prereleases=True):
        return Check(name, "ok", found)
    below = any(s.operator in (">=", ">", "==", "~=") and version < Version(s.version) for s in requirement.specifier)
    status: Status = "fail" if below else "warn"
    return Check(name, status, f"{found}, {'expected' if below else 'tested with'} {wanted}", advice)


def check_torch(found: Mapping[str, Any]) -> list[Check]:
    """Say whether torch computes, and on what: one finding for the CPU, one for each accelerator."""
    if "error" in found:
        return [Check("torch import", "fail", found["error"], "install torch again: https://pytorch.org/get-started")]
    half = "bfloat16 in hardware" if found["bfloat16"] else "bfloat16 emulated, slower than float32"
    cores = f"{found['threads']} threads, {found['capability']}, {half}"
    checks = [
        Check("torch import", "ok", f"{found['version']} in {found['seconds']:.1f} s"),
        Check("cpu", "ok", f"{processor_name()}, {cores}"),
    ]
    for index, device in enumerate(found["devices"]):
        numbers = "float32, bfloat16, float16" if device["bfloat16"] else "float32, float16 (no bfloat16)"
        size = f"{device['memory'] / _GIB:.0f} GiB, capability {device['capability']}"
        checks.append(Check(f"cuda:{index}", "ok", f"{device['name']}, {size}, {numbers}"))
    if found["mps"]:
        checks.append(Check("mps", "ok", "Apple GPU"))
    if not found["devices"] and not found["mps"]:
        checks.append(_no_accelerator(found["built_for"]))
    return checks


def _no_accelerator(built_for: str | None) -> Check:
    """Say why there is no accelerator: none is there, or torch cannot use the one there is."""
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidia0").exists():
        return Check("accelerator", "ok", "none; everything runs on the CPU")
    if built_for is None:
        advice = "install a torch built for CUDA: https://pytorch.org/get-started"
        return Check("accelerator", "warn", "an NVIDIA driver, but a torch built for the CPU alone", advice)
    detail = f"an NVIDIA driver, but torch (built for CUDA {built_for}) finds no device"
    advice = "compare with `nvidia-smi`; the driver may be older than this CUDA"
    return Check("accelerator", "warn", detail, advice)


def check_torchvision(found: Mapping[str, Any]) -> Check:
    """Say whether torch and torchvision were built for each other. attnctl itself never uses torchvision."""
    if found.get("state") == "works":
        return Check("torchvision", "ok", f"{found['version']}, matches torch")
    if found.get("state") == "missing":
        return Check("torchvision", "ok", "not installed; only scoring edits needs it", "pip install 'attnctl[eval]'")
    return Check(
        "torchvision",
        "warn",
        f"{found.get('version', '')} cannot be imported beside this torch: {found['error']}".strip(),
        "editing works without it, scoring does not; install a torch and a torchvision built for each other",
    )


def check_import(name: str, found: Mapping[str, Any]) -> Check:
    """Say whether a required library can be imported as a run imports it."""
    if "error" in found:
        return Check(f"{name} import", "fail", found["error"], f"pip install --force-reinstall {name}")
    return Check(f"{name} import", "ok", f"{found['version']} in {found['seconds']:.1f} s")


def check_optional(name: str, found: Mapping[str, Any]) -> Check:
    """Say whether an optional package works."""
    purpose, extra = OPTIONAL[name]
    install = f"pip install 'attnctl[{extra}]'"
    if found.get("state") == "works":
        return Check(name, "ok", f"{found['version']}, for {purpose}")
    if found.get("state") == "missing":
        return Check(name, "ok", f"not installed; only {purpose} need it", install)
    return Check(name, "warn", f"installed, but cannot be imported: {found['error']}", install)


def check_model(found: Mapping[str, Any]) -> Check:
    """Say whether the model in the wheel is there and predicts."""
    again = "pip install --force-reinstall --no-deps attnctl"
    if "error" in found:
        return Check("embedded model", "fail", f"cannot be used: {found['error']}", again)
    if found["state"] == "missing":
        return Check("embedded model", "fail", f"missing, expected in {found['folder']}", again)
    height, width = found["size"]
    detail = f"predicts; {height} x {width} pixels, {found['sites']} sites, loaded in {found['seconds']:.1f} s"
    return Check("embedded model", "ok", detail)


def check_plugins(found: Mapping[str, Any]) -> list[Check]:
    """Say which plugins were found, and one finding for each that is broken."""
    if "error" in found:
        advice = "no method can be found; run `attnctl plugins`"
        return [Check("plugins", "fail", f"cannot be looked for: {found['error']}", advice)]
    plugins = found["plugins"]
    provided = [what for plugin in plugins if not plugin["error"] for what in plugin["provides"]]
    if not any(what.startswith("method ") for what in provided):
        advice = "install attnctl with pip: its own methods are found by its installed metadata"
        checks = [Check("plugins", "fail", f"{len(plugins)} found, but none provides a method", advice)]
    else:
        working = sum(not plugin["error"] for plugin in plugins)
        checks = [Check("plugins", "ok", f"{working} of {len(plugins)} work: {', '.join(sorted(provided))}")]
    for plugin in plugins:
        if plugin["error"]:
            owner = f"{plugin['owner']} {plugin['version']}".strip()
            advice = f"the others work; mend or uninstall {plugin['owner']}"
            checks.append(Check(f"plugin {plugin['name']}", "warn", f"{owner}: {plugin['error']}", advice))
    return checks


def check_writable(name: str, folder: Path) -> Check:
    """Say whether files can be made in a folder, or in its nearest parent that exists."""
    place = _existing(folder)
    probe_file = place / f".attnctl-probe-{os.getpid()}"
    try:
        probe_file.write_bytes(b"attnctl")
    except OSError as error:
        advice = "set HF_HOME to a folder of yours" if name == "hub cache" else "give --out, or change the folder"
        return Check(name, "warn", f"{folder} cannot be written to: {reason(error)}", advice)
    finally:
        with contextlib.suppress(OSError):
            probe_file.unlink(missing_ok=True)
    return Check(name, "ok", str(folder) if place == folder else f"{folder} (will be made)")


def check_space(name: str, folder: Path, wanted: int) -> Check:
    """Say whether a folder's disk has room; `wanted` is in bytes."""
    try:
        free = shutil.disk_usage(_existing(folder)).free
    except OSError as error:
        return Check(name, "warn", f"cannot tell for {folder}: {reason(error)}")
    detail = f"{free / _GIB:.1f} GiB free"
    if free >= wanted:
        return Check(name, "ok", detail)
    return Check(name, "warn", f"{detail}, {wanted / _GIB:.0f} GiB would be comfortable", "make room on that disk")


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next((place for place in (folder, *folder.parents) if place.is_dir()), Path(folder.anchor or "."))


def _printable(text: str) -> str:
    """Return text without what could steer a terminal: findings quote other people's errors and names."""
    return "".join(c if c.isprintable() else " " for c in text)
