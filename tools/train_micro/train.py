"""Train ``micro`` from nothing: autoencoder, latents, UNet with text encoder, judge; then measure it.

One command, resumable: run it again with ``--resume`` after an interruption. With a GPU the defaults take
minutes; without one, hours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from common import MODEL, ROOT, RUNS

from attnctl_evaluation.judge import WEIGHTS

_HERE = Path(__file__).parent


def call(script: str, *arguments: object) -> None:
    """Run one of the scripts beside this one."""
    command = [sys.executable, str(_HERE / script), *map(str, arguments)]
    print("$", " ".join(command[1:]), flush=True)
    paths = [ROOT, ROOT / "plugins", ROOT / "evaluation", os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(p) for p in paths if str(p)),
        # glibc gives large blocks back after each use; keeping them saves a third of the time.
        "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    }
    subprocess.run(command, check=True, env=environment)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae-steps", type=int, default=12_000)
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--unet-steps", type=int, default=20_000, help="of 48 scenes")
    parser.add_argument("--judge-steps", type=int, default=1_300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--release", action="store_true", help=f"write to {MODEL.relative_to(ROOT)} and {WEIGHTS.name}")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    workers = 1 if cuda else max(1, min(4, os.cpu_count() or 1))
    resume = ("--resume",) if arguments.resume else ()
    common = ("--seed", arguments.seed, "--workers", workers, *resume)
    # Crops around objects first, whole pictures after: most of a picture is plain background.
    crops, whole = arguments.vae_steps // 2, arguments.vae_steps
    if not (RUNS / "latents").exists():
        call("train_vae.py", "--steps", crops, "--batch", 8 // workers or 1, *common)
        call("train_vae.py", "--steps", whole, "--crop", 128, "--batch", 4 // workers or 1, "--resume", *common)
    call("encode.py", "--scenes", arguments.scenes, "--workers", workers)
    call("train_unet.py", "--steps", arguments.unet_steps, "--batch", 48 // workers, *common)
    judge = WEIGHTS if arguments.release else RUNS / "judge.safetensors"
    call("train_judge.py", "--steps", arguments.judge_steps, "--seed", arguments.seed, "--out", judge)
    if arguments.release:
        call("release.py", "--out", MODEL)
        call("quality.py", "--model", MODEL)


if __name__ == "__main__":
    main()
