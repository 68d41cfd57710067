"""A diffusion model as the engine sees it: a pipeline, and the family that knows how to use its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnctl.budget import check_picture_size, check_steps
from attnctl.errors import ModelError
from attnctl.families.base import Family
from attnctl.families.finding import family_named, family_of
from attnctl.files import read_json, shown
from attnctl.text import Text

if TYPE_CHECKING:
    from attnctl.families.latents import Latents
    from attnctl.sampling import Schedule
    from attnctl.sites import Site
    from attnctl.tokens import PromptTokens


@dataclass(eq=False)
class Model:
    """A pipeline taken apart.

    Attributes:
        pipe: The diffusers pipeline whose parts are used; its ``__call__`` never is.
        name: What the user asked for: ``micro``, a hub id, a folder or a file.
        revision: Hub revision, if one was asked for.
        folder: Local folder with the weights, where known.
        family: Name of the family that it belongs to.
        image_prompts: With an IP-Adapter loaded, what ``pipe.prepare_ip_adapter_image_embeds`` returns under guidance:
            per adapter a tensor whose first row belongs to the unconditional half and whose second to the conditional.
        notes: What a user should know about how it was loaded; every run's warnings begin with them.
    """

    pipe: Any
    name: str
    revision: str | None = None
    folder: Path | None = None
    family: str = "sd"
    image_prompts: Sequence[Tensor] = ()
    notes: tuple[str, ...] = ()
    _encodings: dict[tuple[str, bool], Text] = field(default_factory=dict, repr=False)
    _sites: tuple[nn.Module, tuple[Site, ...]] | None = field(default=None, repr=False)

    @cached_property
    def adapter(self) -> Family:
        """The family, around this pipeline."""
        return family_named(self.family)(self.pipe, self.name)

    @property
    def denoiser(self) -> Any:
        """The network that is controlled."""
        return self.adapter.denoiser

    @property
    def unet(self) -> Any:
        """The denoiser, by the name that it has in the first families."""
        return self.denoiser

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs, offloading considered; the CPU where only the structure was loaded."""
        found = torch.device(self.pipe._execution_device)
        return torch.device("cpu") if found.type == "meta" else found

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's floating-point type."""
        return self.denoiser.dtype  # type: ignore[no-any-return]

    @property
    def sites(self) -> tuple[Site, ...]:
        """All hook points in execution order."""
        if self._sites is None or self._sites[0] is not self.denoiser:
            self._sites = self.denoiser, self.adapter.sites()
        return self._sites[1]

    @property
    def latents(self) -> Latents:
        """What the latents are, and how pictures become latents and back."""
        return self.adapter.latents

    @property
    def vae_scale(self) -> int:
        """Picture side divided by latent side."""
        return self.latents.factor

    @property
    def latent_channels(self) -> int:
        """Channels C of the latents."""
        return self.latents.channels

    @property
    def default_size(self) -> tuple[int, int]:
        """Picture (height, width) that the model was trained at."""
        return self.latents.default_size

    @property
    def prediction(self) -> str:
        """What the denoiser predicts, for example ``epsilon`` or ``v_prediction``."""
        return self.adapter.prediction

    @property
    def text_length(self) -> int:
        """Number of text tokens M."""
        return self.adapter.text_length

    def latent_size(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Turn a picture (height, width) into latent (h, w); None means the default size.

        Raises:
            InputError: A side does not fit; the hint names the nearest size that does.
        """
        check_picture_size(size or self.default_size)
        return self.latents.size(size)

    def schedule(self, name: str, steps: int, latent_size: tuple[int, int] | None = None, seed: int = 0) -> Schedule:
        """Build a schedule, see `attnctl.families.base.Family.schedule`."""
        check_steps(steps)
        return self.adapter.schedule(name, steps, latent_size or self.latent_size(), seed)

    def tokens(self, prompt: str, *, published: bool = False) -> PromptTokens:
        """Cut a prompt into words and tokens."""
        return self.adapter.tokens(prompt, published=published)

    def cut_text(self, prompt: str) -> str:
        """Return the end of a prompt that does not fit into the model's tokens; empty when all fits."""
        return self.adapter.cut_text(prompt)

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
        words = read_json(path)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ModelError(f"{shown(path)} is no list of words", hint="mend it, or take it away")
        return frozenset(words)

    @torch.no_grad()
    def encode_text(self, prompt: str, *, unconditional: bool = False) -> Text:
        """Encode one prompt alone, so that its numbers do not depend on what else is encoded. Kept until `forget`.

        Args:
            prompt: The text.
            unconditional: Whether it is for the unconditional half: an empty text is then what the checkpoint was
                trained with (zeros for most SDXL models), and image prompts are the unconditional ones.
        """
        key = (prompt, unconditional)
        if key not in self._encodings:
            images = tuple(e[0:1] if unconditional else e[1:2] for e in self.image_prompts)
            text = self.adapter.encode(prompt, unconditional=unconditional)
            self._encodings[key] = replace(text, images=images)
        return self._encodings[key]

    def same_text(self, prompt: str, unconditional: str) -> bool:
        """Whether a prompt and an unconditional text condition the denoiser alike, told without encoding them."""
        return not self.image_prompts and self.adapter.same_text(prompt, unconditional)

    def forget(self) -> None:
        """Drop kept encodings; adapters that were loaded since may have changed the text encoder."""
        self._encodings.clear()

    def predict(
        self,
        x: Tensor,
        timestep: float | Sequence[float],
        texts: Sequence[Text],
        guides: Sequence[float | None] | None = None,
    ) -> Tensor:
        """Run the denoiser.

        Args:
            x: Latents, (B, C, h, w).
            timestep: What the denoiser is told of the time: one number, or one per row.
            texts: One encoding per row.
            guides: Guidance number that a distilled denoiser is told, per row; None: it takes none.

        Returns:
            The denoiser's output, (B, C, h, w).
        """
        told = timestep if isinstance(timestep, Sequence) else [timestep] * len(texts)
        return self.adapter.predict(x, told, texts, [None] * len(texts) if guides is None else guides)

    def initial_noise(self, seed: int, latent_size: tuple[int, int]) -> Tensor:
        """Draw unit noise (1, C, h, w) on the CPU in float32, alike on every device, then move it."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((1, self.latent_channels, *latent_size), generator=generator, dtype=torch.float32)
        return noise.to(self.device, self.dtype)

    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Encode pixels (3, H, W) in [-1, 1] to the posterior MEAN, scaled: (1, C, h, w)."""
        return self.latents.encode(pixels).to(self.device, self.dtype)

    def decode_latents(self, x: Tensor) -> Tensor:
        """Decode latents (1, C, h, w) to pixels (3, H, W) in [0, 1], float32 on the CPU."""
        return self.latents.decode(x)


def check_supported(pipe: Any, name: str) -> str:
    """Return the name of the family that a loaded pipeline belongs to.

    Raises:
        ModelError: No family knows it, or its denoiser takes inputs that this engine does not give (inpainting masks,
            distilled guidance), or its schedule is of another kind.
    """
    kind = family_of(pipe, name)
    kind(pipe, name).check()
    return kind.name
