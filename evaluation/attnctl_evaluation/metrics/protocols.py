"""Protocols: sets of columns under one name, with what is done to pictures before any of them is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from attnctl.errors import AttnctlError, InputError, unknown
from attnctl.metric import Metric, MetricCard, Sample, Score, UnavailableError

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.registry import Registry


@dataclass(frozen=True)
class Column:
    """One number of a protocol.

    Attributes:
        label: Heading.
        metric: Registered name.
        settings: Its settings.
    """

    label: str
    metric: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """A set of columns.

    Attributes:
        name: Its name with a version; what it gives never changes under one name.
        summary: One sentence.
        columns: The columns, in order.
        jpeg: Quality that the edited picture is written and read with as JPEG first; None: not at all.
        frame: Whether the mask's outermost ring of pixels is set first.
        notes: What a reader of its numbers should know.
    """

    name: str
    summary: str
    columns: tuple[Column, ...]
    jpeg: int | None = None
    frame: bool = False
    notes: tuple[str, ...] = ()

    def prepare(self, sample: Sample) -> Sample:
        """Return the sample as the protocol's metrics are to see it."""
        if self.jpeg is not None:
            sample = replace(sample, edited=through_jpeg(sample.edited, self.jpeg))
        if self.frame and sample.mask is not None:
            mask = sample.mask.bool().clone()
            mask[0], mask[-1], mask[:, 0], mask[:, -1] = True, True, True, True
            sample = replace(sample, mask=mask)
        return sample


def through_jpeg(picture: Tensor, quality: int) -> Tensor:
    """Return a picture (3, H, W) in [0, 1] as it comes back from a JPEG file (Pillow, 4:2:0)."""
    import io

    import numpy as np
    import torch
    from PIL import Image

    from attnctl.pictures import to_image

    buffer = io.BytesIO()
    to_image(picture.detach().cpu().float().numpy()).save(buffer, format="JPEG", quality=quality)
    levels = np.asarray(Image.open(buffer).convert("RGB"), dtype=np.float32)
    return (torch.from_numpy(levels.copy()).permute(2, 0, 1) / 255).to(picture)


_HF_LARGE = {"engine": "transformers", "model": "openai/clip-vit-large-patch14", "clamp": True}
_UNEDITED = {"region": "outside", "masking": "black"}
_MICRO = {"model": "micro"}

_ALL = (
    Protocol(
        "attnctl/v1",
        "What we would defend: preservation over the pixels outside the mask, editing by CLIP, structure by DINO.",
        (
            Column("clip-score", "clip-score"),
            Column("clip-score.inside", "clip-score", {"region": "inside"}),
            Column("clip-directional", "clip-directional"),
            Column("psnr.outside", "psnr", {"region": "outside"}),
            Column("ssim.outside", "ssim", {"region": "outside"}),
            Column("lpips.outside", "lpips", {"region": "outside"}),
            Column("lpips", "lpips"),
            Column("structure-distance", "structure-distance"),
        ),
        notes=("No picture is rewritten as JPEG, and no pixel inside the mask counts as unchanged.",),
    ),
    Protocol(
        "pie-bench/v1-official",
        "PIE-Bench as its authors' evaluation computes it (cure-lab/PnPInversion), what is odd in it included.",
        (
            Column(
                "structure-distance x1e3", "structure-distance", {"levels": "0-255", "antialias": False, "scale": 1e3}
            ),
            Column("psnr unedited", "psnr", {**_UNEDITED, "cap": None}),
            Column("lpips-squeeze x1e3 unedited", "lpips", {**_UNEDITED, "net": "squeeze", "scale": 1e3}),
            Column("mse x1e4 unedited", "mse", {**_UNEDITED, "scale": 1e4}),
            Column("ssim x1e2 unedited", "ssim", {**_UNEDITED, "scale": 1e2}),
            Column("clip whole", "clip-score", _HF_LARGE),
            Column("clip edited", "clip-score", {**_HF_LARGE, "region": "inside"}),
            Column("clip source", "clip-score", {**_HF_LARGE, "of": "source"}),
        ),
        jpeg=75,
        frame=True,
        notes=(
            "Meant for pictures of 512 x 512. Unedited parts are measured over the whole frame, the edited part black "
            "in both pictures, so PSNR and SSIM rise with the mask; structure distance is taken from levels up to 255.",
            "The authors crop the result from a JPEG strip; here the result alone goes through JPEG, so the colours of "
            "its leftmost pixels, which the strip's neighbour touches there, can differ.",
        ),
    ),
    Protocol(
        "fpe/v1",
        "CS and CDS as the FPE paper names them; it states no CLIP, so ViT-L/14 is used, which the cards say.",
        (Column("CS", "clip-score"), Column("CDS", "clip-directional")),
        notes=("CS = 100 cos(picture, target prompt); CDS = cos(change of picture, change of prompt).",),
    ),
    Protocol(
        "micro/v1",
        "The drawn world: ground truth, which only it has, beside the metrics that have to do without.",
        (
            Column("edited right", "attribute-accuracy", {"which": "edited"}),
            Column("kept right", "attribute-accuracy", {"which": "kept"}),
            Column("psnr.truth", "psnr", {"against": "truth"}),
            Column("lpips.truth", "lpips", {"against": "truth"}),
            Column("mask-iou", "mask-iou"),
            Column("leakage", "leakage"),
            Column("clip-score", "clip-score", _MICRO),
            Column("clip-directional", "clip-directional", _MICRO),
            Column("psnr.outside", "psnr", {"region": "outside"}),
            Column("ssim.outside", "ssim", {"region": "outside"}),
            Column("lpips.outside", "lpips", {"region": "outside"}),
            Column("psnr", "psnr"),
            Column("lpips", "lpips"),
        ),
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""Protocols by name."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Columns that are ready to measure.

    Attributes:
        metrics: Metrics by heading.
        cards: Their cards by heading.
        absent: Headings of columns that cannot be measured here, and the sentence that says why.
        protocols: Per heading, the protocol whose preparation its pictures get; None for single metrics.
    """

    metrics: Mapping[str, Metric]
    cards: Mapping[str, MetricCard]
    absent: Mapping[str, str]
    protocols: Mapping[str, Protocol | None]

    def score(self, sample: Sample) -> dict[str, Score]:
        """Measure every column of one edited picture; each picture is prepared once per protocol.

        A metric that raises has no value, and the error is the reason.

        Raises:
            PluginError: The sample's shapes do not fit together.
        """
        sample.check()
        prepared = {p.name: p.prepare(sample) for p in self.protocols.values() if p is not None}
        found = {}
        for label, metric in self.metrics.items():
            protocol = self.protocols[label]
            try:
                found[label] = metric.score([sample if protocol is None else prepared[protocol.name]])[0]
            except Exception as error:  # one metric's fault on one picture must not cost the other columns
                found[label] = Score(None, f"failed: {_first_line(error)}")
        return found


def build_panel(
    names: Sequence[str],
    registry: Registry,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "cpu",
) -> Panel:
    """Build columns from names, and load what they need.

    Args:
        names: Protocols, or single metrics as ``NAME``, ``NAME.inside``, ``NAME.outside`` and ``NAME.truth``.
        registry: Where metrics are.
        settings: Further settings by metric name, for example ``{"lpips": {"weights": "alexnet.pth"}}``. They win
            over a protocol's; where they change more than the place of weights, the card says so.
        device: Where networks run.

    Raises:
        AttnctlError: A name, setting, model or file does not exist, or two columns have the same heading. Weights and
            packages that are missing on this machine raise nothing: such columns are in `Panel.absent`.
    """
    wanted = [(column, protocol) for name in names for column, protocol in columns_of(name, registry)]
    metrics: dict[str, Metric] = {}
    cards: dict[str, MetricCard] = {}
    absent: dict[str, str] = {}
    protocols: dict[str, Protocol | None] = {}
    several = len([name for name in names if name in PROTOCOLS]) > 1
    for column, protocol in wanted:
        label = f"{protocol.name}: {column.label}" if several and protocol is not None else column.label
        if label in metrics or label in absent:
            raise InputError(f"the column {label!r} is asked for twice", hint="name it once; protocols hold several")
        further = (settings or {}).get(column.metric, {})
        metric = registry.make_metric(column.metric, {**column.settings, **further}, device=device)
        try:
            cards[label] = _card(metric.card(), label, protocol, _changes(column, further))
        except UnavailableError as error:
            absent[label] = f"{error.message}; {error.hint}" if error.hint else error.message
            continue
        except AttnctlError:
            raise
        except Exception as error:  # a stranger's metric may raise anything
            absent[label] = f"the metric {column.metric} is broken: {_first_line(error)}"
            continue
        metrics[label], protocols[label] = metric, protocol
    return Panel(metrics, cards, absent, protocols)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _changes(column: Column, further: Mapping[str, Any]) -> str:
    """Say which further settings make a protocol's column another number; empty where they only say where files are."""
    changed = {k: v for k, v in further.items() if k not in {"weights", "download"} and column.settings.get(k) != v}
    return ", ".join(f"{k}={v}" for k, v in changed.items())


def _card(card: MetricCard, label: str, protocol: Protocol | None, changes: str) -> MetricCard:
    """Return a metric's card under its heading, with what the protocol does to pictures before."""
    if protocol is None:
        return replace(card, column=label)
    steps = [f"edited picture through JPEG quality {protocol.jpeg}"] if protocol.jpeg is not None else []
    steps += ["outermost ring of pixels set in the mask"] if protocol.frame else []
    source = f"{card.source}; NOT as {protocol.name} has it: {changes}" if changes else card.source
    return replace(card, column=label, preprocessing="; ".join([*steps, card.preprocessing]), source=source)


def columns_of(name: str, registry: Registry) -> list[tuple[Column, Protocol | None]]:
    """Return the columns that one name stands for, and the protocol that they belong to; loads nothing.

    Raises:
        InputError: There is no such metric, protocol or variant.
    """
    if name in PROTOCOLS:
        return [(column, PROTOCOLS[name]) for column in PROTOCOLS[name].columns]
    metric, dot, variant = name.partition(".")
    if metric not in registry.metrics:
        raise unknown("metric or protocol", name, [*registry.metrics, *PROTOCOLS])
    if not dot:
        return [(Column(name, metric), None)]
    fields = registry.metrics[metric].Config.model_fields
    variants: dict[str, dict[str, Any]] = {}
    if "region" in fields:
        variants |= {part: {"region": part} for part in ("inside", "outside")}
    if "against" in fields:
        variants["truth"] = {"against": "truth"}
    variants |= {preset: dict(found.settings) for preset, found in registry.metrics[metric].presets.items()}
    if variant not in variants:
        raise unknown(f"variant of {metric}", variant, variants)
    return [(Column(name, metric, variants[variant]), None)]
