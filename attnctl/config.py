"""Building settings from what users type, with errors that say what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from attnctl.errors import InputError, unknown
from attnctl.files import parse_json
from attnctl.plugin import Settings


def parse_assignments(pairs: Iterable[str]) -> dict[str, str]:
    """Split ``name=value`` strings.

    Raises:
        InputError: A string has no ``=`` or no name.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, sep, value = pair.partition("=")
        if not sep or not name.strip():
            raise InputError(f"--set takes name=value, found {pair!r}", hint="for example --set self_replace=0.6")
        found[name.strip()] = value.strip()
    return found


def build_config(kind: type[Settings], settings: Mapping[str, Any], *, owner: str) -> Settings:
    """Validate settings; strings are read as JSON where the field is not itself a string.

    Args:
        kind: The plugin's ``Config``.
        settings: Values by field name, typed or as text.
        owner: The plugin's name, for messages.

    Raises:
        InputError: An unknown field, or a value that is out of range or of the wrong type.
    """
    for name in settings:
        if name not in kind.model_fields:
            raise unknown(f"setting of {owner}", name, kind.model_fields)
    try:
        return kind.model_validate({k: _read(kind, k, v) for k, v in settings.items()})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if not first["loc"] or first["loc"][0] not in kind.model_fields:  # the settings do not go together
            raise InputError(f"{owner}: {message}", hint=f"its settings are {', '.join(kind.model_fields)}") from None
        field = str(first["loc"][0])
        raise InputError(
            f"{owner}: {field}={settings.get(field)} is not allowed: {message}",
            hint=f"{field}: {kind.model_fields[field].description or 'has no description'}",
        ) from None


def _read(kind: type[Settings], name: str, value: Any) -> Any:
    """Turn text into a field's type: as JSON, as a list without brackets, as ranges of whole numbers, as it is."""
    if not isinstance(value, str):
        return value
    adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, kind.model_fields[name].annotation))
    text = "null" if value.lower() == "none" else value
    for candidate in (text, f"[{text}]", str(_ranges(text))):
        try:
            parsed = parse_json(candidate, name)
            adapter.validate_python(parsed)
        except (InputError, ValueError, ValidationError):
            continue
        return parsed
    return value


def _ranges(text: str) -> list[int] | None:
    """Read ``4-14`` or ``2, 4-14`` as the whole numbers that it stands for; None for anything else."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})\s*(?:-\s*([0-9]{1,4})\s*)?", part)
        if match is None:
            return None
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def shown(value: Any) -> str:
    """Write a setting's value as ``--set`` takes it: ``none``, ``true``, ``0.8``, ``4,5,6``.

    Values by word and lists of words have no spelling that every field takes; those that the built-in ones
    read are used: ``blue:0.4 car:0.2,0.6`` and ``red > light blue``.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict) and value:
        return " ".join(f"{key}:{shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, (list, tuple)) for item in value):
        return " > ".join(" ".join(map(shown, item)) for item in value)
    if isinstance(value, (list, tuple)):
        return ",".join(shown(item) for item in value)
    return str(value)


def describe_fields(kind: type[Settings]) -> list[dict[str, str]]:
    """Return one row per field for tables: ``name``, ``default``, ``range``, ``description``."""
    schema = kind.model_json_schema().get("properties", {})
    rows = []
    for name, field in kind.model_fields.items():
        rows.append(
            {
                "name": name,
                "default": "" if field.is_required() else shown(field.get_default(call_default_factory=True)),
                "range": _range(schema.get(name, {})),
                "description": field.description or "",
            }
        )
    return rows


def _range(schema: Mapping[str, Any]) -> str:
    if "allowed" in schema:  # a field's own words: Field(json_schema_extra={"allowed": ...})
        return str(schema["allowed"])
    options = schema.get("anyOf", [schema])
    return " or ".join(dict.fromkeys(filter(None, (_one_range(o) for o in options))))


def _one_range(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(str(v) for v in schema.get("enum", [schema.get("const")]))
    kind = {"null": "none", "boolean": "true or false"}.get(schema.get("type", ""), str(schema.get("type", "")))
    if kind == "array":
        items = schema.get("items", {}).get("type", "value")
        return f"{items}s, separated by commas"
    marks = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    bounds = " and ".join(f"{mark} {schema[name]:g}" for name, mark in marks if name in schema)
    return " ".join(filter(None, (kind, bounds)))
