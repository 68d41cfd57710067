"""A diffusion model as the engine sees it: text in, noise predictions out, pictures to latents and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnctl.errors import InputError, ModelError
from attnctl.sites import Site, enumerate_sites


@dataclass(frozen=True, eq=False)
class TextEncoding:
    """One encoded prompt.

    Attributes:
        prompt: The text.
        embeds: Token embeddings, (1, M, C').
        pooled: Pooled embedding of SDXL's second encoder, (1, C''); None elsewhere.
        images: Embedding of the image prompts that go with it, one per loaded IP-Adapter; empty without one.
    """

    prompt: str
    embeds: Tensor
    pooled: Tensor | None = None
    images: tuple[Tensor, ...] = ()

    def same_as(self, other: TextEncoding) -> bool:
        """Whether both condition the denoiser alike, to the bit."""
        if self.pooled is not None and other.pooled is not None and not torch.equal(self.pooled, other.pooled):
            return False
        pictures = zip(self.images, other.images, strict=True)
        if self.images is not other.images and not all(torch.equal(a, b) for a, b in pictures):
            return False
        return self.embeds.shape == other.embeds.shape and torch.equal(self.embeds, other.embeds)


@dataclass(eq=False)
class Model:
    """A Stable-Diffusion-shaped pipeline taken apart.

    Attributes:
        pipe: The diffusers pipeline whose parts are used; its ``__call__`` never is.
        name: What the user asked for: ``micro``, a hub id, a folder or a file.
        revision: Hub revision, if one was asked for.
        folder: Local folder with the weights, where known.
        family: ``sd`` or ``sdxl``.
        image_prompts: With an IP-Adapter loaded, what ``pipe.prepare_ip_adapter_image_embeds`` returns under guidance:
            per adapter a tensor whose first row belongs to the unconditional half and whose second to the conditional.
    """

    pipe: Any
    name: str
    revision: str | None = None
    folder: Path | None = None
    family: str = "sd"
    image_prompts: Sequence[Tensor] = ()
    _encodings: dict[tuple[str, bool], TextEncoding] = field(default_factory=dict, repr=False)

    @property
    def unet(self) -> Any:
        """The denoiser."""
        return self.pipe.unet

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs, offloading considered."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's floating-point type."""
        return self.unet.dtype  # type: ignore[no-any-return]

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """All hook points in execution order."""
        return enumerate_sites(self.unet)

    @property
    def vae_scale(self) -> int:
        """Picture side divided by latent side."""
        return int(self.pipe.vae_scale_factor)

    @property
    def latent_channels(self) -> int:
        """Channels C of the latents."""
        return int(self.unet.config.in_channels)

    @property
    def default_size(self) -> tuple[int, int]:
        """Picture (height, width) that the model was trained at."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale, width * self.vae_scale

    @property
    def prediction(self) -> str:
        """What the denoiser predicts: ``epsilon`` or ``v_prediction``."""
        return str(self.pipe.scheduler.config.get("prediction_type", "epsilon"))

    @property
    def text_length(self) -> int:
        """Number of text tokens M."""
        return int(self.pipe.tokenizer.model_max_length)

    def latent_size(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Turn a picture (height, width) into latent (h, w); None means the default size.

        Raises:
            InputError: A side is not a positive multiple of `vae_scale`; the hint names the nearest size that is.
        """
        height, width = size or self.default_size
        f = self.vae_scale
        if height < f or width < f or height % f or width % f:
            near = tuple(max(f, round(side / f) * f) for side in (height, width))
            raise InputError(
                f"this model's pictures need sides that are multiples of {f}, found {height}x{width}",
                hint=f"the nearest size that fits is {near[0]}x{near[1]}",
            )
        return height // f, width // f

    def cut_text(self, prompt: str) -> str:
        """Return the end of a prompt that does not fit into the model's tokens; empty when all fits."""
        ids = self.pipe.tokenizer(prompt, truncation=False, padding=False, verbose=False).input_ids
        keep = self.text_length - 1  # the last place belongs to the end token
        if len(ids) <= self.text_length:
            return ""
        return str(self.pipe.tokenizer.decode(ids[keep:-1])).strip()

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the prompt's words that a model with a closed vocabulary never saw; empty for open ones."""
        known = self._vocabulary
        if known is None:
            return []
        words = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
        return [w for w in dict.fromkeys(words) if w not in known]

    @cached_property
    def _vocabulary(self) -> frozenset[str] | None:
        path = self.folder / "words.json" if self.folder else None
        if path is None or not path.is_file():
            return None
        return frozenset(json.loads(path.read_text(encoding="utf-8")))

    @torch.no_grad()
    def encode_text(self, prompt: str, *, unconditional: bool = False) -> TextEncoding:
        """Encode one prompt alone, so that its numbers do not depend on what else is encoded. Kept until `forget`.

        Args:
            prompt: The text.
            unconditional: Whether it is for the unconditional half: an empty text is then what the checkpoint was
                trained with (zeros for most SDXL models), and image prompts are the unconditional ones.
        """
        key = (prompt, unconditional)
        if key not in self._encodings:
            images = tuple(e[0:1] if unconditional else e[1:2] for e in self.image_prompts)
            if self.family == "sdxl":
                embeds, _, pooled, _ = self.pipe.encode_prompt(
                    prompt, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
                )
                if unconditional and not prompt and self.pipe.config.get("force_zeros_for_empty_prompt"):
                    embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
                self._encodings[key] = TextEncoding(prompt, embeds, pooled, images)
            else:
                embeds, _ = self.pipe.encode_prompt(prompt, self.device, 1, False)
                self._encodings[key] = TextEncoding(prompt, embeds, None, images)
        return self._encodings[key]

    def forget(self) -> None:
        """Drop kept encodings; adapters that were loaded since may have changed the text encoder."""
        self._encodings.clear()

    def predict(self, x: Tensor, timestep: int | float, texts: Sequence[TextEncoding]) -> Tensor:
        """Run the denoiser.

        Args:
            x: Latents, (B, C, h, w).
            timestep: Training timestep t.
            texts: One encoding per row.

        Returns:
            Noise or v prediction, (B, C, h, w).
        """
        embeds = torch.cat([t.embeds for t in texts])
        extra: dict[str, Any] = {}
        if self.family == "sdxl":
            extra["text_embeds"] = torch.cat([t.pooled for t in texts if t.pooled is not None])
            extra["time_ids"] = self._time_ids(x).repeat(len(texts), 1)
        if getattr(self.unet, "encoder_hid_proj", None) is not None:
            if not all(t.images for t in texts):
                raise ModelError(
                    "the model has an IP-Adapter, but there are no image prompts",
                    hint="set Model.image_prompts (pipe.prepare_ip_adapter_image_embeds), or pipe.unload_ip_adapter()",
                )
            extra["image_embeds"] = [torch.cat(parts) for parts in zip(*(t.images for t in texts), strict=True)]
        given = {"added_cond_kwargs": extra} if extra else {}
        t = torch.tensor(timestep, device=x.device)
        return self.unet(x, t, encoder_hidden_states=embeds, return_dict=False, **given)[0]  # type: ignore[no-any-return]

    def _time_ids(self, x: Tensor) -> Tensor:
        size = (x.shape[-2] * self.vae_scale, x.shape[-1] * self.vae_scale)
        width = self.pipe.text_encoder_2.config.projection_dim
        ids = self.pipe._get_add_time_ids(size, (0, 0), size, dtype=x.dtype, text_encoder_projection_dim=width)
        return ids.to(x.device)  # type: ignore[no-any-return]

    def initial_noise(self, seed: int, latent_size: tuple[int, int]) -> Tensor:
        """Draw unit noise (1, C, h, w) on the CPU in float32, alike on every device, then move it."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((1, self.latent_channels, *latent_size), generator=generator, dtype=torch.float32)
        return noise.to(self.device, self.dtype)

    @torch.no_grad()
    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Encode pixels (3, H, W) in [-1, 1] to the posterior MEAN, scaled: (1, C, h, w)."""
        vae = self.pipe.vae
        with _vae_precision(vae) as dtype:
            mean = vae.encode(pixels[None].to(vae.device, dtype)).latent_dist.mean
        return (mean * vae.config.scaling_factor).to(self.device, self.dtype)  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode_latents(self, x: Tensor) -> Tensor:
        """Decode latents (1, C, h, w) to pixels (3, H, W) in [0, 1], float32 on the CPU."""
        vae = self.pipe.vae
        with _vae_precision(vae) as dtype:
            pixels = vae.decode((x / vae.config.scaling_factor).to(vae.device, dtype), return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)[0].float().cpu()  # type: ignore[no-any-return]


class _vae_precision:  # noqa: N801  (reads as a verb in a with statement)
    """Some checkpoints' VAE overflows in float16 and says so (`force_upcast`): run it in float32 for a moment."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.upcast = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast", False))

    def __enter__(self) -> torch.dtype:
        if self.upcast:
            self.vae.to(torch.float32)
        return self.vae.dtype  # type: ignore[no-any-return]

    def __exit__(self, *_: object) -> None:
        if self.upcast:
            self.vae.to(torch.float16)


def check_supported(pipe: Any, name: str) -> str:
    """Return the family of a loaded pipeline, ``sd`` or ``sdxl``.

    Raises:
        ModelError: The denoiser takes inputs that this engine does not give (inpainting masks, distilled guidance).
    """
    config = pipe.unet.config
    if config.in_channels != pipe.vae.config.latent_channels:
        raise ModelError(
            f"{name} has a denoiser with {config.in_channels} input channels for "
            f"{pipe.vae.config.latent_channels} latent channels: an inpainting or instruction model",
            hint="use a text-to-image checkpoint",
        )
    if config.get("time_cond_proj_dim") is not None:
        raise ModelError(f"{name} is a guidance-distilled model (LCM)", hint="use the model that it was distilled from")
    return "sdxl" if hasattr(pipe, "text_encoder_2") else "sd"
