"""Encode training scenes once, so that the UNet's training never runs the autoencoder.

Writes shards of float16 latents (posterior means). The scenes of a shard are drawn
from its number, so they need not be stored.
"""

from __future__ import annotations

import argparse
import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from common import RUNS, to_tensor
from diffusers import AutoencoderKL
from outlines import label_maps

from attnctl_evaluation.world import Scene, random_scene, render

SHARD = 2000
"""Scenes in a shard."""

TWO = 0.5
"""Part of the scenes with two objects: more than the world's own part, because they are the harder ones."""

_UNSET = 0.18215
"""The `scaling_factor` that diffusers gives an autoencoder which nobody normalised."""


def shard_scenes(number: int) -> list[Scene]:
    """Draw the scenes of a shard; none is held out."""
    rng = random.Random(8_000_000 + number)
    return [random_scene(rng, two=TWO, held_out=False) for _ in range(SHARD)]


@torch.no_grad()
def encode_shard(number: int, vae_folder: str, out: str, device: str) -> int:
    """Encode one shard and write it; does nothing when its file exists."""
    path = Path(out) / f"{number:05d}.npy"
    if path.exists() and path.with_suffix(".labels").exists():
        return number
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(vae_folder).to(device).eval()
    scenes, parts = shard_scenes(number), []
    for i in range(0, SHARD, 50):
        x = to_tensor([render(s) for s in scenes[i : i + 50]]).to(device)
        parts.append(vae.encode(x).latent_dist.mode().half().cpu().numpy())
    # The latents last: they say that the shard is complete.
    write_array(Path(out) / f"{number:05d}.labels", label_maps(scenes))
    write_array(path, np.concatenate(parts))
    return number


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array so that an interruption leaves no half of one."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def normalise(vae_folder: Path, count: int = 256) -> None:
    """Move the mean of each latent channel to 0 and set `scaling_factor`, without changing a picture.

    The 1x1 convolutions next to the latents take up the shift.
    """
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    rng = random.Random(99)
    with torch.no_grad():
        x = to_tensor([render(random_scene(rng, held_out=False)) for _ in range(count)])
        z = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(32)])
        mean = z.mean(dim=(0, 2, 3))
        channels = mean.shape[0]
        vae.quant_conv.bias[:channels] -= mean
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
        scale = 1.0 / float((z - mean[None, :, None, None]).std())
    vae.register_to_config(scaling_factor=scale)
    vae.save_pretrained(vae_folder)


def main() -> None:
    """Encode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=RUNS / "vae")
    parser.add_argument("--out", type=Path, default=RUNS / "latents")
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if AutoencoderKL.load_config(arguments.vae)["scaling_factor"] == _UNSET:
        normalise(arguments.vae)
    arguments.out.mkdir(parents=True, exist_ok=True)
    numbers = range((arguments.scenes + SHARD - 1) // SHARD)
    if arguments.device != "cpu" or arguments.workers == 1:
        for number in numbers:
            encode_shard(number, str(arguments.vae), str(arguments.out), arguments.device)
        return
    with ProcessPoolExecutor(arguments.workers) as pool:
        futures = [pool.submit(encode_shard, n, str(arguments.vae), str(arguments.out), "cpu") for n in numbers]
        for future in futures:
            print(f"shard {future.result()} of {len(numbers)}", flush=True)


if __name__ == "__main__":
    main()
