"""Commands that say what is installed: ``methods``, ``inversions``, ``plugins``, ``doctor``. None loads torch here."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from attnctl.command import Commands
from attnctl.config import describe_fields, shown
from attnctl.method import EditMethod
from attnctl.registry import PluginEntry, Registry
from attnctl.terminal import facts, plain, say, show, show_json, table


def _catalogue(kind: str) -> Callable[[Namespace], int]:
    """Return the command that lists what plugins provide of a kind, or shows one."""

    def execute(arguments: Namespace) -> int:
        registry = Registry.load(arguments.plugins)
        if arguments.name is not None:
            return _one(_data(registry, kind, arguments.name), arguments.json)
        return _all(kind, registry, arguments.json)

    return execute


methods, inversions, modifiers = map(_catalogue, ("method", "inversion", "modifier"))


def plugins(arguments: Namespace) -> int:
    """List all plugins, working or not."""
    found = [*Registry.load(arguments.plugins).plugins, *_command_plugins()]
    if arguments.json:
        show_json([asdict(plugin) for plugin in found])
        return 0
    rows = [
        (p.name, f"{p.owner} {p.version}".strip(), ", ".join(p.provides), f"broken: {p.error}" if p.error else "works")
        for p in found
    ]
    show(table(("plugin", "from", "provides", "state"), rows))
    return 0


def _command_plugins() -> list[PluginEntry]:
    """List what provides commands, which are loaded apart from all else."""
    commands = Commands.load()
    return [
        PluginEntry(
            name,
            *origin,
            tuple(f"command {command}" for command, owner in commands.owners.items() if owner == name),
            commands.broken.get(name, ""),
        )
        for name, origin in commands.origins.items()
    ]


def doctor(arguments: Namespace) -> int:
    """Check the installation; 1 where nothing will work."""
    from attnctl.doctor.examine import as_data, examine, render, worst

    checks = examine()
    if arguments.json:
        show_json(as_data(checks))
    else:
        show(render(checks))
    return 1 if worst(checks) == "fail" else 0


def warn_of_broken(registry: Registry) -> None:
    """Say that plugins are broken, in one line, where that may be why something is not listed."""
    if registry.broken:
        names = ", ".join(plugin.name for plugin in registry.broken)
        say("warning", f"broken plugins: {names}; `attnctl plugins` says why")


def _all(kind: str, registry: Registry, as_json: bool) -> int:
    names = sorted(registry.classes[kind])
    if as_json:
        show_json([_data(registry, kind, name) for name in names])
        return 0
    rows = [
        (name, cls.summary, cls.paper, registry.owners[kind, name])
        for name in names
        for cls in (registry.classes[kind][name],)
    ]
    show(table((kind, "what it does", "paper", "plugin"), rows))
    warn_of_broken(registry)
    return 0


def _data(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    cls = registry.class_of(kind, name)
    presets = {
        preset: {"summary": found.summary, "settings": dict(found.settings)} for preset, found in cls.presets.items()
    }
    return {
        "name": name,
        "summary": cls.summary,
        "paper": cls.paper,
        "plugin": registry.owners[kind, name],
        "settings": describe_fields(cls.Config),
        "bibtex": cls.bibtex,
        "presets": presets,
        **({"needs_source_prompt": cls.needs_source_prompt} if issubclass(cls, EditMethod) else {}),
    }


def _one(data: Mapping[str, Any], as_json: bool) -> int:
    if as_json:
        show_json(data)
        return 0
    parts = [plain(f"{data['name']}: {data['summary']}")]
    about = [("paper", data["paper"]), ("plugin", data["plugin"])]
    if data.get("needs_source_prompt"):
        about.append(("needs", "a source prompt, for real pictures too"))
    parts += [facts([pair for pair in about if pair[1]]), plain("")]
    if data["settings"]:
        rows = [(f["name"], f["default"], f["range"], f["description"]) for f in data["settings"]]
        parts += [table(("setting", "default", "allowed", "what it does"), rows), plain("")]
    else:
        parts.append(plain("It has no settings.\n"))
    if data.get("presets"):
        lines = [
            (name, " ".join(f"{k}={shown(v)}" for k, v in preset["settings"].items()), preset["summary"])
            for name, preset in data["presets"].items()
        ]
        parts += [table(("preset", "settings", "what it reproduces"), lines), plain("")]
    if data["bibtex"]:
        parts.append(plain(data["bibtex"]))
    show(*parts)
    return 0
