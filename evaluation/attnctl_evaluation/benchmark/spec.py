"""What a comparison is asked to do: one object, whether it was said with options or in a TOML file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from attnctl import files
from attnctl.errors import InputError, unknown
from attnctl.request import Sampling

CONFIG_NAME = "compare.toml"
"""The resolved configuration's file in the run folder."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Part):
    """One method of a comparison with its settings; the same method may enter several times under different labels.

    Attributes:
        method: Registered name; empty: the entry's label.
        preset: One of the method's presets.
        settings: Values by setting; they win over the preset's.
        modifiers: Settings by modifier, in their order; a list of names gives each its defaults.
        inversion: How real pictures are inverted for this entry; None: as the whole comparison says, else as the
            method asks.
        inversion_settings: Settings of `inversion`.
        mask: Whether the method is shown the case's mask, where there is one.
    """

    method: str = ""
    preset: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    modifiers: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    inversion: str | None = None
    inversion_settings: dict[str, JsonValue] = Field(default_factory=dict)
    mask: bool = False

    @field_validator("modifiers", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {str(name): {} for name in value} if isinstance(value, list) else value


class CompareSpec(_Part):
    """A whole comparison.

    Attributes:
        dataset: ``NAME[/PRESET][:PATH]``.
        dataset_settings: Further settings of the data set.
        edit_types: Only cases of these types; empty: all.
        limit: Only so many cases, spread evenly over the data set.
        methods: What is compared: entries by label, in the order of tables.
        baseline: Label that the others are compared with; empty: the entry of the method ``none``, else the first.
        inversion: How real pictures are inverted, for every method that leaves a choice.
        inversion_settings: Settings by inversion.
        metrics: Protocols and single metrics; empty: what suits the data set.
        metric_settings: Further settings by metric.
        seeds: Seeds; every case runs once with each.
        steps: Number of denoising steps; None: the model's own.
        guidance: Guidance scale; None: the model's own.
        negative_prompt: Text of the unconditional half.
        size: Picture (height, width) in pixels; None: the model's own.
        scheduler: One of `attnctl.sampling.SCHEDULERS`; real pictures are always sampled with ``ddim``.
        max_rows: Largest number of rows in one denoiser call.
        model: As ``attnctl run --model``.
        revision: Branch, tag or commit of a hub model.
        dtype: As ``attnctl run --dtype``.
        device: As ``attnctl run --device``.
        config: Configuration for a single weights file.
        threads: Torch threads of each process; None: this machine's cores, shared among the workers.
        plugins: Plugin files.
        title: A line for the report's heading.
    """

    dataset: str
    dataset_settings: dict[str, JsonValue] = Field(default_factory=dict)
    edit_types: tuple[str, ...] = ()
    limit: int | None = Field(None, ge=1)
    methods: dict[str, Entry] = Field(min_length=1)
    baseline: str = ""
    inversion: str | None = None
    inversion_settings: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    metric_settings: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str = ""
    size: tuple[int, int] | None = None
    scheduler: str = "ddim"
    max_rows: int | None = None
    model: str = "micro"
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    config: str | None = None
    threads: int | None = Field(None, ge=1, le=1024)
    plugins: tuple[str, ...] = ()
    title: str = ""

    @field_validator("methods", mode="before")
    @classmethod
    def _labelled(cls, value: Any) -> Any:
        """Take ``methods = ["a", "b"]`` for entries without settings, and fill in methods that labels name."""
        if isinstance(value, list):
            doubled = next((name for i, name in enumerate(value) if name in value[:i]), None)
            if doubled is not None:
                raise ValueError(f"{doubled} is named twice; give entries labels: [methods.LABEL]")
            value = {str(name): {} for name in value}
        if isinstance(value, dict):
            return {k: {"method": k, **v} if isinstance(v, dict) else v for k, v in value.items()}
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("at least one seed is needed")
        if len(set(value)) != len(value):
            raise ValueError("a seed is named twice")
        if not all(0 <= seed < 2**31 for seed in value):
            raise ValueError("seeds must lie between 0 and 2**31 - 1")
        return value

    @model_validator(mode="after")
    def _known_baseline(self) -> CompareSpec:
        if self.baseline and self.baseline not in self.methods:
            raise ValueError(f"the baseline {self.baseline!r} is none of the methods {', '.join(self.methods)}")
        return self

    @model_validator(mode="after")
    def _can_be_sampled(self) -> CompareSpec:
        Sampling.of(self)  # knows what is allowed
        return self

    @property
    def baseline_label(self) -> str:
        """Label that the others are compared with."""
        plain = next((label for label, entry in self.methods.items() if entry.method == "none"), None)
        return self.baseline or plain or next(iter(self.methods))

    def plain(self) -> dict[str, Any]:
        """Return it as plain data without what is not set, for TOML, headers and comparisons."""
        data = _set_only(self.model_dump(mode="json"))
        data["methods"] = {label: _set_only(entry) for label, entry in data["methods"].items()}
        return data


def _set_only(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None and value not in ("", [], {}, False)}


def build_spec(data: Mapping[str, Any], where: str) -> CompareSpec:
    """Check plain data.

    Args:
        data: What was given.
        where: Where it was given, for messages: a file, or ``the command line``.

    Raises:
        InputError: A key is unknown (the nearest known one first), or a value cannot be used.
    """
    _check_keys(data, CompareSpec.model_fields, f"setting in {where}")
    methods = data.get("methods")
    for label, entry in methods.items() if isinstance(methods, Mapping) else ():
        if isinstance(entry, Mapping):
            _check_keys(entry, Entry.model_fields, f"setting of the method {label} in {where}")
    if not data.get("dataset"):
        raise InputError(f"{where} names no data set", hint="give --dataset NAME; `attnctl datasets` lists them")
    if not methods:
        raise InputError(f"{where} names no methods", hint="give --methods NAME,NAME; `attnctl methods` lists them")
    try:
        return CompareSpec.model_validate(dict(data))
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{where}: {place + ': ' if place else ''}{message[:1].lower()}{message[1:]}",
            hint="`attnctl compare --help` says what is allowed",
        ) from error


def _check_keys(data: Mapping[str, Any], known: Iterable[str], kind: str) -> None:
    for key in data:
        if key not in known:
            raise unknown(kind, str(key), known)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file as plain data.

    Raises:
        InputError: It cannot be read or is no TOML; the message names the line.
    """
    hint = f"name a TOML file such as the {CONFIG_NAME} of a finished comparison"
    try:
        return files.read_toml(path)
    except InputError as error:
        raise InputError(error.message, hint=hint) from error


def toml_bytes(data: Mapping[str, Any], note: str = "") -> bytes:
    """Return plain data as TOML; equal data give equal bytes.

    Args:
        data: What `CompareSpec.plain` returns.
        note: A comment for the first line.
    """
    import tomli_w

    text = tomli_w.dumps(_for_toml(data), multiline_strings=False)
    return (f"# {note}\n{text}" if note else text).encode("utf-8", "backslashreplace")


def _for_toml(value: Any) -> Any:
    """Bring values to what TOML has: no null, and nothing that is null inside lists."""
    if value is None:
        return "none"  # settings read it as null
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")  # bytes of a path that are no UTF-8
    if isinstance(value, Mapping):
        return {_for_toml(str(k)): _for_toml(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        if _holds_null(value):
            return json.dumps(value)  # settings read JSON, too
        return [_for_toml(v) for v in value]
    return value


def _holds_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_null, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_null, value))
    return value is None


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return what differs between two pieces of plain data, as sentences ``steps: 30, now 50``.

    Args:
        old: What is there.
        new: What is asked for.
        path: Dotted place of both.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    if old == new:
        return []
    return [f"{path}: {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
