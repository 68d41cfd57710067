"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl.families.unet import UNetFamily
from attnctl.hookspecs import hookimpl
from attnctl.text import TOKENS, Text

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.families.base import Family


class StableDiffusion(UNetFamily):
    """One CLIP text encoder, 77 tokens (Rombach et al., CVPR 2022, arXiv 2112.10752)."""

    name = "sd"
    summary = "Stable Diffusion 1.x and 2.x: a UNet that predicts noise or v."
    paper = "arXiv:2112.10752"
    pipelines: ClassVar[Mapping[str, str]] = {
        "StableDiffusionPipeline": "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    }
    parts: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    load_options: ClassVar[Mapping[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    @classmethod
    def claims(cls, tensors: Collection[str]) -> bool:
        """A denoiser, and no second text encoder."""
        unet = any(name.startswith("model.diffusion_model.") for name in tensors)
        return unet and not any(name.startswith("conditioner.embedders.1.") for name in tensors)

    @classmethod
    def suits(cls, pipe: Any) -> bool:
        """A UNet, and one text encoder."""
        return getattr(pipe, "unet", None) is not None and not hasattr(pipe, "text_encoder_2")

    def encode(self, prompt: str, *, unconditional: bool = False) -> Text:
        """Encode one prompt."""
        embeds, _ = self.encoded(prompt)
        return Text(prompt, {TOKENS: embeds})

    def conditions(self, x: Tensor, texts: Sequence[Text]) -> dict[str, Tensor]:
        """Nothing else."""
        return {}


@hookimpl
def attnctl_families() -> list[type[Family]]:
    """Register Stable Diffusion 1.x and 2.x."""
    return [StableDiffusion]
