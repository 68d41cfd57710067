"""Train the judge on rendered scenes with blur and noise, and measure it on held-out ones."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import RUNS, Clock, cosine, device_of, object_mask
from muon import optimizers
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file

from attnctl_evaluation.judge import SIDE, WEIGHTS, Judge, JudgeNet
from attnctl_evaluation.world import BACKGROUNDS, COLOURS, OBJECTS, PATTERNS, Scene, random_scene, render

_WORDS = {"object": OBJECTS, "colour": tuple(COLOURS), "pattern": PATTERNS}


def bank(
    count: int, seed: int, held_out: bool
) -> tuple[list[Scene], torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Render scenes once.

    Returns:
        Scenes; pictures (n, 3, 64, 64) as bytes; areas (n, 64, 64): 0 nothing, 1 first, 2 second object;
        labels, -1 where there is no second object.
    """
    rng = random.Random(seed)
    scenes = [random_scene(rng, held_out=held_out, two=0.3) for _ in range(count)]
    pictures = np.stack([np.asarray(render(s).reduce(128 // SIDE)) for s in scenes])
    areas = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    labels = {name: torch.full((count, 2), -1) for name in _WORDS}
    for i, scene in enumerate(scenes):
        for j, thing in enumerate(scene.things):
            areas[i][object_mask(scene, j, SIDE)] = j + 1
            for name, words in _WORDS.items():
                labels[name][i, j] = words.index(getattr(thing, name))
    labels["background"] = torch.tensor([BACKGROUNDS.index(s.background) for s in scenes])
    return scenes, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(areas).long(), labels


def roughen(x: torch.Tensor) -> torch.Tensor:
    """Blur, shift the tone and add noise by chance, as an autoencoder or a sampler might."""
    kind = torch.rand(())
    if kind < 0.7:
        sigma = float(torch.empty(()).uniform_(0.3, 1.3))
        taps = torch.exp(-(torch.arange(-3, 4, dtype=x.dtype, device=x.device) ** 2) / (2 * sigma**2))
        taps = taps / taps.sum()
        x = F.pad(x, (3, 3, 3, 3), mode="replicate").flatten(0, 1)[:, None]
        x = F.conv2d(F.conv2d(x, taps[None, None, None]), taps[None, None, :, None])[:, 0]
        x = x.unflatten(0, (-1, 3))
    n = x.shape[0]
    gain = 1 + 0.05 * (torch.rand(n, 3, 1, 1, device=x.device) - 0.5)
    shift = 0.04 * (torch.rand(n, 3, 1, 1, device=x.device) - 0.5)
    fine = torch.randn_like(x) * 0.05 * torch.rand(n, 1, 1, 1, device=x.device)
    # Errors of latents are as coarse as the latents.
    coarse = F.interpolate(torch.randn(n, 3, 16, 16, device=x.device), size=x.shape[-2:], mode="bilinear")
    coarse = coarse * 0.06 * torch.rand(n, 1, 1, 1, device=x.device)
    return (x * gain + shift + fine + coarse).clamp(0, 1)


@torch.no_grad()
def measure(judge: Judge, count: int = 2000, seed: int = 4242) -> dict[str, float]:
    """Shares of right answers on clean held-out renders in full size, and the mean IoU of the first mask."""
    rng = random.Random(seed)
    right = dict.fromkeys(("object", "colour", "pattern", "background", "count"), 0)
    things, iou = 0, 0.0
    for start in range(0, count, 50):
        scenes = [random_scene(rng, held_out=True) for _ in range(min(50, count - start))]
        x = torch.from_numpy(np.stack([np.asarray(render(s)) for s in scenes])).permute(0, 3, 1, 2) / 255
        result = judge.judge(x)
        for i, scene in enumerate(scenes):
            right["background"] += result.background[i] == scene.background
            right["count"] += len(result.findings[i]) == len(scene.things)
            truth = torch.from_numpy(object_mask(scene, 0))
            iou += float((truth & result.masks[i, 0]).sum() / (truth | result.masks[i, 0]).sum())
            for thing, finding in zip(scene.things, result.findings[i], strict=False):
                for name in _WORDS:
                    right[name] += getattr(thing, name) == getattr(finding, name)
            things += len(scene.things)
    shares = {k: v / (things if k in _WORDS else count) for k, v in right.items()}
    return {**shares, "iou": iou / count}


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RUNS / "judge.safetensors", help="the release is " + str(WEIGHTS))
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="only measure the released judge")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(Judge.load()))
        return
    torch.manual_seed(arguments.seed)
    device = device_of(arguments.device)
    _, pictures, areas, labels = bank(arguments.scenes, 31 + arguments.seed, held_out=False)
    net = JudgeNet().to(device)
    made = optimizers(net, rate=2e-3, muon_rate=2e-3, keep=("segment", "enter"))
    clock, step, progress = Clock(arguments.steps, arguments.minutes), 0, 0.0
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[note]}")) as bar:
        task = bar.add_task("judge", total=1000, note="")
        while progress < 1.0:
            chosen = torch.randint(0, len(pictures), (arguments.batch,))
            x = roughen(pictures[chosen].to(device).float() / 255)
            area = areas[chosen].to(device)
            truth = torch.stack([area == 1, area == 2], dim=1).float()
            # Half of the time it looks through its own masks, as it will have to.
            logits, seen = net(x, truth if step % 2 and progress < 0.8 else None)
            loss = F.cross_entropy(seen, area) * 2
            for name, value in logits.items():
                target = labels[name][chosen].to(device)
                loss = loss + F.cross_entropy(value.flatten(0, -2), target.flatten(), ignore_index=-1)
            for group in (g for optimizer in made for g in optimizer.param_groups):
                group["lr"] = group["base"] * cosine(progress, step, warmup=50, hold=0.3)
            net.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for optimizer in made:
                optimizer.step()
            step += 1
            progress = clock.progress(step)
            bar.update(task, completed=round(1000 * progress), note=f"step {step} loss {loss.item():.4f}")
            if step % 100 == 0:
                print(f"step {step} {clock.seconds:.0f} s loss {loss.item():.4f}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous().cpu() for k, v in net.state_dict().items()}, arguments.out)
    print("held-out renders:", measure(Judge.load(arguments.out)), flush=True)


if __name__ == "__main__":
    main()
