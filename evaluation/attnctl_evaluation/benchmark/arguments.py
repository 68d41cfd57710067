"""From options, and a file where one is named, to what a comparison is asked to do."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnctl.config import parse_assignments
from attnctl.errors import InputError, unknown
from attnctl.terminal import shorten
from attnctl.trusting import check_code, check_fetched, inside, unnamed_code
from attnctl_evaluation.benchmark.spec import CONFIG_NAME, CompareSpec, build_spec, read_toml
from attnctl_evaluation.benchmark.store import CASES_NAME
from attnctl_evaluation.rows import HEADER_NAME, RECORDS_NAME

if TYPE_CHECKING:
    from attnctl.registry import Registry

_PLAIN = (
    "dataset", "baseline", "limit", "inversion", "metrics", "seeds", "steps", "guidance", "negative_prompt", "size",
    "scheduler", "max_rows", "model", "revision", "dtype", "device", "config", "threads", "title", "edit_types",
)  # fmt: skip
"""Options that are settings of `CompareSpec` by their own name; None where they were not given."""


def run_folder(file: str | None) -> Path | None:
    """Return the run folder that a FILE names, itself or by the configuration in it; None where it is another file."""
    if file is None:
        return None
    path = Path(file).expanduser()
    if path.is_dir():
        return path
    return path.parent if path.name == CONFIG_NAME and (path.parent / HEADER_NAME).exists() else None


def is_record(path: Path) -> bool:
    """Whether a FILE is what a run left behind, so that what it says is not the user's own word."""
    if path.is_dir():
        return True
    beside = (HEADER_NAME, RECORDS_NAME, CASES_NAME)
    return path.name == CONFIG_NAME and any((path.parent / name).exists() for name in beside)


def read_spec(arguments: Namespace, registry: Registry) -> CompareSpec:
    """Return what the options ask for, on top of what the file says.

    Raises:
        InputError: A name does not exist, or a value cannot be used.
    """
    file, data = arguments.file, {}
    if file is not None:
        path = Path(file).expanduser()
        data = read_toml(inside(path, CONFIG_NAME) if path.is_dir() else path)
    for name in _PLAIN:
        value = getattr(arguments, name)
        if value is not None:
            data[name] = value
    recorded = build_spec({**data, **_methods(arguments, data)}, file or "the command line")
    if file is not None and is_record(Path(file).expanduser()):
        check_code(recorded.plugins, arguments.plugins, "continuing")
        if arguments.model is None:
            check_fetched(recorded.model, recorded.revision, "continuing")
    more = unnamed_code(arguments.plugins, recorded.plugins)
    spec = recorded.model_copy(update={"plugins": (*recorded.plugins, *dict.fromkeys(more))})
    for label in spec.methods:
        _check_label(label)
        registry.method(spec.methods[label].method)
    plain = spec.model_dump()
    _add_modifiers(plain, arguments.modifiers, registry)
    _add_presets(plain, arguments.presets, registry)
    _add_settings(plain, arguments.settings, registry)
    return build_spec(plain, file or "the command line")


def _methods(arguments: Namespace, data: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are named: those of the file, or new ones without settings."""
    if not arguments.methods:
        return {}
    known = data.get("methods") or {}
    if isinstance(known, list):
        known = {}
    doubled = next((name for i, name in enumerate(arguments.methods) if name in arguments.methods[:i]), None)
    if doubled is not None:
        raise InputError(f"the method {doubled} is named twice", hint="give it two labels in a file: [methods.LABEL]")
    return {"methods": {name: known.get(name, {}) for name in arguments.methods}}


def _check_label(label: str) -> None:
    if not label.strip() or label in {"self", "source"} or label.startswith("source["):
        raise InputError(f"a method cannot be labelled {label!r}", hint="the run's own lanes are called so; rename it")
    if len(label) > 60 or any(not c.isprintable() for c in label):
        raise InputError(f"the label {shorten(label, 40)!r} is too long, or holds control characters", hint="rename it")


def _add_modifiers(plain: dict[str, Any], names: Sequence[str], registry: Registry) -> None:
    """Give every entry further modifiers."""
    for name in names:
        registry.modifier(name)
        for entry in plain["methods"].values():
            entry["modifiers"] = {**entry["modifiers"], name: entry["modifiers"].get(name, {})}


def _add_presets(plain: dict[str, Any], texts: Iterable[str], registry: Registry) -> None:
    """Apply ``[LABEL.]PRESET``; without a label, all entries that have such a preset start from it."""
    for text in texts:
        owner, _, name = text.partition(".")
        takers = _entries(plain, owner) if name else []
        if not takers:
            name = text
            takers = [e for e in plain["methods"].values() if name in registry.method(e["method"]).presets]
        for entry in takers:
            presets = registry.method(entry["method"]).presets
            if name not in presets:
                raise unknown(f"preset of {entry['method']}", name, presets)
            entry["preset"] = name
        if not takers:
            known = {p for e in plain["methods"].values() for p in registry.method(e["method"]).presets}
            raise unknown("preset of these methods", text, known)


def _entries(plain: dict[str, Any], owner: str) -> list[dict[str, Any]]:
    """Return the entry of a label, or all entries of a method."""
    methods = plain["methods"]
    if owner in methods:
        return [methods[owner]]
    return [entry for entry in methods.values() if entry["method"] == owner]


def _add_settings(plain: dict[str, Any], pairs: Iterable[str], registry: Registry) -> None:
    """Apply ``[OWNER.]NAME=VALUE``.

    OWNER is a label, a method, an inversion, a modifier, a metric or the data set; without one, all entries whose
    method has the setting get it.
    """
    for key, value in parse_assignments(pairs).items():
        owner, dot, name = key.partition(".")
        if not dot:
            _set_everywhere(plain, key, value, registry)
            continue
        targets = _targets(plain, owner, registry)
        if not targets:
            known = [*plain["methods"], *registry.modifiers, *registry.inversions, *registry.metrics]
            raise unknown("owner of a setting", owner, [*known, plain["dataset"].partition(":")[0].partition("/")[0]])
        for target in targets:
            target[name] = value


def _set_everywhere(plain: dict[str, Any], key: str, value: str, registry: Registry) -> None:
    fields = {e["method"]: registry.method(e["method"]).Config.model_fields for e in plain["methods"].values()}
    takers = [entry for entry in plain["methods"].values() if key in fields[entry["method"]]]
    if not takers:
        raise unknown(f"setting of {', '.join(fields)}", key, {n for names in fields.values() for n in names})
    for entry in takers:
        entry["settings"].setdefault(key, value)


def _targets(plain: dict[str, Any], owner: str, registry: Registry) -> list[dict[str, Any]]:
    """Return the places where an owner's settings go."""
    entries = list(plain["methods"].values())
    own = _entries(plain, owner)
    if own:
        return [entry["settings"] for entry in own]
    if owner in registry.modifiers:
        found = [entry["modifiers"][owner] for entry in entries if owner in entry["modifiers"]]
        if not found:
            raise InputError(f"--set {owner}: the modifier {owner} is no part of this", hint=f"add --modifier {owner}")
        return found
    if owner in registry.inversions:
        found = [entry["inversion_settings"] for entry in entries if entry["inversion"] == owner]
        if plain["inversion"] == owner:
            found.append(plain["inversion_settings"].setdefault(owner, {}))
        if not found:
            raise InputError(
                f"--set {owner}: the inversion {owner} is no part of this", hint=f"add --inversion {owner}"
            )
        return found
    if owner in registry.metrics:
        return [plain["metric_settings"].setdefault(owner, {})]
    if owner == plain["dataset"].partition(":")[0].partition("/")[0]:
        return [plain["dataset_settings"]]
    return []
