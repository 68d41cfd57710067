"""One HTML file: everything in it, nothing fetched, nothing of a stranger's trusted."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from attnctl import __version__
from attnctl_evaluation.report import numbers
from attnctl_evaluation.report.cases import page_data, place_pictures
from attnctl_evaluation.report.contents import Contents, status_line
from attnctl_evaluation.report.figures import SHAPES, scatter
from attnctl_evaluation.report.gallery import Gallery
from attnctl_evaluation.report.text import clean, pretty_json, script_json, web_address
from attnctl_evaluation.statistics import MARK_RULE, Summary

if TYPE_CHECKING:
    from jinja2 import Environment

SCRIPTS = ("base.js", "list.js", "stage.js", "viewer.js", "tables.js", "keys.js", "start.js")
STYLES = ("colours.css", "page.css", "cases.css", "viewer.css")

HEAT_STEPS = 8
"""Shades of the heat table beyond the lightest."""

RAMP = ("0 0.16 0.47 0.73 0.93 0.99 0.99", "0 0.04 0.11 0.21 0.41 0.68 1", "0.02 0.29 0.43 0.33 0.15 0.13 0.64")
"""Red, green and blue of the difference map from no difference to the largest: dark, violet, orange, pale yellow."""


def render(contents: Contents, gallery: Gallery) -> str:
    """Return the page; writes the pictures, if they go beside it.

    Args:
        contents: What it says.
        gallery: Where its pictures go.

    Raises:
        InputError: The folder for pictures cannot be written.
    """
    from markupsafe import Markup

    data = page_data(contents, gallery)
    embedded = place_pictures(data, gallery.write())
    outside = any(medium and len(medium) > 2 for medium in data["media"])
    style = "\n".join(map(_static, STYLES))
    script = '(() => {\n"use strict";\n' + "\n".join(map(_static, SCRIPTS)) + "\n})();"
    header = contents.joined.results.header
    rows = contents.summary.rows
    return _environment().get_template("report.html.j2").render(
        c=contents,
        version=__version__,
        policy=_policy(style, script, outside),
        style=Markup(style),  # noqa: S704  (ours, from the package)
        script=Markup(script),  # noqa: S704  (ours, from the package)
        data=Markup(script_json(data)),  # noqa: S704  (escaped for a script element)
        embedded=[(number, Markup(uri)) for number, uri in embedded],  # noqa: S704  (base64 of what was decoded)
        folder=gallery.folder.name if outside else "",
        figures=_figures(contents),
        shapes=[Markup(s) for s in SHAPES],  # noqa: S704  (ours)
        order={label: place for place, label in enumerate(contents.summary.methods)},
        heat={column: _heat(contents, column) for column in contents.summary.columns},
        edit_types=header.dataset.edit_types,
        absent=header.absent,
        problems=gallery.problems,
        rule=MARK_RULE,
        ramp=RAMP,
        n_failed=sum(r.failed for r in rows.values()),
        n_pending=sum(r.pending for r in rows.values()),
        many_seeds=len(header.seeds) > 1,
    )  # fmt: skip


def _static(name: str) -> str:
    return resources.files("attnctl_evaluation.report").joinpath("static", name).read_text(encoding="utf-8")


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("attnctl_evaluation.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_finalize,
    )  # fmt: skip
    environment.filters["groupby_kept"] = lambda items, name: [
        (key, list(group)) for key, group in itertools.groupby(items, key=lambda item: getattr(item, name))
    ]
    environment.filters["fragment"] = lambda text: quote(clean(text), safe="")
    environment.globals.update(
        number=numbers.number, span=numbers.span, percent=numbers.percent, seconds=numbers.seconds,
        memory=numbers.memory, count=numbers.count, pretty=pretty_json, web_address=web_address, known=_known,
        status_line=status_line, versions=_versions,
    )  # fmt: skip
    return environment


def _finalize(value: Any) -> Any:
    """Make every text that a template prints one that UTF-8 can hold; what is marked as safe was made here."""
    return clean(value) if type(value) is str else value


def _policy(style: str, script: str, outside: bool) -> str:
    """Allow the style and the script of this file by their hashes, and pictures; nothing else may load or be asked."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

    pictures = "data: 'self' file:" if outside else "data:"
    return (
        f"default-src 'none'; img-src {pictures}; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _known(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _versions(environment: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in environment.items():
        if isinstance(value, Mapping):
            yield from ((k, v) for k, v in value.items() if v is not None)
        else:
            yield key, value


def _figures(contents: Contents) -> list[dict[str, Any]]:
    from markupsafe import Markup

    found: list[dict[str, Any]] = []
    for y in contents.axes[0]:
        for x in contents.axes[1]:
            svg = scatter(contents, x, y, name=f"plot{len(found)}")
            found.append({"x": x, "y": y, "svg": Markup(svg)})  # noqa: S704  (its template escaped its texts)
    return found


def _heat(contents: Contents, column: str) -> dict[tuple[str, str], str]:
    """Class of each cell of one column's table: its mean's place between the table's worst and best."""
    means = {
        (name, method): interval.mean
        for name, part in contents.parts.items()
        for method in part.methods
        if (interval := part.cells[method, column].interval) is not None
    }
    if not means:
        return dict.fromkeys(_cells(contents.parts), "")
    low, high = min(means.values()), max(means.values())
    found = dict.fromkeys(_cells(contents.parts), "")
    for key, mean in means.items():
        share = (mean - low) / (high - low) if high > low else 0.0
        if contents.summary.better[column] == "lower":
            share = 1 - share if high > low else 0.0
        found[key] = f"heat-{round(HEAT_STEPS * share)}"
    return found


def _cells(parts: Mapping[str, Summary]) -> list[tuple[str, str]]:
    return [(name, method) for name, part in parts.items() for method in part.methods]


def files_folder(page: Path) -> Path:
    """Return the folder for the pictures of a page: ``report_files`` beside ``report.html``."""
    return page.with_name(f"{page.stem}_files")
