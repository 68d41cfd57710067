"""The cases of a report as plain data for its page: small, since there may be thousands of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attnctl_evaluation.report.contents import Contents
from attnctl_evaluation.report.gallery import Gallery, Picture
from attnctl_evaluation.report.prompts import difference
from attnctl_evaluation.report.text import one_line
from attnctl_evaluation.rows import Row


class _Table:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self.texts: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, key: Any, value: Any = None) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.texts)
            self.texts.append(key if value is None else value)
        return self._numbers[key]


def page_data(contents: Contents, gallery: Gallery) -> dict[str, Any]:
    """Return what the page's script reads, pictures by their number in the gallery.

    A cell of an item is None where there is no row, else ``s``: status, ``p``: picture, ``v``: values by column,
    ``r``: reasons by column, ``f``: failure, ``w``: warnings, ``b``: the picture it started from, where that is not the
    item's.
    """
    results = contents.joined.results
    header = results.header
    columns = {name: place for place, name in enumerate(header.columns)}
    labels = {entry.label: place for place, entry in enumerate(header.methods)}
    reasons, failures, warnings = _Table(), _Table(), _Table()
    items: dict[tuple[str, int], dict[str, Any]] = {}
    types = list(header.dataset.edit_types)
    for record in results.records:
        if record.edit_type not in types:
            types.append(record.edit_type)
        item = items.get((record.case, record.seed))
        place = contents.joined.places[record.key]
        source = gallery.add(place, record.pictures.source)
        if item is None:
            item = _item(record, types.index(record.edit_type), len(labels))
            items[record.case, record.seed] = item
        for key, number in (
            ("source", source),
            ("truth", gallery.add(place, record.pictures.truth)),
            ("mask", gallery.add(place, record.pictures.mask)),
        ):
            if item[key] is None:
                item[key] = number
        cell = _cell(record, columns, reasons, failures, warnings)
        if (picture := gallery.add(place, record.pictures.edit)) is not None:
            cell["p"] = picture
        if source is not None and source != item["source"]:
            cell["b"] = source
        item["cells"][labels[record.method]] = cell
    return {
        "title": contents.title,
        "methods": list(labels),
        "baseline": header.baseline,
        "columns": [
            {
                "name": name,
                "better": contents.summary.better[name],
                "unit": str(header.cards.get(name, {}).get("unit") or ""),
                "places": contents.places[name],
            }
            for name in columns
        ],
        "types": types,
        "seeds": len(header.seeds) > 1,
        "reasons": reasons.texts,
        "failures": failures.texts,
        "warnings": warnings.texts,
        "items": list(items.values()),
    }


def place_pictures(data: dict[str, Any], pictures: Sequence[Picture | None]) -> list[tuple[int, str]]:
    """Add the written pictures to the data: ``[width, height, full, thumbnail]``, the addresses empty where embedded.

    Two numbers of one content become one, so that equal sources of joined runs count as equal.

    Returns:
        Numbers and data URIs of the embedded ones.
    """
    embedded: list[tuple[int, str]] = []
    media: list[list[Any] | None] = []
    first: dict[str, int] = {}
    same: dict[int, int | None] = {}
    for number, picture in enumerate(pictures):
        if picture is None:
            same[number] = None
            media.append(None)
            continue
        same[number] = first.setdefault(picture.full, number)
        inside = picture.full.startswith("data:")
        if same[number] != number:
            media.append(None)
        elif inside:
            embedded.append((number, picture.full))
            media.append([picture.width, picture.height])
        else:
            media.append([picture.width, picture.height, picture.full, picture.thumbnail])
    for item in data["items"]:
        for key in ("source", "truth", "mask"):
            item[key] = None if item[key] is None else same[item[key]]
        for cell in filter(None, item["cells"]):
            for key in ("p", "b"):
                if key in cell:
                    cell[key] = same[cell[key]]
            if cell.get("b") == item["source"]:
                cell.pop("b", None)
    data["media"] = media
    return embedded


def _item(record: Row, edit_type: int, methods: int) -> dict[str, Any]:
    before, after = difference(record.source_prompt, record.prompt)
    return {
        "id": record.case, "seed": record.seed, "type": edit_type, "real": record.real,
        "before": before, "after": after,
        "source": None, "truth": None, "mask": None, "cells": [None] * methods,
    }  # fmt: skip


def _cell(
    record: Row, columns: Mapping[str, int], reasons: _Table, failures: _Table, warnings: _Table
) -> dict[str, Any]:
    cell: dict[str, Any] = {"s": record.status}
    if record.failure is not None:
        failure = record.failure
        cell["f"] = failures.number((failure.kind, failure.message, failure.hint))
    if record.warnings:
        cell["w"] = [warnings.number(one_line(text)) for text in dict.fromkeys(record.warnings)]
    if not record.scores:
        return cell
    values: list[float | None] = [None] * len(columns)
    why: dict[int, int] = {}
    for name, score in record.scores.items():
        if name not in columns:
            continue
        if score.value is not None and math.isfinite(score.value):
            values[columns[name]] = float(f"{score.value:.6g}")
        if score.reason:
            why[columns[name]] = reasons.number(one_line(score.reason))
    cell["v"] = values
    if why:
        cell["r"] = why
    return cell
