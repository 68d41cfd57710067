"""Contact sheets for the documentation: edits in rows, methods in columns, made on the embedded model.

    python tools/contact_sheet.py            # writes docs/images/edits-generated.png and edits-real.png
    python tools/contact_sheet.py --demo     # writes docs/images/demo.png, the picture of the README

Every row is one denoising pass: one source and one lane per method. Rows in which a method fails are kept.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnctl.example import Example

IMAGES = Path(__file__).parents[1] / "docs" / "images"
METHODS = ("none", "fpe", "p2p", "masactrl", "pnp")
SIDE = 160


@dataclass(frozen=True)
class Row:
    """One edit: what kind it is, both prompts, and the scene that a real source is rendered from."""

    kind: str
    source: str
    target: str
    scene: dict[str, Any]
    change: dict[str, Any]


def thing(name: str, colour: str, **more: Any) -> dict[str, Any]:
    """Settings of one big object in the middle."""
    return {"object": name, "colour": colour, "pattern": "plain", "x": 0.5, "y": 0.85, "size": 0.55, **more}


ROWS = (
    Row("colour", "a red car on a road", "a blue car on a road",
        {"background": "road", "things": [thing("car", "red")]}, {"colour": "blue"}),
    Row("colour", "a green heart in the snow", "a purple heart in the snow",
        {"background": "snow", "things": [thing("heart", "green")]}, {"colour": "purple"}),
    Row("object", "a red car on a road", "a red boat on a road",
        {"background": "road", "things": [thing("car", "red")]}, {"object": "boat"}),
    Row("object", "a yellow cat on grass", "a yellow bird on grass",
        {"background": "grass", "things": [thing("cat", "yellow")]}, {"object": "bird"}),
    Row("background", "a blue house in the snow", "a blue house on grass",
        {"background": "snow", "things": [thing("house", "blue")]}, {"background": "grass"}),
    Row("pattern", "an orange fish at sea", "an orange striped fish at sea",
        {"background": "sea", "things": [thing("fish", "orange")]}, {"pattern": "striped"}),
    Row("two objects", "a red ball and a green tree on grass", "a blue ball and a green tree on grass",
        {"background": "grass", "things": [
            thing("ball", "red", x=0.28, size=0.36), thing("tree", "green", x=0.72, size=0.4)]},
        {"colour": "blue"}),
)  # fmt: skip


def scene_of(row: Row) -> Any:
    """Build the row's scene."""
    from attnctl_evaluation.world import Scene, Thing

    things = tuple(Thing(**t) for t in row.scene["things"])
    return Scene(things=things, background=row.scene["background"])


def pixels_of(picture: Any) -> Any:
    """Turn a PIL picture into (3, H, W) in [-1, 1]."""
    import torch

    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)


def edit_row(session: Any, row: Row, methods: tuple[str, ...], *, real: bool, seed: int) -> dict[str, Any]:
    """Edit one source by all methods in one pass; return pictures by column."""
    from attnctl.pictures import to_image
    from attnctl.request import Edit, EditRequest
    from attnctl_evaluation.world import edit, render

    scene = scene_of(row)
    example = Example.beside(session.model)
    request = EditRequest(
        edits=tuple(Edit(row.target, m, example.suited(m), name=m) for m in methods),
        source_prompt=row.source,
        pixels=pixels_of(render(scene)) if real else None,
        steps=50 if real else example.steps,
        guidance=example.guidance,
        seed=seed,
        inversion="direct" if real else None,
        allow_no_op=True,
    )
    result = session.run(request)
    pictures = {"source": render(scene) if real else to_image(result.source.pixels)}
    pictures |= {lane.name: to_image(lane.pixels) for lane in result.edits}
    if real:
        pictures["ground truth"] = render(edit(scene, **row.change))
    return pictures


def lay_out(rows: list[tuple[Row, dict[str, Any]]], path: Path) -> None:
    """Draw the sheet: a heading per column, prompts under each row."""
    from attnctl.runs.strip import side_by_side

    images, labels = [], []
    columns = list(rows[0][1])
    for row, pictures in rows:
        for name in columns:
            images.append(pictures[name])
            text = {"source": row.source, "ground truth": f"drawn: {row.target}"}.get(name, name)
            labels.append(f"{text} → {row.target}" if name == "none" else text)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = side_by_side(images, labels, columns=len(columns))
    wide = SIDE * len(columns) * 1.05
    if sheet.width > wide:
        sheet = sheet.resize((int(wide), int(sheet.height * wide / sheet.width)))
    # 256 colours: a third of the size, and no visible difference on pictures of few colours.
    sheet.quantize(256).save(path, optimize=True)
    print(path)


def main() -> None:
    """Make the sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=len(ROWS))
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--only", choices=["generated", "real"])
    args = parser.parse_args()
    from attnctl.loading import load_model
    from attnctl.runs.strip import side_by_side
    from attnctl.session import EditSession

    random.seed(args.seed)
    session = EditSession(load_model(device="cpu"))
    methods = tuple(args.methods.split(","))
    if args.demo:
        example = Example.beside(session.model)
        row = Row("", example.source_prompt, example.prompt, ROWS[0].scene, {})
        pictures = edit_row(session, row, ("fpe", "none"), real=False, seed=example.seed)
        names = {"source": row.source, "fpe": f"fpe: {row.target}", "none": f"no control: {row.target}"}
        IMAGES.mkdir(parents=True, exist_ok=True)
        side_by_side(list(pictures.values()), [names[n] for n in pictures]).save(IMAGES / "demo.png", optimize=True)
        return
    for real in (False, True):
        kind = "real" if real else "generated"
        if args.only in (None, kind):
            made = [(r, edit_row(session, r, methods, real=real, seed=args.seed)) for r in ROWS[: args.rows]]
            lay_out(made, IMAGES / f"edits-{kind}.png")


if __name__ == "__main__":
    main()
