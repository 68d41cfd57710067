"""What else the training of ``micro`` knows: which words speak of which object.

With two objects in a picture the denoising loss alone lets their colours and shapes mix for a long time. Two terms on
the cross-attention maps of the finer blocks up say where a word should be read, and whose words a cell should read
(grounding words in masks is TokenCompose's, Wang et al. 2024). The maps are explicit in training only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from outlines import NUMBER

from attnctl_evaluation.world import Scene
from attnctl_evaluation.world.captions import NAMES, PATTERN_WORDS


def owners(scene: Scene, words: list[str]) -> list[int]:
    """Say for each word which object it describes: its number in label maps, 0 for none or for both."""
    each = []
    for thing in scene.things:
        patterns = {w for p in PATTERN_WORDS.get(thing.pattern, ()) for w in p.split()} - {"with"}
        each.append({thing.colour, *NAMES[thing.object], *patterns})
    numbers = [NUMBER[thing.object] for thing in scene.things]
    found = []
    for word in words:
        of = [number for number, own in zip(numbers, each, strict=True) if word in own]
        found.append(of[0] if len(of) == 1 else 0)
    return found


class WordMaps:
    """Keeps the cross-attention maps of a UNet's two finest blocks up while it trains."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._maps: list[torch.Tensor] = []
        self._plain = AttnProcessor2_0()
        for block in unet.up_blocks[2:]:
            for transformer in block.attentions:
                transformer.transformer_blocks[0].attn2.set_processor(self)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross-attention over tokens, (B, N, C) to (B, N, C), with an explicit map in training."""
        if not attn.training:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        probs = (q @ k.transpose(-1, -2) * attn.scale).softmax(dim=-1)
        self._maps.append(probs.mean(dim=1))
        return attn.to_out[0]((probs @ v).transpose(1, 2).flatten(2))

    def loss(self, owner: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """How far the words of the last forward pass are from their objects.

        Args:
            owner: (B, M), the label of the object that a token describes, or 0.
            labels: (B, h, w), label maps.
            weight: (B,), how much each picture counts.

        Returns:
            The mean over maps of the share of a word's attention outside of its object, squared, plus the negative
            logarithm of the attention that an object's cell pays to its words.
        """
        full = ((labels[:, None] == owner[:, :, None, None]) & (owner > 0)[:, :, None, None]).float()
        total, maps = torch.zeros((), device=labels.device), self._maps
        self._maps = []
        for found in maps:
            side = int(found.shape[1] ** 0.5)
            mask = F.adaptive_max_pool2d(full, side).flatten(2).transpose(1, 2)
            shown = mask.amax(dim=1) * weight[:, None]
            share = (found * mask).sum(dim=1) / found.sum(dim=1).clamp(min=1e-6)
            outside = (shown * (1 - share).square()).sum() / shown.sum().clamp(min=1e-6)
            cells = mask.amax(dim=2) * weight[:, None]
            read = (found * mask).sum(dim=2).clamp(min=1e-4)
            total = total + outside - (cells * read.log()).sum() / cells.sum().clamp(min=1e-6)
        return total / len(maps)
