"""What metrics share: settings for regions and scales, hashes of weights, versions of packages."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from attnctl.method import MethodConfig
from attnctl.metric import Metric, Need, Sample, Score, UnavailableError

if TYPE_CHECKING:
    from torch import Tensor, nn

Region = Literal["whole", "inside", "outside"]
T = TypeVar("T")

INSTALL = "pip install 'attnctl[eval]'"
"""What to do when a package of the evaluation is missing."""


class ScaledConfig(MethodConfig):
    """Settings of a metric whose tables show it multiplied by some power of ten."""

    scale: float = Field(
        1.0, gt=0, description="Factor that values are multiplied by, for example 1000 as in some tables."
    )


class RegionConfig(ScaledConfig):
    """Settings of a metric that compares two pictures, wholly or in a part."""

    region: Region = Field("whole", description="Part that is measured: all, inside the edit mask, or outside it.")
    masking: Literal["pixels", "black"] = Field(
        "pixels",
        description="How a part is measured: over its own pixels, or over the whole frame with the rest black in both. "
        "For the former, the rest of the edited picture is replaced by the other picture's, so that windows and "
        "networks, which see across the border, see no difference there.",
    )
    against: Literal["source", "truth"] = Field("source", description="Picture to compare with.")


class PairMetric(Metric):
    """A metric that compares the edited picture with another one."""

    class Config(RegionConfig):
        """Settings."""

    @property
    def column(self) -> str:
        """The name, with the reference and the part where they are not the usual ones."""
        return self.name + (".truth" if self.config.against == "truth" else "") + region_suffix(self.config.region)

    @property
    def required(self) -> tuple[Need, ...]:
        """The picture to compare with, and the mask where a part is measured."""
        return (self.config.against, *(() if self.config.region == "whole" else ("mask",)))

    def measure(self, sample: Sample) -> Score:
        """Compare the pictures, or say that the part is empty."""
        other = sample.source if self.config.against == "source" else sample.truth
        assert other is not None
        area = region_of(sample, self.config.region)
        if area is not None and not bool(area.any()):
            return Score(None, empty_reason(self.config.region))
        return self.compare(sample.edited.to(self.device), other.to(self.device), area)

    @abstractmethod
    def compare(self, edited: Tensor, other: Tensor, area: Tensor | None) -> Score:
        """Compare two pictures.

        Args:
            edited: (3, H, W) in [0, 1], on the metric's device.
            other: The same.
            area: Bool (H, W), true where they are compared, nowhere empty; None: everywhere.
        """


def region_suffix(region: Region) -> str:
    """Return what a column's heading adds for a part of the picture."""
    return "" if region == "whole" else f".{region}"


def region_of(sample: Sample, region: Region) -> Tensor | None:
    """Return the part to measure, bool (H, W); None for the whole picture."""
    if region == "whole":
        return None
    assert sample.mask is not None
    return sample.mask.bool() if region == "inside" else ~sample.mask.bool()


def empty_reason(region: Region) -> str:
    """Say why a part has no value."""
    return "empty mask" if region == "inside" else "nothing outside the mask"


def blackened(picture: Tensor, area: Tensor | None) -> Tensor:
    """Return the picture (3, H, W) with everything outside `area` black."""
    return picture if area is None else picture * area.to(picture)


def filled(edited: Tensor, other: Tensor, area: Tensor) -> Tensor:
    """Return the edited picture with everything outside `area` taken from the other one; both (3, H, W)."""
    import torch

    return torch.where(area.to(edited.device), edited, other)


def weights_hash(module: nn.Module) -> str:
    """Return a SHA-256 over all parameters and buffers, by name, type, shape and bytes: what really computes."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        held = value.detach().cpu().contiguous()
        digest.update(f"{name} {held.dtype} {tuple(held.shape)}\n".encode())
        digest.update(held.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions(*names: str) -> dict[str, str]:
    """Return the versions of installed distributions."""
    from attnctl.compat import installed_version

    return {name: installed_version(name) for name in names}


def imported(load: Callable[[], T], package: str, column: str) -> T:
    """Import a package that only some metrics need.

    Raises:
        UnavailableError: It is missing, or its import fails.
    """
    try:
        return load()
    except Exception as error:  # a torchvision for another torch raises RuntimeError
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"{column} needs the package {package}: {first}", hint=INSTALL) from error


def load_weights(path: Path, column: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a .pth file without running what is in it.

    Raises:
        UnavailableError: There is no such file, or it holds no state dict.
    """
    import torch
    from safetensors.torch import load_file

    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # every reader has its own errors
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(
            f"{column}: the weights {str(path)!r} cannot be read: {first}", hint="check the file"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise UnavailableError(f"{column}: {str(path)!r} holds no weights by name", hint="name a state dict's file")
    return found


def torch_hub_file(name: str) -> Path | None:
    """Return a checkpoint that torchvision or torch.hub has downloaded to this machine; None if it has not."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    return path if path.is_file() else None
