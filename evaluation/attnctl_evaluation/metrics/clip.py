"""CLIP score and CLIP directional similarity, with the CLIP that the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from attnctl.hookspecs import hookimpl
from attnctl.method import Preset
from attnctl.metric import Metric, MetricCard, Need, Sample, Score
from attnctl_evaluation.metrics.clip_models import Encoder, Engine, encoder
from attnctl_evaluation.metrics.common import (
    Region,
    ScaledConfig,
    blackened,
    empty_reason,
    region_of,
    region_suffix,
)

_PRESETS = {
    "micro": Preset({"model": "micro"}, "the small CLIP of the drawn world"),
    "hf-large": Preset(
        {"engine": "transformers", "model": "openai/clip-vit-large-patch14"},
        "ViT-L/14 as torchmetrics' CLIPScore loads it",
    ),
}

STILL = 1e-6
"""Length below which the difference of two unit embeddings counts as no direction."""


class ClipConfig(ScaledConfig):
    """Which CLIP."""

    engine: Engine = Field("open_clip", description="Package that the model comes from.")
    model: str = Field(
        "ViT-L-14",
        description="A model of open_clip, hf-hub:OWNER/NAME, a folder with open_clip_config.json, or micro; with "
        "engine=transformers a hub id or folder.",
    )
    pretrained: str = Field("openai", description="For a model of open_clip: its tag of weights, or a file of them.")
    download: bool = Field(False, description="Fetch the weights from the hub where they are not on this machine.")


class _ClipMetric(Metric):
    presets: ClassVar[Mapping[str, Preset]] = _PRESETS
    better = "higher"

    class Config(ClipConfig):
        """Settings."""

    def encoder(self) -> Encoder:
        """Return the CLIP that the settings name.

        Raises:
            UnavailableError: It is not on this machine.
        """
        config = self.config
        return encoder(config.engine, config.model, config.pretrained, config.download, self.device)

    def _card(self, low: float, high: float, preprocessing: str, source: str, degenerate: str) -> MetricCard:
        found = self.encoder()
        return MetricCard(
            self.name, self.column, self.summary, "higher", low, high, source=source,
            preprocessing=f"{preprocessing}{found.preprocessing}", model=found.model, weights=found.weights,
            weights_sha256=found.sha256, scale=self.config.scale, degenerate=degenerate,
            settings=self.config.model_dump(), packages=found.packages,
        )  # fmt: skip


class ClipScore(_ClipMetric):
    """How well the picture fits the target prompt."""

    name = "clip-score"
    summary = "Cosine of CLIP's embeddings of the picture and of the target prompt."
    paper = "arXiv:2104.08718"

    class Config(ClipConfig):
        """Settings."""

        scale: float = Field(100.0, gt=0, description="Factor that cosines are multiplied by.")
        clamp: bool = Field(False, description="Negative cosines count as 0, as in torchmetrics' CLIPScore.")
        region: Region = Field("whole", description="Part that is shown to CLIP; the rest is black.")
        of: Literal["edited", "source"] = Field(
            "edited", description="The edited picture with the target prompt, or the source with its own."
        )

    @property
    def column(self) -> str:
        """The name, with what is scored where it is not the whole edited picture."""
        return self.name + (".source" if self.config.of == "source" else "") + region_suffix(self.config.region)

    @property
    def required(self) -> tuple[Need, ...]:
        """The mask for a part; the source and its prompt where they are what is scored."""
        source: tuple[Need, ...] = ("source", "source prompt") if self.config.of == "source" else ()
        return (*source, *(() if self.config.region == "whole" else ("mask",)))

    def card(self) -> MetricCard:
        """Return the card.

        Raises:
            UnavailableError: The CLIP is not on this machine.
        """
        config = self.config
        part = "" if config.region == "whole" else f"black except {config.region} the mask, before all else; "
        low = 0.0 if config.clamp else -config.scale
        return self._card(
            low, config.scale, part, "arXiv:2104.08718 without its factor 2.5", "an empty part has no value"
        )

    def measure(self, sample: Sample) -> Score:
        """Return the scaled cosine."""
        area = region_of(sample, self.config.region)
        if area is not None and not bool(area.any()):
            return Score(None, empty_reason(self.config.region))
        picture, text = sample.edited, sample.prompt
        if self.config.of == "source":
            assert sample.source is not None
            picture, text = sample.source, sample.source_prompt or ""
        found = self.encoder()
        cosine = float(found.image(blackened(picture, area)) @ found.text(text))
        return Score(self.config.scale * (max(cosine, 0.0) if self.config.clamp else cosine))


class ClipDirectional(_ClipMetric):
    """Whether the picture changed in the direction in which the text did."""

    name = "clip-directional"
    summary = "Cosine of CLIP's change from source to edited picture and its change from source to target prompt."
    paper = "arXiv:2108.00946"
    needs = ("source", "source prompt")

    def card(self) -> MetricCard:
        """Return the card.

        Raises:
            UnavailableError: The CLIP is not on this machine.
        """
        return self._card(
            -self.config.scale,
            self.config.scale,
            preprocessing="",
            source="differences of unit embeddings, then their cosine (arXiv:2108.00946)",
            degenerate=f"a picture that does not move (change below {STILL:g}) gets 0; equal prompts have no value",
        )

    def measure(self, sample: Sample) -> Score:
        """Return the scaled cosine of both changes."""
        assert sample.source is not None
        found = self.encoder()
        said = found.text(sample.prompt) - found.text(sample.source_prompt or "")
        seen = found.image(sample.edited) - found.image(sample.source)
        if float(said.norm()) < STILL:
            return Score(None, "the prompts do not differ")
        if float(seen.norm()) < STILL:
            return Score(0.0, "the picture did not change")
        return Score(self.config.scale * float(said @ seen / (said.norm() * seen.norm())))


@hookimpl
def attnctl_metrics() -> list[type[Metric]]:
    """Return both."""
    return [ClipScore, ClipDirectional]
