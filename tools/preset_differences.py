"""How far the presets that reproduce published code are from the defaults, on the embedded model.

    python tools/preset_differences.py           # rewrites the tables in docs/methods and docs/inversions

The default has the settings that suit the model, as in ``attnctl run``. Every preset edits the sources of the contact
sheets (``contact_sheet.ROWS``), drawn from their prompts and given as pictures, in the same pass as the default.
Differences are mean absolute differences of pixels, in levels of 255.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contact_sheet import ROWS, pixels_of, scene_of

from attnctl.example import Example

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- preset-differences -->", "<!-- /preset-differences -->"


def request_of(model: Any, row: Any, edits: Sequence[Any], *, real: bool, **more: Any) -> Any:
    """Build the request for one row."""
    from attnctl.request import EditRequest
    from attnctl_evaluation.world import render

    return EditRequest(
        edits=tuple(edits),
        source_prompt=row.source,
        pixels=pixels_of(render(scene_of(row))) if real else None,
        steps=Example.beside(model).steps,
        guidance=Example.beside(model).guidance,
        allow_no_op=True,
        check_reconstruction=False,
        **more,
    )


def difference(a: Any, b: Any) -> float:
    """Mean absolute difference of two pictures (3, H, W) in [0, 1], in levels of 255."""
    return float((a - b).abs().mean()) * 255


def of_method(session: Any, name: str, presets: Sequence[str], *, real: bool, rows: int) -> dict[str, list[float]]:
    """Differences of a method's presets from its default, by preset."""
    from attnctl.errors import AttnctlError
    from attnctl.request import Edit

    found: dict[str, list[float]] = {preset: [] for preset in presets}
    for row in ROWS[:rows]:
        for preset in presets:
            default = Edit(row.target, name, Example.beside(session.model).suited(name), name="default")
            edits = (default, Edit(row.target, name, preset=preset, name="preset"))
            try:
                result = session.run(request_of(session.model, row, edits, real=real))
            except AttnctlError as error:  # a preset may refuse a pair of prompts
                print(f"{name} {preset}: {error.message}", flush=True)
                continue
            found[preset].append(difference(result["default"].pixels, result["preset"].pixels))
    return found


def of_inversion(session: Any, name: str, presets: Sequence[str], rows: int) -> dict[str, list[float]]:
    """Differences of edits by p2p behind an inversion's presets, from those behind its default."""
    from attnctl.request import Edit

    found: dict[str, list[float]] = {preset: [] for preset in presets}
    for row in ROWS[:rows]:
        made = {}
        for preset in ("", *presets):
            given = {"inversion": name, "inversion_settings": {"preset": preset} if preset else {}}
            edit = Edit(row.target, "p2p", Example.beside(session.model).suited("p2p"), name="edit")
            request = request_of(session.model, row, [edit], real=True, **given)
            made[preset] = session.run(request)["edit"].pixels
        for preset in presets:
            found[preset].append(difference(made[""], made[preset]))
    return found


def cell(values: Sequence[float]) -> str:
    """Write mean and largest difference."""
    return f"{sum(values) / len(values):.1f} ({max(values):.1f})" if values else ""


def insert(path: Path, table: str) -> None:
    """Put a table between the marks of a page; at its end where there are none."""
    text = path.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{table}\n{END}"
    if BEGIN in text:
        text = re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, text, flags=re.DOTALL)
    else:
        text = text.rstrip() + "\n\n## How far the presets are from the default\n\n" + block + "\n"
    path.write_text(text, encoding="utf-8")
    print(path, flush=True)


NOTE = (
    "On the embedded model, {rows} edits, {steps} steps: mean absolute difference of pixels from the default's "
    "pictures, in levels of 255, and the largest in brackets (`tools/preset_differences.py`)."
)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=len(ROWS))
    parser.add_argument("--only", help="methods and inversions, separated by commas")
    args = parser.parse_args()
    from attnctl.loading import load_model
    from attnctl.session import EditSession

    session = EditSession(load_model(device="cpu"))
    wanted = args.only.split(",") if args.only else None
    note = NOTE.format(rows=args.rows, steps=Example.beside(session.model).steps)
    for name, method in sorted(session.registry.methods.items()):
        presets = list(method.presets)
        if not presets or (wanted and name not in wanted):
            continue
        drawn = of_method(session, name, presets, real=False, rows=args.rows)
        given = of_method(session, name, presets, real=True, rows=args.rows)
        lines = [f"| {p} | {cell(drawn[p])} | {cell(given[p])} |" for p in presets]
        head = "| preset | drawn sources | given pictures |\n| --- | ---: | ---: |"
        insert(DOCS / "methods" / f"{name}.md", "\n".join([note, "", head, *lines]))
    for name, inversion in sorted(session.registry.inversions.items()):
        presets = list(inversion.presets)
        if not presets or (wanted and name not in wanted):
            continue
        found = of_inversion(session, name, presets, args.rows)
        lines = [f"| {p} | {cell(found[p])} |" for p in presets]
        head = "| preset | edits by p2p |\n| --- | ---: |"
        insert(DOCS / "inversions" / f"{name}.md", "\n".join([note, "", head, *lines]))


if __name__ == "__main__":
    main()
