"""Make a run folder without running a model: `python tools/synthetic_run.py FOLDER --cases 700 --methods 8`.

What is in it is invented and says so in its title. Reports are tested and timed on such folders.
"""

from __future__ import annotations

import argparse
import colorsys
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from attnctl_evaluation.rows import (
    HEADER_NAME,
    RECORDS_NAME,
    TIMINGS_NAME,
    DatasetEntry,
    Failure,
    Header,
    MethodEntry,
    Pictures,
    Row,
    RowScore,
    Timing,
    lines_of,
)

NAMES = ("none", "fpe", "p2p", "pnp", "masactrl", "pix2pix-zero", "sdedit", "fpe+proximal", "p2p+null", "pnp+noise")
TYPES = ("change object", "add object", "delete object", "change colour", "change background", "change style")
COLUMNS: Mapping[str, tuple[str, str, float, float, str]] = {
    "clip-directional": ("clip-directional", "higher", 0.1, 0.2, ""),
    "clip-score": ("clip-score", "higher", 24.0, 3.0, ""),
    "psnr.outside": ("psnr", "higher", 22.0, 8.0, "dB"),
    "ssim.outside": ("ssim", "higher", 0.7, 0.2, ""),
    "lpips.outside": ("lpips", "lower", 0.3, -0.2, ""),
    "structure-distance": ("structure-distance", "lower", 0.06, -0.04, ""),
    "attribute-accuracy.edited": ("attribute-accuracy", "higher", 0.3, 0.5, ""),
    "brightness": ("brightness", "neither", 0.5, 0.0, ""),
}
"""Column: metric, direction, value of the worst method, what the best adds, unit."""

COLOURS = ("red", "orange", "green", "teal", "blue", "purple")
SHAPES = ("square", "circle", "triangle")


def make_run(
    folder: Path,
    *,
    cases: int = 12,
    methods: Sequence[str] = NAMES[:4],
    seeds: Sequence[int] = (0,),
    size: int = 64,
    fail_every: int = 7,
    columns: Sequence[str] = tuple(COLUMNS),
    prompts: Mapping[int, tuple[str, str]] | None = None,
    ids: Mapping[int, str] | None = None,
    header: Mapping[str, Any] | None = None,
    unfinished: int = 0,
    fingerprint: str | None = None,
) -> Path:
    """Write a run folder.

    Args:
        folder: Where; made.
        cases: Number of cases.
        methods: Labels, the first one the baseline.
        seeds: Seeds.
        size: Width and height of pictures, pixels.
        fail_every: Every so many rows one fails; 0: none.
        columns: Which of `COLUMNS`.
        prompts: Source and target prompts of cases, by number.
        ids: Case ids by number.
        header: Fields of the header to replace.
        unfinished: Number of rows at the end that are not there.
        fingerprint: Of the data set; by default it depends on the number of cases.
    """
    folder.mkdir(parents=True)
    rows: list[Row] = []
    timings: list[Timing] = []
    generator = np.random.default_rng(7)
    for number in range(cases):
        for seed in seeds:
            names = _draw_inputs(folder, number, seed, size)
            for place, label in enumerate(methods):
                failing = bool(fail_every) and (number * len(methods) + place) % fail_every == fail_every - 1
                case = (ids or {}).get(number, f"case-{number:04d}")
                words = (prompts or {}).get(number) or _prompts(number)
                row = _row(folder, case, label, seed, words, names, number, place / max(1, len(methods) - 1), size)
                scores = {c: _score(c, place / max(1, len(methods) - 1), generator) for c in columns}
                if failing:
                    row = row.model_copy(update={"status": "failed", "failure": _failure(number)})
                    row = row.model_copy(update={"pictures": row.pictures.model_copy(update={"edit": None})})
                else:
                    row = row.model_copy(update={"scores": scores, "cards": {c: _card(c)["id"] for c in columns}})
                rows.append(row)
                seconds = {"inversion": 1.5, "edit": 2.0 + place + float(generator.random())}
                timings.append(
                    Timing(case=case, method=label, seed=seed, seconds=seconds, peak_memory_bytes=3_000_000_000)
                )
    kept = len(rows) - unfinished
    digest = fingerprint or hashlib.sha256(f"synthetic {cases}".encode()).hexdigest()
    found = _header(methods, seeds, cases, columns, digest, size)
    (folder / HEADER_NAME).write_text(found.model_copy(update=dict(header or {})).model_dump_json(indent=1), "utf-8")
    (folder / RECORDS_NAME).write_bytes(lines_of(rows[:kept]))
    (folder / TIMINGS_NAME).write_bytes(lines_of(timings[:kept]))
    return folder


def _prompts(number: int) -> tuple[str, str]:
    shape, before, after = SHAPES[number % 3], COLOURS[number % 6], COLOURS[(number + 2) % 6]
    return f"a {before} {shape} on a grey table, studio light", f"a {after} {shape} on a grey table, studio light"


def _row(
    folder: Path, case: str, label: str, seed: int, words: tuple[str, str], names: Pictures, number: int,
    skill: float, size: int,
) -> Row:  # fmt: skip
    name = f"ddim+{''.join(c if c.isalnum() else '-' for c in label)}/{number:05d}-{seed}.png"
    (folder / name).parent.mkdir(exist_ok=True)
    _picture(number, seed, size, edited=True, spill=1 - skill).save(folder / name, compress_level=1)
    return Row(
        case=case, method=label, seed=seed, status="ok", edit_type=TYPES[number % len(TYPES)],
        source_prompt=words[0], prompt=words[1], real=number % 2 == 1,
        rows={"inversion": 50, "edit": 100 + int(40 * skill)},
        warnings=["the blend word is split into two tokens"] if number % 40 == 3 else [],
        pictures=names.model_copy(update={"edit": name}),
    )  # fmt: skip


def _failure(number: int) -> Failure:
    if number % 2:
        return Failure(kind="OutOfMemoryError", message="4.2 GiB were asked for, 3.9 GiB are free", hint="fewer lanes")
    return Failure(kind="NoOpError", message="the edit changed nothing: its controller never acted", hint="")


def _score(column: str, skill: float, generator: np.random.Generator) -> RowScore:
    _, _, worst, gain, _ = COLUMNS[column]
    # Editing and preservation pull in different directions, as they do.
    share = skill if column.startswith(("clip", "attribute")) else 1 - skill**2
    noise = abs(gain) * 0.35 * float(generator.normal()) if gain else 0.1 * float(generator.normal())
    if column == "lpips.outside" and generator.random() < 0.02:
        return RowScore(value=None, reason="nothing is outside the mask")
    return RowScore(value=round(worst + gain * share + noise, 5))


def _card(column: str) -> dict[str, Any]:
    name, better, _, _, unit = COLUMNS[column]
    return {
        "id": f"{column}@{hashlib.sha256(column.encode()).hexdigest()[:8]}", "name": name, "column": column,
        "summary": f"An invented number called {name}", "better": better, "low": None, "high": None, "unit": unit,
        "preprocessing": "none", "source": "arXiv:1801.03924", "model": "invented", "weights_sha256": "0" * 64,
        "scale": 1.0, "degenerate": "", "settings": {"region": "outside"} if column.endswith("outside") else {},
        "packages": {"numpy": "2.0"},
    }  # fmt: skip


def _header(
    methods: Sequence[str], seeds: Sequence[int], cases: int, columns: Sequence[str], digest: str, size: int
) -> Header:
    types = Counter(TYPES[n % len(TYPES)] for n in range(cases))
    entries = [
        MethodEntry(
            label=label, folder=f"ddim+{label}", method=label.partition("+")[0], preset="paper" if place % 2 else None,
            settings={"self_replace": 0.8, "layers": [4, 14]}, inversion="ddim", uses_source_prompt=label != "none",
            uses_mask=label in ("masactrl",), summary=f"Invented settings of {label}", paper="arXiv:2208.01626",
            bibtex=f"@article{{{label.replace('+', '-')},\n  title = {{About {label}}},\n  year = {{2024}}\n}}",
        )
        for place, label in enumerate(methods)
    ]  # fmt: skip
    return Header(
        title="Synthetic comparison: every number is invented",
        dataset=DatasetEntry(
            spec="synthetic/full", name="synthetic", fingerprint=digest, cases=cases, edit_types=dict(types),
            bibtex="@misc{synthetic,\n  title = {Nothing}\n}",
        ),
        methods=entries, baseline=methods[0], seeds=list(seeds), columns=list(columns),
        cards={c: _card(c) for c in columns},
        absent={"lpips": "AlexNet weights are not on this machine; name a file with lpips.weights."},
        settings={"steps": 50, "guidance": 7.5, "size": [size, size], "scheduler": "ddim", "negative_prompt": ""},
        model={"id": "invented-model", "revision": None, "commit": "abc123", "sha256": "ab" * 32, "files": {}},
        environment={"attnctl": "0.1.0", "python": "3.11", "packages": {"torch": "2.9", "diffusers": "0.40"}},
        device={"kind": "cpu", "name": "invented", "dtype": "float32", "threads": 2},
        config={"dataset": "synthetic/full", "methods": list(methods)},
    )  # fmt: skip


def _draw_inputs(folder: Path, number: int, seed: int, size: int) -> Pictures:
    names = {}
    for kind in ("input", "truth", "mask"):
        (folder / kind).mkdir(exist_ok=True)
        names[kind] = f"{kind}/{number:05d}-{seed}.png"
    _picture(number, seed, size, edited=False).save(folder / names["input"], compress_level=1)
    _picture(number, seed, size, edited=True).save(folder / names["truth"], compress_level=1)
    mask = Image.new("L", (size, size))
    _shape(ImageDraw.Draw(mask), number, seed, size, 255)
    mask.save(folder / names["mask"])
    return Pictures(source=names["input"], truth=names["truth"], mask=names["mask"])


def _picture(number: int, seed: int, size: int, *, edited: bool, spill: float = 0.0) -> Image.Image:
    """A shape on a table with some grain; `spill` is how much of the rest changes with it, 0 to 1."""
    ramp = np.linspace(0, 1, size)
    ground = 150 + 60 * ramp[:, None, None] + 25 * np.sin(6 * ramp)[None, :, None] * np.ones((1, 1, 3))
    grain = np.random.default_rng(number).normal(0, 3, (size, size, 3))
    ground = ground + grain + (edited * spill * 40 * ramp[None, :, None] * np.array([1.0, 0.2, -1.0]))
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    hue = ((number + 2 * edited) % 6) / 6
    colour = tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.75, 0.85))
    _shape(ImageDraw.Draw(image), number, seed, size, colour)
    return image


def _shape(draw: ImageDraw.ImageDraw, number: int, seed: int, size: int, fill: Any) -> None:
    x, y, r = size * (0.35 + 0.07 * (number % 5)), size * (0.4 + 0.05 * (seed % 4)), size * 0.22
    if number % 3 == 0:
        draw.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif number % 3 == 1:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    else:
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--methods", type=int, default=4, help="how many, up to 10")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    made = make_run(
        given.folder, cases=given.cases, methods=NAMES[: given.methods], seeds=range(given.seeds), size=given.size
    )
    print(made)


if __name__ == "__main__":
    main()
