"""A judge of pictures of the drawn world: which object, colour, pattern and background, and where.

It is a small convolutional network, trained on rendered scenes alone (``tools/train_micro/train_judge.py``),
never on generated pictures, so that it does not learn a generator's mistakes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from attnctl_evaluation.world.colours import COLOURS, NEIGHBOURS
from attnctl_evaluation.world.scene import BACKGROUNDS, OBJECTS, PATTERNS

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
SIDE = 64
"""Pictures are looked at in this size."""

_HEADS: dict[str, tuple[str, ...]] = {"object": OBJECTS, "colour": tuple(COLOURS), "pattern": PATTERNS}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the judge sees in one object.

    Attributes:
        object: A word of `OBJECTS`.
        colour: A word of `COLOURS`.
        pattern: A word of `PATTERNS`.
        confidence: Smallest of the three probabilities, from 0 to 1.
    """

    object: str
    colour: str
    pattern: str
    confidence: float

    def has_colour(self, word: str, *, tolerant: bool = False) -> bool:
        """Say whether the colour is `word`, or with `tolerant` one of the two nearest shades."""
        return self.colour == word or (tolerant and self.colour in NEIGHBOURS[word])


@dataclasses.dataclass(frozen=True)
class JudgeResult:
    """What the judge sees in a batch of pictures.

    Attributes:
        findings: For each picture its objects, the main one (in a pair, the left one) first.
        background: For each picture a word of `BACKGROUNDS`.
        masks: Where the first and the second object are, booleans of shape (n, 2, height, width).
    """

    findings: tuple[tuple[Finding, ...], ...]
    background: tuple[str, ...]
    masks: torch.Tensor

    @property
    def object(self) -> tuple[str, ...]:
        """The main object of each picture."""
        return tuple(f[0].object for f in self.findings)

    @property
    def colour(self) -> tuple[str, ...]:
        """The main object's colour."""
        return tuple(f[0].colour for f in self.findings)

    @property
    def pattern(self) -> tuple[str, ...]:
        """The main object's pattern."""
        return tuple(f[0].pattern for f in self.findings)

    @property
    def mask(self) -> torch.Tensor:
        """Where the main object is, booleans of shape (n, height, width)."""
        return self.masks[:, 0]


class _Block(nn.Sequential):
    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(inside, outside, 3, stride=stride, padding=1), nn.GroupNorm(4, outside), nn.SiLU())


class JudgeNet(nn.Module):
    """The judge's network: a small U-shaped trunk, and heads over what the masks cover."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = _Block(3, 24, stride=2)
        self.down1 = nn.Sequential(_Block(24, 48, stride=2), _Block(48, 48))
        self.down2 = nn.Sequential(_Block(48, 96, stride=2), _Block(96, 96))
        self.wide = nn.Linear(96, 96)
        self.up2 = _Block(96 + 48, 32)
        self.up1 = _Block(32 + 24, 24)
        self.segment = nn.Conv2d(24 + 3, 3, 3, padding=1)
        # A learned soft histogram of colours: pixels vote before they are averaged, so two tones stay two tones.
        self.tint = nn.Sequential(nn.Conv2d(3, 32, 1), nn.SiLU(), nn.Conv2d(32, 32, 1), nn.SiLU())
        width = 32 + 24 + 32 + 96
        self.heads = nn.ModuleDict(
            {k: nn.Sequential(nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, len(v))) for k, v in _HEADS.items()}
        )
        self.background = nn.Sequential(nn.Linear(96 + 32, 64), nn.SiLU(), nn.Linear(64, len(BACKGROUNDS)))

    def forward(
        self, x: torch.Tensor, masks: torch.Tensor | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Look at pictures.

        Args:
            x: Pictures (n, 3, 64, 64) in [0, 1].
            masks: Masks (n, 2, 64, 64) to look through, instead of the network's own.

        Returns:
            Logits ("object", "colour", "pattern": (n, 2, classes); "background": (n, 6)), and the logits of
            the masks, (n, 3, 64, 64): nothing, first object, second object.
        """
        x = x * 2 - 1
        e1 = self.enter(x)
        e2 = self.down1(e1)
        e3 = self.down2(e2)
        whole = e3.mean(dim=(2, 3))
        e3 = e3 + self.wide(whole)[:, :, None, None]
        d2 = self.up2(torch.cat([F.interpolate(e3, scale_factor=2), e2], dim=1))
        d1 = self.up1(torch.cat([F.interpolate(d2, scale_factor=2), e1], dim=1))
        fine = F.interpolate(d1, scale_factor=2, mode="bilinear")
        areas = self.segment(torch.cat([fine, x], dim=1))
        if masks is None:
            masks = areas.softmax(dim=1)[:, 1:].detach()
        tint = self.tint(x)
        pooled = [self._pool(f, masks) for f in (tint, d1, d2, e3)]
        seen = torch.cat(pooled, dim=-1)
        logits = {name: head(seen) for name, head in self.heads.items()}
        outside = self._pool(tint, 1 - masks.sum(dim=1, keepdim=True).clamp(max=1))[:, 0]
        logits["background"] = self.background(torch.cat([whole, outside], dim=-1))
        return logits, areas

    @staticmethod
    def _pool(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Average features (n, c, h, w) under masks (n, m, 64, 64); gives (n, m, c)."""
        if features.shape[-1] != masks.shape[-1]:
            masks = F.interpolate(masks, size=features.shape[-2:], mode="area")
        total = masks.sum(dim=(2, 3)).clamp_min(1e-3)
        return torch.einsum("nchw,nmhw->nmc", features, masks) / total[..., None]


class Judge:
    """The trained judge; see `Judge.load`."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval()

    @classmethod
    def load(cls, path: Path = WEIGHTS, device: str = "cpu") -> Judge:
        """Load the judge.

        Args:
            path: Its weights; the ones in the package by default.
            device: Where it computes.
        """
        from safetensors.torch import load_file

        net = JudgeNet()
        net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        return cls(net.to(device))

    @torch.no_grad()
    def judge(self, images: torch.Tensor) -> JudgeResult:
        """Look at pictures.

        Args:
            images: Pictures, shape (n, 3, height, width), values from 0 to 1.

        Returns:
            Objects, colours, patterns, backgrounds and masks in the pictures' size.

        Raises:
            ValueError: The shape is another.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"the judge takes pictures of shape (n, 3, height, width), not {tuple(images.shape)}")
        device = next(self.net.parameters()).device
        x = images.detach().to(device, torch.float32).clamp(0, 1)
        logits, areas = self.net(F.interpolate(x, size=(SIDE, SIDE), mode="area"))
        full = F.interpolate(areas, size=images.shape[-2:], mode="bilinear").argmax(dim=1)
        masks = torch.stack([full == 1, full == 2], dim=1).cpu()
        sure = {name: logits[name].softmax(dim=-1).max(dim=-1) for name in _HEADS}
        findings = []
        for i in range(len(images)):
            # A second object smaller than 1 % of the picture is a stray pixel, not an object.
            count = 2 if masks[i, 1].float().mean() > 0.01 else 1
            findings.append(
                tuple(
                    Finding(
                        **{name: words[int(sure[name].indices[i, j])] for name, words in _HEADS.items()},
                        confidence=float(min(sure[name].values[i, j] for name in _HEADS)),
                    )
                    for j in range(count)
                )
            )
        background = tuple(BACKGROUNDS[int(b)] for b in logits["background"].argmax(dim=-1))
        return JudgeResult(tuple(findings), background, masks)
