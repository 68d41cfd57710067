"""Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl.families.unet import UNetFamily
from attnctl.hookspecs import hookimpl
from attnctl.text import TOKENS, Text

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.families.base import Family


class StableDiffusionXL(UNetFamily):
    """Two text encoders side by side, a pooled vector, and the picture's size (Podell et al., arXiv 2307.01952)."""

    name = "sdxl"
    summary = "Stable Diffusion XL: a larger UNet, two text encoders, told the picture's size."
    paper = "arXiv:2307.01952"
    pipelines: ClassVar[Mapping[str, str]] = {
        "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    }
    parts: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "text_encoder_2")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")
    additions: ClassVar[tuple[str | None, ...]] = ("text_time",)

    @classmethod
    def claims(cls, tensors: Collection[str]) -> bool:
        """A denoiser with a second text encoder."""
        unet = any(name.startswith("model.diffusion_model.") for name in tensors)
        return unet and any(name.startswith("conditioner.embedders.1.") for name in tensors)

    @classmethod
    def suits(cls, pipe: Any) -> bool:
        """A UNet, and two text encoders."""
        return getattr(pipe, "unet", None) is not None and hasattr(pipe, "text_encoder_2")

    def encode(self, prompt: str, *, unconditional: bool = False) -> Text:
        """Encode one prompt; an empty unconditional one is zeros where the checkpoint was trained so."""
        import torch

        embeds, _, pooled, _ = self.encoded(prompt)
        if unconditional and self._zeros(prompt):
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
        return Text(prompt, {TOKENS: embeds, "pooled": pooled})

    def same_text(self, prompt: str, unconditional: str) -> bool:
        """Equal words, unless the unconditional half gets zeros in their place."""
        return prompt == unconditional and not self._zeros(unconditional)

    def conditions(self, x: Tensor, texts: Sequence[Text]) -> dict[str, Tensor]:
        """The pooled vectors, and the picture's size as if nothing were cropped."""
        import torch

        factor = int(self.pipe.vae_scale_factor)
        size = (x.shape[-2] * factor, x.shape[-1] * factor)
        width = self.pipe.text_encoder_2.config.projection_dim
        ids = self.pipe._get_add_time_ids(size, (0, 0), size, dtype=x.dtype, text_encoder_projection_dim=width)
        return {
            "text_embeds": torch.cat([text.parts["pooled"] for text in texts]),
            "time_ids": ids.to(x.device).repeat(len(texts), 1),
        }

    def _zeros(self, prompt: str) -> bool:
        return not prompt and bool(self.pipe.config.get("force_zeros_for_empty_prompt"))


@hookimpl
def attnctl_families() -> list[type[Family]]:
    """Register Stable Diffusion XL."""
    return [StableDiffusionXL]
