"""Structure distance: how DINO's key self-similarities differ between two pictures (Splice, arXiv 2201.00424)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from attnctl.hookspecs import hookimpl
from attnctl.metric import Metric, MetricCard, Need, Sample, Score, UnavailableError, finite
from attnctl_evaluation.metrics.common import (
    ScaledConfig,
    imported,
    load_weights,
    torch_hub_file,
    versions,
    weights_hash,
)

if TYPE_CHECKING:
    from torch import Tensor

HUB_FILES = {
    "vit_base_patch8_224.dino": "dino_vitbase8_pretrain.pth",
    "vit_base_patch16_224.dino": "dino_vitbase16_pretrain.pth",
    "vit_small_patch8_224.dino": "dino_deitsmall8_pretrain.pth",
    "vit_small_patch16_224.dino": "dino_deitsmall16_pretrain.pth",
}
"""timm's names of DINO's networks, and the files that `facebookresearch/dino` gives out, in torch.hub's cache."""

MAX_SIDE = 480
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class StructureDistance(Metric):
    """Mean squared difference of the two pictures' key self-similarities."""

    name = "structure-distance"
    summary = "Difference in structure: squared difference of DINO key self-similarities of source and result."
    paper = "arXiv:2201.00424"
    better = "lower"
    needs = ("source",)

    class Config(ScaledConfig):
        """Settings."""

        model: str = Field("vit_base_patch8_224.dino", description="A vision transformer by its name in timm.")
        weights: str = Field("", description="File with its weights; default: the caches of torch.hub and of the hub.")
        levels: Literal["0-1", "0-255"] = Field(
            "0-1",
            description="Range of values before ImageNet's normalisation; PIE-Bench's code has 0-255, by mistake.",
        )
        antialias: bool = Field(
            True, description="Smooth before shrinking; torchvision 0.13, which PIE-Bench used, did not."
        )
        size: int = Field(224, ge=16, le=1024, description="Length of the shorter side, in pixels.")
        against: Literal["source", "truth"] = Field("source", description="Picture to compare with.")
        download: bool = Field(False, description="Fetch the weights from the hub where they are not on this machine.")

    @property
    def column(self) -> str:
        """The name, with the reference where it is not the source."""
        return self.name + (".truth" if self.config.against == "truth" else "")

    @property
    def required(self) -> tuple[Need, ...]:
        """The picture to compare with."""
        return (self.config.against,)

    def card(self) -> MetricCard:
        """Return the card.

        Raises:
            UnavailableError: timm or the weights are missing.
        """
        config = self.config
        _, origin, digest = self._net()
        smooth = "with" if config.antialias else "without"
        return MetricCard(
            self.name, self.column, self.summary, "lower", 0.0, 4 * config.scale,
            preprocessing=f"values {config.levels}, shorter side to {config.size} (longer at most {MAX_SIDE}) bilinear "
            f"{smooth} antialiasing, minus ImageNet's mean, over its standard deviation",
            source="keys of the last block, heads joined, all tokens; cosine similarities; mean squared difference "
            "(PnPInversion evaluation/matrics_calculator.py)",
            model=f"timm {config.model}", weights=origin, weights_sha256=digest, scale=config.scale,
            degenerate="identical pictures get 0", settings=config.model_dump(), packages=versions("torch", "timm"),
        )  # fmt: skip

    def measure(self, sample: Sample) -> Score:
        """Return the distance."""
        other = sample.source if self.config.against == "source" else sample.truth
        assert other is not None
        first, second = (self._similarity(p.to(self.device)) for p in (sample.edited, other))
        return finite(self.config.scale * float((first - second).square().mean()))

    def _similarity(self, picture: Tensor) -> Tensor:
        """Return the cosine similarities (N, N) of the keys of a picture (3, H, W), in float64."""
        import torch

        net = self._net()[0]
        pixels = self._prepare(picture.float(), net.patch_embed.patch_size)
        caught: list[Tensor] = []
        hook = net.blocks[-1].attn.qkv.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
        try:
            with torch.no_grad():
                net.forward_features(pixels)
        finally:
            hook.remove()
        width = caught[0].shape[-1] // 3
        keys = caught[0][0, :, width : 2 * width].double()  # the layer's output is queries, keys, values, heads joined
        norms = keys.norm(dim=1, keepdim=True)
        similarity: Tensor = (keys @ keys.T) / (norms @ norms.T).clamp_min(1e-8)
        return similarity

    def _prepare(self, picture: Tensor, patch: tuple[int, int]) -> Tensor:
        import torch
        import torch.nn.functional as F

        height, width = picture.shape[-2:]
        short, long = self.config.size, int(self.config.size * max(height, width) / min(height, width))
        if long > MAX_SIDE:
            short, long = int(MAX_SIDE * short / long), MAX_SIDE
        size = (short, long) if height <= width else (long, short)
        pixels = picture[None] * (255.0 if self.config.levels == "0-255" else 1.0)
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=self.config.antialias)
        # A convolution with the patch's stride leaves out what does not fill a patch; timm wants that done before.
        pixels = pixels[..., : size[0] // patch[0] * patch[0], : size[1] // patch[1] * patch[1]]
        mean, std = (torch.tensor(v, device=pixels.device)[None, :, None, None] for v in (_MEAN, _STD))
        return torch.as_tensor((pixels - mean) / std)

    def _net(self) -> tuple[Any, str, str]:
        return _load(self.config.model, self.config.weights, self.config.download, self.device)


@lru_cache(maxsize=2)
def _load(model: str, weights: str, download: bool, device: str) -> tuple[Any, str, str]:
    """Return the network, where its weights come from, and their hash.

    Raises:
        UnavailableError: timm, the network or its weights are missing.
    """
    from attnctl.compat import guard_torchvision

    guard_torchvision()

    def load() -> Any:
        import timm

        return timm

    timm = imported(load, "timm", "structure-distance")
    if not timm.is_model(model.partition(".")[0]):
        raise UnavailableError(
            f"structure-distance: timm knows no model {model!r}", hint="see timm.list_models('*dino*')"
        )
    path, origin = _find(model, weights)
    if path is None and not download:
        raise UnavailableError(
            f"structure-distance needs the weights of {model}, which are not on this machine",
            hint="name a file with --set structure-distance.weights=FILE, or allow the download with "
            "--set structure-distance.download=true",
        )
    try:
        net = timm.create_model(model, pretrained=path is None, num_classes=0, dynamic_img_size=True)
    except Exception as error:  # the hub's, the operating system's and timm's own errors
        raise UnavailableError(
            f"structure-distance: {model} cannot be made: {error}", hint="check the network"
        ) from error
    if path is not None:
        found = {k: v for k, v in load_weights(path, "structure-distance").items() if not k.startswith("head.")}
        try:
            net.load_state_dict(found)
        except RuntimeError as error:
            line = str(error).splitlines()[-1].strip()
            raise UnavailableError(
                f"structure-distance: {path.name} is not {model}: {line}", hint="check both"
            ) from error
    if not hasattr(net, "blocks"):
        raise UnavailableError(f"structure-distance: {model} is no vision transformer", hint="name a vit_ model")
    net.requires_grad_(False).eval().to(device)
    return net, origin, weights_hash(net)


def _find(model: str, given: str) -> tuple[Path | None, str]:
    """Return a file with weights on this machine, if there is one, and what to call it."""
    from attnctl.families.hubcache import hub_snapshot

    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UnavailableError(f"structure-distance: there is no file {given!r}", hint="check the path")
        return path, f"file {path.name}"
    released = torch_hub_file(HUB_FILES[model]) if model in HUB_FILES else None
    if released is not None:
        return released, f"torch.hub facebookresearch/dino {released.name}"
    snapshot = hub_snapshot(f"timm/{model}")
    if snapshot is not None and (snapshot / "model.safetensors").is_file():
        return snapshot / "model.safetensors", f"hub timm/{model} at {snapshot.name}"
    return None, f"hub timm/{model}"


@hookimpl
def attnctl_metrics() -> list[type[Metric]]:
    """Return the metric."""
    return [StructureDistance]
