"""Filling in what a comparison leaves open, and checking every name and setting before anything heavy is loaded."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from attnctl.errors import InputError, unknown
from attnctl.example import Example
from attnctl.inversion import InversionSpec
from attnctl.request import Sampling
from attnctl_evaluation.benchmark.spec import CompareSpec, Entry

if TYPE_CHECKING:
    from attnctl.method import MethodConfig
    from attnctl.registry import Registry

DEFAULT_METRICS: Mapping[str, tuple[str, ...]] = {"microbench": ("micro/v1",)}
"""What suits a data set, by its name; everything else gets `GENERAL_METRICS`."""

GENERAL_METRICS = ("attnctl/v1",)


def resolve(spec: CompareSpec, registry: Registry) -> CompareSpec:
    """Return the comparison with nothing left open that can be known without the model, save the number of threads.

    Args:
        spec: What was asked for.
        registry: Where plugins are looked up.

    Raises:
        AttnctlError: A name does not exist, or a value cannot be used.
    """
    from attnctl.dataset import DatasetSpec

    check_names(spec, registry)
    example = Example.of(spec.model)
    sampling = example.fill(Sampling.of(spec))
    named = DatasetSpec.parse(spec.dataset).name
    entries = {
        label: _entry(label, _suited(label, entry, example, registry), spec, registry)
        for label, entry in spec.methods.items()
    }
    return spec.model_copy(
        update={
            "methods": entries,
            "dataset_settings": _dataset_settings(spec, registry),
            "baseline": spec.baseline_label,
            "metrics": spec.metrics or DEFAULT_METRICS.get(named, GENERAL_METRICS),
            "steps": sampling.steps,
            "guidance": sampling.guidance,
        }
    )


def with_threads(spec: CompareSpec, config: Mapping[str, Any], workers: int) -> CompareSpec:
    """Return the comparison with its number of threads: what is asked, what the run has, this machine's share.

    Args:
        spec: The comparison.
        config: The configuration of the run that is continued; empty for a new one.
        workers: Number of processes that share this machine's cores.
    """
    had = config.get("threads")
    share = had if isinstance(had, int) else max(1, cores() // workers)
    return spec.model_copy(update={"threads": spec.threads or share})


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_names(spec: CompareSpec, registry: Registry) -> None:
    """Refuse models, metrics and inversions that cannot be right.

    Raises:
        AttnctlError: One is such.
    """
    from attnctl.loading import DTYPES, inspect_folder, locate
    from attnctl_evaluation.metrics.protocols import columns_of

    location, single_file = locate(spec.model)
    if location is not None and not single_file:
        inspect_folder(location, spec.model)
    if spec.dtype is not None and spec.dtype not in DTYPES:
        raise unknown("dtype", spec.dtype, DTYPES)
    for name in spec.metrics:
        columns_of(name, registry)
    for name, settings in spec.metric_settings.items():
        registry.make_metric(name, settings)
    used = {spec.inversion, *(entry.inversion for entry in spec.methods.values())} - {None}
    for name in sorted(filter(None, used)):
        registry.inversion(name)
    for owner in spec.inversion_settings:
        if owner not in used:
            registry.inversion(owner)
            raise InputError(f"there are settings for the inversion {owner}, which nothing here asks for",
                             hint=f"add inversion = {owner!r}, or leave the settings out")  # fmt: skip


def _suited(label: str, entry: Entry, example: Example, registry: Registry) -> Entry:
    """Add the settings that suit the model, where the entry has neither them nor a preset."""
    settings: dict[str, Any] = dict(entry.settings)
    example.suggest(entry.method or label, settings, entry.preset, registry)
    return entry.model_copy(update={"settings": settings})


def _entry(label: str, entry: Entry, spec: CompareSpec, registry: Registry) -> Entry:
    """Check an entry and write out all of its settings."""
    name = entry.method or label
    kind = registry.method(name)
    method = registry.make_method(name, entry.settings, entry.preset)
    modifiers = {}
    for modifier, settings in entry.modifiers.items():
        modifiers[modifier] = settings_of(registry.make_modifier(modifier, settings).config)
    if entry.inversion_settings and entry.inversion is None:
        raise InputError(f"the method {label} has settings for an inversion, but names none", hint="name one there")
    shared = spec.inversion_settings.get(entry.inversion or spec.inversion or "", {})
    settings = {**shared, **entry.inversion_settings}
    wanted = entry.inversion or (spec.inversion if settings else None)
    if wanted is not None:
        settings = settings_of(registry.make_inversion(InversionSpec(wanted).with_settings(settings)).config)
    if entry.mask and not kind.uses_mask:
        users = ", ".join(sorted(n for n, k in registry.methods.items() if k.uses_mask))
        raise InputError(f"{name} makes no use of a mask", hint=f"those that do are {users or 'none'}")
    return entry.model_copy(
        update={
            "method": name,
            "settings": settings_of(method.config, kind.presets[entry.preset].settings if entry.preset else ()),
            "modifiers": modifiers,
            "inversion_settings": settings if entry.inversion is not None else {},
        }
    )


def _dataset_settings(spec: CompareSpec, registry: Registry) -> dict[str, Any]:
    """Write out a data set's settings; its path stays in the data set's name."""
    dataset = registry.make_dataset(spec.dataset, spec.dataset_settings)
    named_there = ":" in spec.dataset
    return {k: v for k, v in settings_of(dataset.config).items() if not (named_there and k == "path")}


def settings_of(config: MethodConfig, preset: Collection[str] = ()) -> dict[str, Any]:
    """Return a plugin's settings as plain data that its ``Config`` reads back.

    Args:
        config: The settings.
        preset: Settings that a preset gives; null is written for these, and where it is not the default.
    """
    data = config.model_dump(mode="json")
    fields = type(config).model_fields
    defaults = {
        name: None if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in fields.items()
    }
    return {
        k: "none" if v is None else v
        for k, v in data.items()
        if v is not None or defaults[k] is not None or k in preset
    }
