"""Parts that the training scripts of ``micro`` share: schedule, data, checkpoints and sheets."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnctl_evaluation.world import Scene, object_mask, random_scene, render

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "attnctl" / "models" / "micro"
RUNS = ROOT / "build" / "micro"


def device_of(name: str | None = None) -> torch.device:
    """Take the named device, else a GPU when there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


class Clock:
    """Progress of a run from 0 to 1, by steps or by wall-clock time, over interruptions.

    Args:
        steps: Number of steps, or None.
        minutes: Length in minutes, used when `steps` is None.
        spent: Seconds that earlier parts of a resumed run took.
    """

    def __init__(self, steps: int | None, minutes: float | None, spent: float = 0.0) -> None:
        if steps is None and minutes is None:
            raise ValueError("give --steps or --minutes")
        self.steps, self.minutes, self._start = steps, minutes, time.monotonic() - spent

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without its interruptions."""
        return time.monotonic() - self._start

    def progress(self, step: int) -> float:
        """Part of the run that is over, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, self.seconds / (60 * self.minutes))


def cosine(progress: float, step: int, *, warmup: int, hold: float = 0.0, floor: float = 0.01) -> float:
    """Factor of the learning rate: linear warm-up, a plateau until `hold`, then half a cosine.

    Args:
        progress: Part of the run that is over, from 0 to 1.
        step: Steps taken.
        warmup: Steps of warm-up.
        hold: Part of the run at full rate.
        floor: Factor at the end.
    """
    rest = max(0.0, (progress - hold) / (1 - hold))
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * rest)))


def to_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Stack RGB pictures as float32 (n, 3, height, width) in [-1, 1]."""
    array = np.stack([np.asarray(p) for p in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_batch(rng: random.Random, count: int) -> tuple[list[Scene], torch.Tensor]:
    """Draw `count` training scenes and their pictures."""
    scenes = [random_scene(rng, held_out=False) for _ in range(count)]
    return scenes, to_tensor([render(s) for s in scenes])


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that an interruption leaves the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def sheet(rows: Sequence[torch.Tensor], path: Path) -> None:
    """Write a picture of rows of pictures, each row (n, 3, h, w) in [-1, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
    array = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(array).save(path)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture; inputs (n, 3, h, w) in [-1, 1]."""
    error = ((a.clamp(-1, 1) - b.clamp(-1, 1)) ** 2).mean(dim=(1, 2, 3)) / 4
    return -10 * torch.log10(error.clamp_min(1e-10))


__all__ = [
    "MODEL", "ROOT", "RUNS", "Clock", "cosine", "device_of", "object_mask", "psnr", "save_checkpoint", "sheet",
    "to_tensor", "training_batch",
]  # fmt: skip
