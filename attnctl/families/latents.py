"""Latents of families whose autoencoder is diffusers' `AutoencoderKL`: their shape, the way to pictures and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnctl.errors import InputError, ModelError

AUTOENCODERS = ("AsymmetricAutoencoderKL", "AutoencoderKL", "AutoencoderTiny")
"""Classes of diffusers whose latents are read here as their pipelines read them."""


def check_latents(vae: Any) -> None:
    """Refuse an autoencoder whose latents could only be guessed at.

    Raises:
        ModelError: It is of another class, or its configuration does not say how latents are normalised.
    """
    kind, config = type(vae).__name__, vae.config
    if kind not in AUTOENCODERS:
        raise ModelError(
            f"the model's autoencoder is a {kind}; known are {', '.join(AUTOENCODERS)}",
            hint="use the autoencoder that the model was trained with",
        )
    scale, channels = config.get("scaling_factor"), int(config.latent_channels)
    if not _number(scale) or scale == 0:
        raise ModelError(f"the autoencoder's scaling_factor is {scale!r}, expected a number", hint=_MEND)
    if not _number(config.get("shift_factor") or 0):
        raise ModelError(f"the autoencoder's shift_factor is {config.shift_factor!r}, expected a number", hint=_MEND)
    given = {name: config.get(name) for name in ("latents_mean", "latents_std")}
    for name, values in given.items():
        if values is None and any(v is not None for v in given.values()):
            raise ModelError(f"the autoencoder has no {name} beside the other of mean and deviation", hint=_MEND)
        fits = values is None or (isinstance(values, list | tuple) and len(values) == channels)
        if not fits or not all(_number(v) and (v > 0 or name == "latents_mean") for v in values or ()):
            raise ModelError(
                f"the autoencoder's {name} is {values!r}, expected {channels} numbers"
                f"{'' if name == 'latents_mean' else ' above 0'}",
                hint=_MEND,
            )


_MEND = "mend vae/config.json, or download the model again"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
            found = vae.encode(pixels[None].to(vae.device, dtype))
        mean = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
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
