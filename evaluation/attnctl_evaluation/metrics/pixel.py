"""Distances of pixels: PSNR, MSE and SSIM, of the whole picture or of a part."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from attnctl.hookspecs import hookimpl
from attnctl.metric import Metric, MetricCard, Score, finite
from attnctl_evaluation.metrics.common import PairMetric, RegionConfig, blackened, filled, imported, versions

if TYPE_CHECKING:
    from torch import Tensor

SSIM_SIDE = 6
"""Smallest side that SSIM's window of 11 pixels can be reflected over."""


def mean_square(edited: Tensor, other: Tensor, area: Tensor | None, masking: str) -> float:
    """Return the mean squared difference of two pictures, in float64.

    Args:
        edited: (3, H, W) in [0, 1].
        other: The same.
        area: Bool (H, W); None: everywhere.
        masking: ``pixels`` averages over the area, ``black`` over the whole frame with the rest black.
    """
    square = (edited.double() - other.double()).square()
    if area is None:
        return float(square.mean())
    if masking == "black":
        return float((square * area.to(square)).mean())
    return float(square[:, area.to(square.device)].mean())


def _preprocessing(config: Any) -> str:
    if config.region == "whole":
        return "pictures as they are, values in [0, 1]"
    if config.masking == "black":
        return (
            f"values in [0, 1]; everything but the part {config.region} the mask black in both, averaged over the frame"
        )
    return f"values in [0, 1]; averaged over the pixels {config.region} the mask, all others as in the other picture"


class MSE(PairMetric):
    """Mean squared difference of pixels."""

    name = "mse"
    summary = "Mean squared difference of pixel values in [0, 1]."
    better = "lower"
    needs = ("source",)

    def card(self) -> MetricCard:
        """Return the card."""
        return MetricCard(
            self.name, self.column, self.summary, "lower", 0.0, self.config.scale,
            preprocessing=_preprocessing(self.config), source="definition", scale=self.config.scale,
            degenerate="an empty part has no value", settings=self.config.model_dump(), packages=versions("torch"),
        )  # fmt: skip

    def compare(self, edited: Tensor, other: Tensor, area: Tensor | None) -> Score:
        """Return the scaled mean square."""
        return finite(self.config.scale * mean_square(edited, other, area, self.config.masking))


class PSNR(PairMetric):
    """Peak signal-to-noise ratio."""

    name = "psnr"
    summary = "Peak signal-to-noise ratio in dB, 10 log10(1 / mean squared difference)."
    better = "higher"
    needs = ("source",)

    class Config(RegionConfig):
        """Settings."""

        cap: float | None = Field(
            100.0, gt=0, description="Largest value in dB, which identical pictures get; none: they have no value."
        )

    def card(self) -> MetricCard:
        """Return the card."""
        cap = self.config.cap
        same = f"identical pictures get {cap:g} dB" if cap is not None else "identical pictures have no value"
        return MetricCard(
            self.name, self.column, self.summary, "higher", 0.0, cap and cap * self.config.scale, unit="dB",
            preprocessing=_preprocessing(self.config), source="definition, data range 1", scale=self.config.scale,
            degenerate=f"{same}; an empty part has no value", settings=self.config.model_dump(),
            packages=versions("torch"),
        )  # fmt: skip

    def compare(self, edited: Tensor, other: Tensor, area: Tensor | None) -> Score:
        """Return the ratio in dB."""
        square, cap = mean_square(edited, other, area, self.config.masking), self.config.cap
        if square == 0:
            return Score(None if cap is None else cap * self.config.scale, "identical pictures")
        if math.isnan(square):
            return finite(square)
        value = -10 * math.log10(square)
        return Score(self.config.scale * (value if cap is None else min(cap, value)))


class SSIM(PairMetric):
    """Structural similarity, torchmetrics' implementation."""

    name = "ssim"
    summary = "Structural similarity with a Gaussian window of sigma 1.5 (11 x 11)."
    paper = "Wang et al., IEEE TIP 13(4), 2004"
    better = "higher"
    needs = ("source",)

    def card(self) -> MetricCard:
        """Return the card.

        Raises:
            UnavailableError: torchmetrics is missing.
        """
        _ssim(self.column)
        return MetricCard(
            self.name, self.column, self.summary, "higher", -self.config.scale, self.config.scale,
            preprocessing=_preprocessing(self.config) + "; computed in float64",
            source="torchmetrics structural_similarity_index_measure, data range 1", scale=self.config.scale,
            degenerate=f"an empty part, or a side below {SSIM_SIDE} pixels, has no value",
            settings=self.config.model_dump(), packages=versions("torch", "torchmetrics"),
        )  # fmt: skip

    def compare(self, edited: Tensor, other: Tensor, area: Tensor | None) -> Score:
        """Return the mean of the similarity map over the part."""
        if min(edited.shape[-2:]) < SSIM_SIDE:
            return Score(None, f"a side is below {SSIM_SIDE} pixels")
        if self.config.masking == "black":
            edited, other = blackened(edited, area), blackened(other, area)
            area = None
        if area is not None:
            edited = filled(edited, other, area)
        # In float32 the variances of flat areas are rounding errors: identical drawings got 0.9997.
        pair = edited.double()[None], other.double()[None]
        _, full = _ssim(self.column)(*pair, data_range=1.0, return_full_image=True)
        value = full.mean() if area is None else full[0][:, area.to(full.device)].mean()
        return finite(self.config.scale * float(value))


def _ssim(column: str) -> Any:
    def load() -> Any:
        from torchmetrics.functional.image import structural_similarity_index_measure

        return structural_similarity_index_measure

    return imported(load, "torchmetrics", column)


@hookimpl
def attnctl_metrics() -> list[type[Metric]]:
    """Return the three."""
    return [MSE, PSNR, SSIM]
