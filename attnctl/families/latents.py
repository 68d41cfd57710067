"""Latents of families whose autoencoder is diffusers' `AutoencoderKL`: their shape, the way to pictures and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnctl.errors import InputError


@dataclass(frozen=True, eq=False)
class Latents:
    """What latents are, and how pictures become latents and back, as the autoencoder's configuration says.

    A latent is ``(z - shift) * scale`` of the autoencoder's z, or with a mean and a deviation per channel
    ``(z - mean) * scale / deviation``.

    Attributes:
        vae: The autoencoder.
        channels: Number of channels C.
        factor: Picture side divided by latent side.
        multiple: What a picture's sides must be multiples of.
        default_size: Picture (height, width) that the model was trained at.
        limit: Largest picture side that the denoiser has positions for; None: no such limit.
    """

    vae: Any
    channels: int
    factor: int
    multiple: int
    default_size: tuple[int, int]
    limit: int | None = None

    def size(self, picture: tuple[int, int] | None = None) -> tuple[int, int]:
        """Turn a picture (height, width) into latent (h, w); None means the default size.

        Raises:
            InputError: A side is not a positive multiple of `multiple`, or is too long; the hint names the nearest
                size that is allowed.
        """
        height, width = picture or self.default_size
        m, top = self.multiple, self.limit
        long = top is not None and max(height, width) > top
        if min(height, width) < m or height % m or width % m or long:
            near = tuple(min(max(m, round(side / m) * m), (top or 10**9) // m * m) for side in (height, width))
            raise InputError(
                f"this model's pictures need sides that are multiples of {m}{f' of at most {top}' if long else ''}, "
                f"found {height}x{width}",
                hint=f"the nearest size that fits is {near[0]}x{near[1]}",
            )
        return height // self.factor, width // self.factor

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (3, H, W) in [-1, 1] to the posterior MEAN as latents (1, C, h, w)."""
        vae = self.vae
        with _Precision(vae) as dtype:
            mean = vae.encode(pixels[None].to(vae.device, dtype)).latent_dist.mean
        config = vae.config
        if (shift := config.get("shift_factor")) is not None:
            mean = mean - shift
        if (known := self._per_channel(mean)) is not None:
            return (mean - known[0]) * config.scaling_factor / known[1]  # type: ignore[no-any-return]
        return mean * config.scaling_factor  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Decode latents (1, C, h, w) to pixels (3, H, W) in [0, 1], float32 on the CPU."""
        vae, config = self.vae, self.vae.config
        if (known := self._per_channel(x)) is not None:
            x = x * known[1] / config.scaling_factor + known[0]
        else:
            x = x / config.scaling_factor
        if (shift := config.get("shift_factor")) is not None:
            x = x + shift
        with _Precision(vae) as dtype:
            pixels = vae.decode(x.to(vae.device, dtype), return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)[0].float().cpu()  # type: ignore[no-any-return]

    def _per_channel(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation, each (1, C, 1, 1), of an autoencoder whose configuration has them."""
        mean, deviation = self.vae.config.get("latents_mean"), self.vae.config.get("latents_std")
        if mean is None or deviation is None:
            return None
        return tuple(torch.tensor(v).view(1, -1, 1, 1).to(like) for v in (mean, deviation))  # type: ignore[return-value]


class _Precision:
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
