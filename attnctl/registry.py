"""Finding plugins: every entry point of the group ``attnctl`` is loaded alone, and a broken one harms nothing else."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar, cast

import pluggy

from attnctl import command, hookspecs
from attnctl.dataset import Dataset, DatasetSpec
from attnctl.entrypoints import first_line, owner_of, points_of
from attnctl.errors import InputError, PluginError, unknown
from attnctl.families import finding
from attnctl.families.base import Family
from attnctl.inversion import Inversion, InversionSpec
from attnctl.method import EditMethod
from attnctl.metric import Metric
from attnctl.modifier import Modifier
from attnctl.plugin import Described, Plugin

PluginT = TypeVar("PluginT", bound=Plugin)

GROUP = "attnctl"
KINDS: Mapping[str, tuple[str, type[Described]]] = {
    "family": ("attnctl_families", Family),
    "method": ("attnctl_methods", EditMethod),
    "inversion": ("attnctl_inversions", Inversion),
    "modifier": ("attnctl_modifiers", Modifier),
    "metric": ("attnctl_metrics", Metric),
    "dataset": ("attnctl_datasets", Dataset),
}
"""What plugins can provide: the hook that returns it and the base class that it must have."""


@dataclass(frozen=True)
class PluginEntry:
    """One plugin that was looked at.

    Attributes:
        name: Entry point name, or a file's path.
        owner: Distribution that declares it, or ``file``.
        version: The distribution's version.
        target: What the entry point points to.
        provides: ``method NAME``, ``inversion NAME``, ...
        error: Why it could not be used; empty when it works.
    """

    name: str
    owner: str
    version: str
    target: str
    provides: tuple[str, ...] = ()
    error: str = ""


@dataclass
class Registry:
    """Everything that plugins provide, by kind and name.

    Attributes:
        plugins: All plugins that were found, working or not.
        classes: Per kind, the classes by name.
        owners: Per (kind, name), the plugin that provides it.
    """

    plugins: list[PluginEntry] = field(default_factory=list)
    classes: dict[str, dict[str, type[Any]]] = field(default_factory=lambda: {k: {} for k in KINDS})
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    _manager: pluggy.PluginManager = field(default_factory=lambda: _new_manager(), repr=False)  # noqa: PLW0108

    @classmethod
    def load(cls, files: Iterable[str | os.PathLike[str]] = ()) -> Registry:
        """Load every installed plugin, attnctl's own first, then the given files.

        The environment variable ``ATTNCTL_LOAD_PLUGINS``, a comma-separated list of entry point names, restricts
        installed plugins to those; empty loads none.

        Args:
            files: Python files that are plugins without packaging.

        Raises:
            InputError: A file does not exist.
            PluginError: A file that the user named is broken; installed plugins never raise.
        """
        registry = cls()
        only = os.environ.get("ATTNCTL_LOAD_PLUGINS")
        wanted = None if only is None else {n.strip() for n in only.split(",")}
        for point in points_of(GROUP):
            if wanted is None or point.name in wanted:
                registry._add_entry_point(point)
        registry._add_families()
        for path in files:
            registry._add_file(Path(path))
        return registry

    @property
    def broken(self) -> list[PluginEntry]:
        """Plugins that could not be used."""
        return [p for p in self.plugins if p.error]

    @property
    def methods(self) -> dict[str, type[EditMethod]]:
        """Edit methods by name."""
        return self.classes["method"]

    @property
    def inversions(self) -> dict[str, type[Inversion]]:
        """Inversions by name."""
        return self.classes["inversion"]

    @property
    def modifiers(self) -> dict[str, type[Modifier]]:
        """Modifiers by name."""
        return self.classes["modifier"]

    @property
    def metrics(self) -> dict[str, type[Metric]]:
        """Metrics by name."""
        return self.classes["metric"]

    @property
    def datasets(self) -> dict[str, type[Dataset]]:
        """Data sets by name."""
        return self.classes["dataset"]

    def class_of(self, kind: str, name: str) -> Any:
        """Return what plugins provide of a kind, one of `KINDS`, under a name.

        Raises:
            InputError: There is no such one; the message lists those that are known.
        """
        known = self.classes[kind]
        if name not in known:
            fault = unknown(kind, name, known)
            for plugin in self.broken:
                if plugin.name == name:
                    fault.hint = f"the plugin {name!r} is installed but broken: {plugin.error}"
            raise fault
        return known[name]

    def method(self, name: str | Plugin) -> type[EditMethod]:
        """Return a method's class by its name, or that of one that is built.

        Raises:
            InputError: There is no such method.
        """
        found = self.class_of("method", name) if isinstance(name, str) else type(_checked(EditMethod, name))
        return cast(type[EditMethod], found)

    def inversion(self, name: str) -> type[Inversion]:
        """Return an inversion class.

        Raises:
            InputError: There is no such inversion.
        """
        return cast(type[Inversion], self.class_of("inversion", name))

    def modifier(self, name: str) -> type[Modifier]:
        """Return a modifier class.

        Raises:
            InputError: There is no such modifier.
        """
        return cast(type[Modifier], self.class_of("modifier", name))

    def make_method(
        self, name: str | Plugin, settings: Mapping[str, Any] | None = None, preset: str | None = None
    ) -> EditMethod:
        """Build a method with validated settings, those of the preset first; one that is built is returned as it is.

        Raises:
            InputError: Unknown method, preset or setting, or a value out of range.
        """
        made = self._make("method", name, settings, preset) if isinstance(name, str) else name
        return _checked(EditMethod, made)

    def make_inversion(self, spec: InversionSpec) -> Inversion:
        """Build the inversion that a plan asks for, with validated settings; one called ``preset`` names a preset.

        Raises:
            InputError: Unknown inversion, preset or setting, or a value out of range.
        """
        return _checked(Inversion, self._make("inversion", spec.name, *_preset_apart(dict(spec.options))))

    def make_modifier(self, name: str, settings: Mapping[str, Any] | Plugin) -> Modifier:
        """Build a modifier with validated settings; one called ``preset`` names a preset.

        Args:
            name: Its name.
            settings: Its settings; or the modifier itself, which is returned as it is.

        Raises:
            InputError: Unknown modifier, preset or setting, or a value out of range.
        """
        if isinstance(settings, Plugin):
            return _checked(Modifier, settings)
        return _checked(Modifier, self._make("modifier", name, *_preset_apart(settings)))

    def make_metric(
        self, name: str, settings: Mapping[str, Any], preset: str | None = None, *, device: str = "cpu"
    ) -> Metric:
        """Build a metric with validated settings; loads no weights yet.

        Raises:
            InputError: Unknown metric, preset or setting, or a value out of range.
        """
        return _checked(Metric, self._make("metric", name, settings, preset, device=device))

    def make_dataset(self, spec: DatasetSpec | str, settings: Mapping[str, Any] | None = None) -> Dataset:
        """Build a data set from ``NAME[/PRESET][:PATH]`` and further settings; reads no file yet.

        Raises:
            InputError: Unknown data set, preset or setting, a value out of range, or a path too few or too many.
        """
        wanted = DatasetSpec.parse(spec) if isinstance(spec, str) else spec
        kind = cast(type[Dataset], self.class_of("dataset", wanted.name))
        given = dict(settings or {})
        if wanted.path is not None:
            if not kind.needs_path:
                raise InputError(f"{kind.name} reads no files, but was given {wanted.path!r}", hint=f"say {kind.name}")
            given["path"] = wanted.path
        if kind.needs_path and not given.get("path"):
            raise InputError(f"{kind.name} reads your files, but none were named", hint=f"say {kind.name}:PATH")
        return _checked(
            Dataset, self._make("dataset", wanted.name, given, wanted.preset or kind.default_preset or None)
        )

    def _make(
        self, kind: str, name: str, settings: Mapping[str, Any] | None, preset: str | None, **further: Any
    ) -> Plugin:
        """Build any plugin: settings validated on top of those of its preset."""
        from attnctl.config import build_config

        found: type[Plugin] = self.class_of(kind, name)
        if preset is not None and preset not in found.presets:
            raise unknown(f"preset of {name}", preset, found.presets)
        base = {} if preset is None else found.presets[preset].settings
        made = found(build_config(found.Config, {**base, **(settings or {})}, owner=name), **further)
        made.preset = preset
        return made

    def register(
        self, plugin: object, name: str, owner: str = "program", version: str = "", target: str = ""
    ) -> PluginEntry:
        """Register a loaded plugin object (a module or a namespace with hook implementations).

        Returns:
            The plugin as listed; its `error` says why it could not be used.
        """
        error, provides = "", []
        if isinstance(plugin, SimpleNamespace):  # cannot be hashed, and pluggy keeps plugins in sets
            module = ModuleType(name)
            module.__dict__.update(vars(plugin))
            plugin = module
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            provides = self._collect(plugin, name)
        except (Exception, SystemExit) as fault:  # a stranger's code may raise anything, and even call sys.exit()
            error = first_line(fault)
            self._forget(plugin, name)
        listed = PluginEntry(name, owner, version, target, tuple(provides), error)
        self.plugins.append(listed)
        return listed

    def _collect(self, plugin: object, owner: str) -> list[str]:
        others = [p for p in self._manager.get_plugins() if p is not plugin]
        found: list[tuple[str, type]] = []
        for kind, (hook, base) in KINDS.items():
            caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
            for classes in caller():
                for item in classes:
                    self._check(kind, base, item)
                    if any(item.name == other.name for k, other in found if k == kind):  # type: ignore[attr-defined]
                        raise PluginError(f"it provides two of the {kind} {item.name!r}")
                    found.append((kind, item))
        if not found:
            raise PluginError("it provides nothing", hint=f"implement one of {', '.join(h for h, _ in KINDS.values())}")
        for kind, item in found:
            if kind == "family":
                finding.add(cast(type[Family], item))
            self.classes[kind][item.name] = item  # type: ignore[attr-defined]
            self.owners[kind, item.name] = owner  # type: ignore[attr-defined]
        return [f"{kind} {item.name}" for kind, item in found]  # type: ignore[attr-defined]

    def _check(self, kind: str, base: type, item: Any) -> None:
        if not inspect.isclass(item) or not issubclass(cast(type, item), base):
            raise PluginError(f"its {kind} {item!r} is not a subclass of {base.__name__}")
        name = getattr(item, "name", "")
        if not isinstance(name, str) or not name:
            raise PluginError(f"its {kind} {item.__name__} has no name")
        missing = ", ".join(sorted(getattr(item, "__abstractmethods__", ())))
        if missing:
            raise PluginError(f"its {kind} {name!r} does not implement {missing}")
        taken = self.owners.get((kind, name))
        if taken is not None:
            raise PluginError(f"its {kind} {name!r} has a name that plugin {taken!r} already uses")

    def _forget(self, plugin: object, name: str) -> None:
        if self._manager.is_registered(plugin):
            self._manager.unregister(plugin)

    def _add_entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        owner, version = owner_of(point)
        try:
            loaded = point.load()
        except BaseException as fault:  # a module may even call sys.exit()
            if isinstance(fault, KeyboardInterrupt):
                raise
            self.plugins.append(PluginEntry(point.name, owner, version, point.value, error=first_line(fault)))
            return
        self.register(loaded, point.name, owner, version, point.value)

    def _add_families(self) -> None:
        """List what the entry points of families gave; models are loaded by these, whatever else is wanted."""
        for entry in finding.entries():
            owner, version = owner_of(entry.point)
            for kind in entry.kinds:
                self.classes["family"][kind.name] = kind
                self.owners["family", kind.name] = entry.point.name
            provides = tuple(f"family {kind.name}" for kind in entry.kinds)
            self.plugins.append(PluginEntry(entry.point.name, owner, version, entry.point.value, provides, entry.error))

    def _add_file(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"there is no plugin file {path}", hint="check the path given to --plugin")
        plugin = self.register(_import_file(path), str(path), "file", target=str(path))
        if plugin.error:
            raise PluginError(f"the plugin file {path} cannot be used: {plugin.error}", hint="mend the file")


def _checked(base: Callable[..., PluginT], made: object) -> PluginT:
    """Refuse what was built, but is of another kind than is needed; `base` is a class, which may be abstract."""
    kind = cast(type[PluginT], base)
    if not isinstance(made, kind):
        raise InputError(
            f"this must be an instance of {kind.__name__}, found {made!r}",
            hint="give a name, or what Registry.make_... returned",
        )
    return made


def _preset_apart(settings: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return settings without the one called ``preset``, and that one."""
    rest = dict(settings)
    return rest, rest.pop("preset", None)


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("attnctl")
    manager.add_hookspecs(hookspecs)
    manager.add_hookspecs(command)  # a module may bring a command and something else
    return manager


def _import_file(path: Path) -> ModuleType:
    name = f"attnctl_file_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"the plugin file {path} is not a Python file", hint="name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        raise PluginError(
            f"the plugin file {path} cannot be loaded: {first_line(fault)}", hint="mend the file"
        ) from fault
    return module
