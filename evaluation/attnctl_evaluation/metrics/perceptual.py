"""LPIPS (Zhang et al., arXiv 1801.03924) by the package of its authors, on trunks that the user has."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from attnctl.hookspecs import hookimpl
from attnctl.metric import Metric, MetricCard, Score, UnavailableError, finite
from attnctl_evaluation.metrics.common import (
    PairMetric,
    RegionConfig,
    blackened,
    filled,
    imported,
    load_weights,
    torch_hub_file,
    versions,
    weights_hash,
)

if TYPE_CHECKING:
    from torch import Tensor

TRUNKS: dict[str, tuple[str, str, str]] = {
    "alex": ("AlexNet", "alexnet-owt-7be5be79.pth", "alexnet"),
    "vgg": ("VGG16", "vgg16-397923af.pth", "vgg16"),
    "squeeze": ("SqueezeNet 1.1", "squeezenet1_1-b8a52dc0.pth", "squeezenet"),
}
"""Per trunk: its name, torchvision's file of ImageNet weights, and what a file's name holds in a folder of trunks."""

_BIBTEX = """\
@inproceedings{zhang2018unreasonable,
  title = {The Unreasonable Effectiveness of Deep Features as a Perceptual Metric},
  author = {Zhang, Richard and Isola, Phillip and Efros, Alexei A. and Shechtman, Eli and Wang, Oliver},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2018}
}"""


class LPIPS(PairMetric):
    """Learned perceptual distance, linear heads of version 0.1."""

    name = "lpips"
    summary = "Learned perceptual distance of two pictures (LPIPS 0.1)."
    paper, bibtex = "arXiv:1801.03924", _BIBTEX
    better = "lower"
    needs = ("source",)

    class Config(RegionConfig):
        """Settings."""

        net: Literal["alex", "vgg", "squeeze"] = Field("alex", description="The trunk.")
        weights: str = Field(
            "", description="File with torchvision's features of the trunk, or a folder of them; default: its cache."
        )
        download: bool = Field(False, description="Fetch torchvision's weights where they are not on this machine.")

    @property
    def column(self) -> str:
        """The name, with a trunk other than AlexNet, the reference and the part."""
        usual = super().column
        return usual if self.config.net == "alex" else usual.replace("lpips", f"lpips-{self.config.net}", 1)

    def card(self) -> MetricCard:
        """Return the card.

        Raises:
            UnavailableError: The package or the trunk's weights are missing.
        """
        _, origin, digest = self._net()
        config = self.config
        part = {
            "whole": "distances averaged over the picture",
            "pixels": f"distance map over the pixels {config.region} the mask, all others as in the other picture",
            "black": f"everything but the part {config.region} the mask black in both",
        }["whole" if config.region == "whole" else config.masking]
        return MetricCard(
            self.name, self.column, self.summary, "lower", 0.0, None,
            preprocessing=f"values mapped from [0, 1] to [-1, 1], no resizing; {part}",
            source="package lpips, version 0.1 of the linear heads", model=f"LPIPS on {TRUNKS[config.net][0]}",
            weights=origin, weights_sha256=digest, scale=config.scale,
            degenerate="an empty part has no value; a picture too small for the trunk has none",
            settings=config.model_dump(), packages=versions("torch", "lpips"),
        )  # fmt: skip

    def compare(self, edited: Tensor, other: Tensor, area: Tensor | None) -> Score:
        """Return the distance."""
        import torch

        net = self._net()[0]
        if min(edited.shape[-2:]) < 32:
            return Score(None, "a side is below 32 pixels")
        by_map = area is not None and self.config.masking == "pixels"
        if area is not None:
            dark = blackened(edited, area), blackened(other, area)
            edited, other = (filled(edited, other, area), other) if by_map else dark
        net.spatial = by_map
        with torch.no_grad():
            found = net(edited.float()[None], other.float()[None], normalize=True)
        value = found[0, 0].double()[area.to(found.device)].mean() if by_map and area is not None else found.double()
        return finite(self.config.scale * float(value))

    def _net(self) -> tuple[Any, str, str]:
        path, origin = _find(self.config.net, self.config.weights, self.config.download)
        return _load(self.config.net, path, origin, self.device)


def _find(net: str, given: str, download: bool) -> tuple[Path, str]:
    """Return the file with a trunk's weights, and what to call it.

    Raises:
        UnavailableError: It is not on this machine.
    """
    label, file, stem = TRUNKS[net]
    if given:
        path = Path(given).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if stem in p.name and p.suffix in {".safetensors", ".pth"})
            if not inside:
                raise UnavailableError(
                    f"LPIPS ({net}): no file in {given!r} has {stem} in its name", hint="name the file itself"
                )
            path = inside[0]
        if not path.is_file():
            raise UnavailableError(f"LPIPS ({net}): there is no file {given!r}", hint="check the path")
        return path, f"file {path.name}"
    cached = torch_hub_file(file)
    if cached is None and download:
        import torch

        try:
            torch.hub.load_state_dict_from_url(f"https://download.pytorch.org/models/{file}", progress=False)
        except Exception as error:  # urllib's, ssl's and the operating system's errors
            raise UnavailableError(
                f"LPIPS ({net}): {file} cannot be fetched: {error}", hint="check the network"
            ) from error
        cached = torch_hub_file(file)
    if cached is None:
        raise UnavailableError(
            f"LPIPS ({net}) needs torchvision's {label} weights, which are not on this machine",
            hint="name a file with --set lpips.weights=FILE, or allow the download with --set lpips.download=true",
        )
    return cached, f"torchvision {file}"


@lru_cache(maxsize=4)
def _load(net: str, path: Path, origin: str, device: str) -> tuple[Any, str, str]:
    """Return the network with the trunk's weights, where they come from, and the hash of all parameters.

    Raises:
        UnavailableError: The package is missing, or the file is another network's.
    """
    from attnctl.compat import guard_torchvision

    guard_torchvision()

    def load() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision by names that are going away
            import lpips

            return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)

    model = imported(load, "lpips", f"LPIPS ({net})")
    found = load_weights(path, f"LPIPS ({net})")
    wanted = model.net.state_dict()
    trunk = {}
    for name, value in wanted.items():
        key = "features." + name.partition(".")[2]  # slice2.3.weight was features.3.weight in torchvision's network
        if key not in found or found[key].shape != value.shape:
            raise UnavailableError(
                f"LPIPS ({net}): {path.name} has no {key} of shape {tuple(value.shape)}, so it is no {TRUNKS[net][0]}",
                hint=f"name torchvision's {TRUNKS[net][0]} weights",
            )
        trunk[name] = found[key].to(value.dtype)
    model.net.load_state_dict(trunk)
    model.requires_grad_(False).eval().to(device)
    return model, origin, weights_hash(model)


@hookimpl
def attnctl_metrics() -> list[type[Metric]]:
    """Return the metric."""
    return [LPIPS]
