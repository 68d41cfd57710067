"""Measure ``micro``: autoencoder, pictures from held-out captions, and FPE on generated and rendered sources.

Prints a table and writes the figures as JSON, and sheets of what was judged beside it. Every share is
given with the number of pictures it was measured on.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from common import MODEL, RUNS, psnr, sheet, to_tensor
from rich.progress import track

from attnctl.example import Example
from attnctl.loading import load_model
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl_evaluation.judge import Judge
from attnctl_evaluation.world import (
    COLOURS,
    Scene,
    edit,
    is_held_out,
    object_mask,
    plain_caption,
    random_scene,
    render,
)


def share(hits: list[bool]) -> float:
    """Part of true values, rounded; not a number for none."""
    return round(sum(hits) / len(hits), 4) if hits else float("nan")


@torch.no_grad()
def autoencoder(pipe: Any, count: int) -> dict[str, Any]:
    """Reconstruction PSNR in dB on held-out renders."""
    rng, values = random.Random(1), []
    for start in track(range(0, count, 10), "autoencoder"):
        n = min(10, count - start)
        x = to_tensor([render(random_scene(rng, held_out=True)) for _ in range(n)])
        values.append(psnr(x, pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample))
    every = torch.cat(values)
    return {"pictures": count, "psnr_mean": round(float(every.mean()), 2), "psnr_min": round(float(every.min()), 2)}


@torch.no_grad()
def generate(pipe: Any, prompts: list[str], *, guidance: float, seed: int, batch: int = 20) -> torch.Tensor:
    """Pictures (n, 3, 128, 128) in [0, 1] after 30 DDIM steps."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in track(range(0, len(prompts), batch), f"guidance {guidance:g}"):
        out = pipe(
            prompts[start : start + batch],
            num_inference_steps=30,
            guidance_scale=guidance,
            generator=generator,
            output_type="pt",
        )
        parts.append(out.images.float())
    return torch.cat(parts)


def score(judge: Judge, scenes: list[Scene], pictures: torch.Tensor) -> dict[str, Any]:
    """Shares of objects, colours, patterns and backgrounds that the judge finds as the scenes say."""
    result = judge.judge(pictures)
    hits: dict[str, list[bool]] = {k: [] for k in ("object", "colour", "colour_or_neighbour", "pattern", "background")}
    hits |= {"pair_complete": [], "single_object": [], "single_colour": []}
    for i, scene in enumerate(scenes):
        hits["background"].append(result.background[i] == scene.background)
        found = list(result.findings[i])
        if len(scene.things) == 2:
            # The caption does not say which one is left.
            names = [f.object for f in found]
            hits["pair_complete"].append(sorted(names) == sorted(t.object for t in scene.things))
            if len(found) == 2 and names[0] != scene.things[0].object and names[1] == scene.things[0].object:
                found.reverse()
        for thing, finding in zip(scene.things, [*found, None][: len(scene.things)], strict=True):
            hits["object"].append(finding is not None and finding.object == thing.object)
            hits["colour"].append(finding is not None and finding.has_colour(thing.colour))
            hits["colour_or_neighbour"].append(finding is not None and finding.has_colour(thing.colour, tolerant=True))
            hits["pattern"].append(finding is not None and finding.pattern == thing.pattern)
            if len(scene.things) == 1:
                hits["single_object"].append(hits["object"][-1])
                hits["single_colour"].append(hits["colour"][-1])
    return {"pictures": len(scenes), "things": len(hits["object"]), **{k: share(v) for k, v in hits.items()}}


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two masks; 0 when both are empty."""
    union = float((a | b).sum())
    return float((a & b).sum()) / union if union else 0.0


def fpe(
    session: EditSession,
    judge: Judge,
    count: int,
    *,
    guidance: float,
    preset: str | None,
    settings: dict[str, Any],
    real: bool,
    rows: list,
    steps: int,
) -> dict[str, Any]:
    """Colour edits by FPE and without control from the same noise, on generated or rendered sources."""
    rng = random.Random(2 + real)
    sums: dict[str, dict[str, list]] = {m: {"colour": [], "near": [], "iou": [], "kept": []} for m in ("fpe", "none")}
    quality: dict[str, list[float]] = {"inversion": [], "reconstruction": [], "autoencoder": []}
    for number in track(range(count), "FPE on renders" if real else "FPE on generated"):
        scene = random_scene(rng, two=0.0, held_out=True if real else None)
        colour = rng.choice([c for c in COLOURS if c != scene.main.colour])
        after = edit(scene, colour=colour)
        options: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": number}
        if real:
            options["pixels"] = to_tensor([render(scene)])[0]
        else:
            options["source_prompt"] = plain_caption(scene)
        target = plain_caption(after)
        # As `attnctl run` does it: with the settings that suit the model, unless a preset says otherwise.
        chosen = dict(settings)
        Example.beside(session.model).suggest("fpe", chosen, preset, session.registry)
        controlled = Edit(target, "fpe", chosen, preset=preset)
        edits = (controlled,) if real else (controlled, Edit(target, "none"))
        result = session.run(EditRequest(edits, **options))
        source = render(scene) if real else None
        before = to_tensor([source])[0] / 2 + 0.5 if source else result.source.pixels
        seen = judge.judge(torch.stack([before, *(lane.pixels for lane in result.edits)]))
        base = torch.from_numpy(object_mask(scene)) if real else seen.mask[0]
        for i, lane in enumerate(result.edits, start=1):
            finding = seen.findings[i][0]
            kept = sums[lane.method]
            kept["colour"].append(finding.has_colour(colour))
            kept["near"].append(finding.has_colour(colour, tolerant=True))
            kept["iou"].append(iou(base, seen.mask[i]))
            kept["kept"].append(finding.object == scene.main.object)
        for report in result.inversions:
            if report.psnr is not None:
                quality["reconstruction"].append(report.psnr)
            if report.vae_psnr is not None:
                quality["autoencoder"].append(report.vae_psnr)
        if len(rows) < 12:
            rows.append(torch.stack([before, *(lane.pixels for lane in result.edits)][:3]) * 2 - 1)
    figures: dict[str, Any] = {"pictures": count}
    for method, kept in sums.items():
        if kept["iou"]:
            figures[method] = {
                "colour": share(kept["colour"]),
                "colour_or_neighbour": share(kept["near"]),
                "object_kept": share(kept["kept"]),
                "mask_iou_mean": round(sum(kept["iou"]) / count, 4),
            }
    for name, values in quality.items():
        if values:
            figures[f"psnr_{name}"] = round(sum(values) / len(values), 2)
    return figures


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=RUNS / "quality")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--generated", type=int, default=200, help="FPE edits of generated pictures")
    parser.add_argument("--rendered", type=int, default=100, help="FPE edits of rendered pictures, by inversion")
    parser.add_argument("--real-steps", type=int, default=50, help="steps of the inversion and of edits of renders")
    parser.add_argument("--renders", type=int, default=200, help="pictures for the autoencoder")
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.0], help="the last one is used for FPE")
    parser.add_argument("--preset", help="of FPE; `paper` also acts at the 16 x 16 level")
    parser.add_argument("--set", dest="settings", default="{}", help="settings of FPE as JSON")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, judge = load_model(str(arguments.model), device="cpu"), Judge.load()
    figures: dict[str, Any] = {"model": str(arguments.model.name), "settings": {**vars(arguments)}}
    figures["settings"] = {k: str(v) if isinstance(v, Path) else v for k, v in figures["settings"].items()}
    if arguments.renders:
        figures["autoencoder"] = autoencoder(model.pipe, arguments.renders)
    rng = random.Random(77)
    scenes = [random_scene(rng, held_out=True) for _ in range(arguments.pictures)]
    assert all(is_held_out(s) for s in scenes)
    for guidance in arguments.guidance if scenes else ():
        prompts = [plain_caption(s) for s in scenes]
        pictures = generate(model.pipe, prompts, guidance=guidance, seed=arguments.seed)
        figures[f"generated at guidance {guidance:g}"] = score(judge, scenes, pictures)
        sheet(list((pictures[:48] * 2 - 1).split(8)), arguments.out / f"generated-{guidance:g}.png")
    session, last, settings = EditSession(model), arguments.guidance[-1], json.loads(arguments.settings)
    for real, count in ((False, arguments.generated), (True, arguments.rendered)):
        if count:
            rows: list[torch.Tensor] = []
            name = "fpe on renders" if real else "fpe on generated"
            figures[name] = fpe(
                session,
                judge,
                count,
                guidance=last,
                preset=arguments.preset,
                settings=settings,
                real=real,
                rows=rows,
                steps=arguments.real_steps if real else 30,
            )
            sheet([torch.cat(rows[i : i + 3]) for i in range(0, len(rows) - 2, 3)], arguments.out / f"fpe-{real}.png")
    text = json.dumps(figures, indent=2)
    (arguments.out / "quality.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
