"""What the training of ``micro`` knows besides pictures: which object is where.

A small head reads the objects' places from the UNet's features while it trains, and is dropped at export. The
denoising loss alone says little about outlines, because most of a picture is background; with the head objects take
shape much earlier (the idea of aligning features with a representation of the clean picture is REPA's, Yu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

from attnctl_evaluation.world import OBJECTS, Scene, object_mask

GRID = 16
"""Cells along a side: the latents' size."""

NUMBER = {name: i + 1 for i, name in enumerate(OBJECTS)}
"""The label of each object in label maps; 0 is none."""


def label_map(scene: Scene) -> np.ndarray:
    """Say which object fills most of each cell, uint8 (GRID, GRID); 0 is none, n the n-th of `OBJECTS`."""
    labels = np.zeros((GRID, GRID), np.uint8)
    best = np.full((GRID, GRID), 0.35)
    for index, thing in enumerate(scene.things):
        mask = object_mask(scene, index)
        side = mask.shape[0] // GRID
        share = mask.reshape(GRID, side, GRID, side).mean(axis=(1, 3))
        labels[share > best] = NUMBER[thing.object]
        best = np.maximum(best, share)
    return labels


def label_maps(scenes: Sequence[Scene]) -> np.ndarray:
    """Stack the label maps of scenes, uint8 (n, GRID, GRID)."""
    return np.stack([label_map(scene) for scene in scenes])


class OutlineHead(nn.Module):
    """Reads label maps from what a UNet's last but one block up gives, (B, C, GRID, GRID)."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        width = unet.config.block_out_channels[1]
        self.layers = nn.Sequential(
            nn.GroupNorm(4, width), nn.Conv2d(width, 64, 1), nn.SiLU(), nn.Conv2d(64, len(OBJECTS) + 1, 1)
        )
        self._features: torch.Tensor | None = None
        unet.up_blocks[2].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[object, ...], output: torch.Tensor) -> None:
        self._features = output

    def loss(self, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the last forward pass.

        Args:
            labels: (B, GRID, GRID), whole numbers.
            weight: (B,), how much each picture counts.
        """
        assert self._features is not None
        found, self._features = self.layers(self._features), None
        each = F.cross_entropy(found, labels, reduction="none").mean(dim=(1, 2))
        return (weight * each).sum() / weight.sum()
