"""Train the small CLIP of the drawn world with open_clip's own model and loss, and measure its retrieval.

    python tools/train_clip/train_clip.py --minutes 60          # trains, resumes what was interrupted
    python tools/train_clip/train_clip.py --measure             # measures the released one

Scenes of the held-out split are never trained on. Every scene comes with a sibling that one attribute tells apart, so
that a batch holds the differences that edits make.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from attnctl_evaluation.metrics.clip_models import MICRO_FOLDER, WORDS, WordTokenizer
from attnctl_evaluation.world import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    PATTERNS,
    Scene,
    caption,
    is_held_out,
    plain_caption,
    random_scene,
    render,
    vocabulary,
)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "train_micro"))
from muon import optimizers  # noqa: E402  (a script beside this one)

RUN = ROOT / "build" / "clip"
SIDE, LENGTH = 64, 28
MEAN = STD = 0.5


def config() -> dict:
    """The content of ``open_clip_config.json``."""
    words = vocabulary()
    text = {
        "context_length": LENGTH,
        "vocab_size": WordTokenizer(words, LENGTH).size,
        "width": 128,
        "heads": 4,
        "layers": 2,
    }
    # A small ResNet rather than a transformer: colours and outlines are local, and it learns them many times faster.
    vision = {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16}
    return {
        "model_cfg": {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"size": SIDE, "mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic"},
        WORDS: list(words),
    }


def sibling(rng: random.Random, scene: Scene) -> Scene:
    """A training scene that differs from another in one attribute of one thing, or in the background."""
    while True:
        index = rng.randrange(len(scene.things))
        known = {"object": OBJECTS, "colour": tuple(COLOURS), "pattern": PATTERNS, "background": BACKGROUNDS}
        name = rng.choice(sorted(known))
        other = scene.replace_attribute(index, **{name: rng.choice(known[name])})
        if other != scene and not is_held_out(other) and len({t.object for t in other.things}) == len(other.things):
            return other


def pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Pictures (n, 3, 64, 64) as bytes, as the model's preprocessing makes them from pictures of 128 x 128."""
    from PIL import Image

    found = [np.asarray(render(s).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for s in scenes]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def bank(count: int, seed: int) -> tuple[list[Scene], torch.Tensor]:
    """Render training scenes and their siblings, in turn; kept on disk."""
    rng = random.Random(seed)
    scenes = []
    for _ in range(count // 2):
        scene = random_scene(rng, held_out=False, two=0.25)
        scenes += [scene, sibling(rng, scene)]
    path = RUN / f"bank-{count}-{seed}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pixels(scenes).numpy())
    return scenes, torch.from_numpy(np.load(path))


def said(rng: random.Random, scene: Scene) -> str:
    """One caption: half of the time the plain one, which names every attribute."""
    return plain_caption(scene) if rng.random() < 0.5 else caption(scene, rng)


ATTRIBUTES = (*OBJECTS, *COLOURS, *PATTERNS, *BACKGROUNDS)
"""What a scene can be said to have; the words differ from one another."""


def attributes(scenes: Sequence[Scene]) -> torch.Tensor:
    """Say which attributes each scene has, zeros and ones (n, len(ATTRIBUTES))."""
    found = torch.zeros(len(scenes), len(ATTRIBUTES))
    for row, scene in zip(found, scenes, strict=True):
        for thing in scene.things:
            for name in (thing.object, thing.colour, thing.pattern):
                row[ATTRIBUTES.index(name)] = 1
        row[ATTRIBUTES.index(scene.background)] = 1
    return found


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Bytes to what the model reads."""
    return (images.float() / 255 - MEAN) / STD


def roughened(x: torch.Tensor) -> torch.Tensor:
    """Soften and disturb some pictures as an autoencoder or a sampler does."""
    if torch.rand(()) < 0.5:
        x = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x + torch.randn_like(x) * 0.1 * torch.rand(len(x), 1, 1, 1, device=x.device)


@torch.no_grad()
def measure(model: torch.nn.Module, groups: int = 10, size: int = 100, seed: int = 99) -> dict[str, float]:
    """Share of held-out scenes whose plain caption is the nearest of `size` different ones, and the other way round."""
    rng, tokens = random.Random(seed), WordTokenizer(vocabulary(), LENGTH)
    model.eval()
    to_text = to_picture = 0.0
    for _ in range(groups):
        scenes: dict[str, Scene] = {}
        while len(scenes) < size:
            scene = random_scene(rng, held_out=True)
            scenes[plain_caption(scene)] = scene
        device = next(model.parameters()).device
        images = model.encode_image(normalised(pixels(list(scenes.values()))).to(device), normalize=True)
        texts = model.encode_text(tokens(list(scenes)).to(device), normalize=True)
        right = torch.arange(size, device=device)
        found = images @ texts.T
        to_text += float((found.argmax(dim=1) == right).float().mean())
        to_picture += float((found.argmax(dim=0) == right).float().mean())
    return {"picture to caption": to_text / groups, "caption to picture": to_picture / groups}


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write the model in open_clip's folder layout, float16."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    save_file(held, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config(), indent=1) + "\n", encoding="utf-8")


def train(arguments: argparse.Namespace) -> torch.nn.Module:
    """Train, or go on; the learning rate falls to nothing at the end of the time or of the steps."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    model = open_clip.CLIP(**config()["model_cfg"]).to(device)
    loss_of = open_clip.ClipLoss()
    # Reads the attributes from a picture's embedding while training: contrast alone takes much longer to find them.
    head = torch.nn.Linear(config()["model_cfg"]["embed_dim"], len(ATTRIBUTES)).to(device)
    both = torch.nn.ModuleDict({"clip": model, "head": head})
    made = optimizers(both, rate=arguments.rate, muon_rate=2 * arguments.rate, keep=("embedding", "conv1", "head"))
    checkpoint, step, spent = RUN / "checkpoint.pt", 0, 0.0
    if checkpoint.is_file() and not arguments.fresh:
        state = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(state["model"])
        for optimizer, saved in zip(made, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["spent"]
        print(f"going on from step {step}", flush=True)
    scenes, images = bank(arguments.scenes, 555 + arguments.seed)
    tokens, rng, start = WordTokenizer(vocabulary(), LENGTH), random.Random(step), time.monotonic() - spent
    while True:
        spent = time.monotonic() - start
        progress = step / arguments.steps if arguments.steps else spent / (60 * arguments.minutes)
        if progress >= 1:
            break
        factor = min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in (g for optimizer in made for g in optimizer.param_groups):
            group["lr"] = group["base"] * factor
        first = torch.tensor(rng.sample(range(len(scenes) // 2), arguments.batch // 2)) * 2
        chosen = torch.cat([first, first + 1])
        x = roughened(normalised(images[chosen].to(device)))
        text = tokens([said(rng, scenes[int(i)]) for i in chosen]).to(device)
        model.train()
        seen = model.encode_image(x)
        loss = loss_of(
            torch.nn.functional.normalize(seen, dim=-1),
            model.encode_text(text, normalize=True),
            model.logit_scale.exp(),
        )
        has = attributes([scenes[int(i)] for i in chosen]).to(device)
        read = torch.nn.functional.binary_cross_entropy_with_logits(head(seen), has)
        both.zero_grad(set_to_none=True)
        (loss + 10 * read).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimizer in made:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step += 1
        if step % arguments.every == 0:
            partial = checkpoint.with_suffix(".partial")
            held = {
                "model": both.state_dict(),
                "optimizers": [o.state_dict() for o in made],
                "step": step,
                "spent": spent,
            }
            torch.save(held, partial)
            partial.replace(checkpoint)
            note = f"loss {loss.item():.3f} attributes {read.item():.3f}"
            print(f"step {step} {spent:.0f} s {note} {measure(model, groups=2)}", flush=True)
    return model


def main() -> None:
    """Train or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUN / "model", help=f"the release is {MICRO_FOLDER}")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, help="train for so many steps instead")
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fresh", action="store_true", help="do not go on from a checkpoint")
    parser.add_argument("--measure", type=Path, nargs="?", const=MICRO_FOLDER, help="only measure this folder's model")
    arguments = parser.parse_args()
    if arguments.measure:
        model = open_clip.create_model(f"local-dir:{arguments.measure}", require_pretrained=True)
        print(measure(model))
        return
    model = train(arguments)
    save(model, arguments.out)
    print("held-out scenes:", measure(open_clip.create_model(f"local-dir:{arguments.out}", require_pretrained=True)))


if __name__ == "__main__":
    main()
