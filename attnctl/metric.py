"""Metrics as plugins: a number for an edited picture, and a card that says exactly which number it is."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attnctl.errors import AttnctlError, PluginError
from attnctl.plugin import Plugin, Settings

if TYPE_CHECKING:
    from torch import Tensor

Better = Literal["higher", "lower", "neither"]
Need = Literal["source", "source prompt", "mask", "truth", "facts"]


class UnavailableError(AttnctlError):
    """A metric lacks what it needs on this machine: weights or a package. The message says so in a sentence."""


@dataclass(frozen=True)
class Score:
    """What a metric says of one picture.

    Attributes:
        value: The number; None where there is none, never NaN or infinite.
        reason: Why there is no number, or by which convention a degenerate case got this one (``identical pictures``).
            Reports count each reason. Empty for an ordinary number.
    """

    value: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("a score without a value needs a reason")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a score must be a finite number, found {self.value}; use None and a reason")


@dataclass(frozen=True)
class MetricCard:
    """Which number a column holds, exactly; stored with every value and printed in reports.

    Attributes:
        name: The metric's registered name.
        column: Short heading, for example ``sharpness.outside``.
        summary: What the number means, in one sentence.
        model: Network behind it, exactly; empty if there is none.
        weights: Where that network's weights come from.
        weights_sha256: SHA-256 over all parameters as they are in memory; empty without a network.
        preprocessing: What happens to a picture before it is measured.
        scale: What the raw quantity is multiplied by.
        unit: Unit after scaling, for example ``dB``; empty for pure numbers.
        better: Which direction is better.
        low: Smallest possible value; None if there is none.
        high: Largest possible value; None if there is none.
        degenerate: What happens in degenerate cases.
        source: Paper or code that defines it.
        settings: The metric's full settings.
        packages: Versions of the packages that compute it.
    """

    name: str
    column: str
    summary: str
    better: Better
    low: float | None
    high: float | None
    preprocessing: str
    source: str
    model: str = ""
    weights: str = ""
    weights_sha256: str = ""
    scale: float = 1.0
    unit: str = ""
    degenerate: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name for this very number: the column and 8 hexadecimal digits over everything but package versions.

        Paths among the settings do not count where weights were loaded: the same weights elsewhere are the same metric.
        """
        counted = asdict(self)
        del counted["packages"], counted["column"]
        if self.weights_sha256:
            del counted["weights"]
            places = {"model", "pretrained", "weights", "download"}  # `model` and the hash of the weights say it better
            counted["settings"] = {k: v for k, v in self.settings.items() if k not in places}
        text = json.dumps(counted, sort_keys=True, ensure_ascii=False, default=str)
        return f"{self.column}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def as_dict(self) -> dict[str, Any]:
        """Return the card as plain data for JSON, its `id` included."""
        return {"id": self.id, **asdict(self)}


@dataclass(frozen=True, eq=False)
class Sample:
    """What a metric may see of one edited picture.

    Attributes:
        edited: The picture to judge, (3, H, W) float32 in [0, 1].
        prompt: Target prompt.
        source: The source picture, like `edited`.
        source_prompt: Source prompt.
        mask: Where the picture was to change, bool (H, W); None: unknown.
        truth: The exact edited picture, like `edited`; only drawn worlds have one.
        facts: What else the data set knows of the case; plain data.
    """

    edited: Tensor
    prompt: str
    source: Tensor | None = None
    source_prompt: str | None = None
    mask: Tensor | None = None
    truth: Tensor | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def lacks(self, needs: Sequence[Need]) -> str:
        """Return the first of `needs` that is missing, or an empty string."""
        have: dict[Need, object] = {
            "source": self.source,
            "source prompt": self.source_prompt,
            "mask": self.mask,
            "truth": self.truth,
            "facts": self.facts or None,
        }
        return next((need for need in needs if have[need] is None), "")

    def check(self) -> None:
        """Refuse pictures and masks whose shapes do not fit together.

        Raises:
            PluginError: They do not; whoever made the sample is at fault.
        """
        shape = tuple(self.edited.shape)
        if len(shape) != 3 or shape[0] != 3 or 0 in shape:
            raise PluginError(f"a picture to judge must have shape (3, H, W), found {shape}")
        for name, other in (("source", self.source), ("truth", self.truth)):
            if other is not None and tuple(other.shape) != shape:
                raise PluginError(f"the {name} picture has shape {tuple(other.shape)}, the edited one {shape}")
        if self.mask is not None and tuple(self.mask.shape) != shape[1:]:
            raise PluginError(f"the mask has shape {tuple(self.mask.shape)}, the edited picture {shape[1:]}")


class Metric(Plugin):
    """A plugin that judges pictures: one instance is one column.

    Every picture is measured alone, so the number of samples in a call never changes a value.

    Attributes:
        better: Which direction is better, for tables; the card says it for the instance.
        needs: What a sample must have, unless `required` says otherwise; a sample without gets
            ``Score(None, "no mask")``.
        device: Where networks run.
    """

    better: ClassVar[Better] = "neither"
    needs: ClassVar[tuple[Need, ...]] = ()

    def __init__(self, config: Settings | None = None, *, device: str = "cpu") -> None:
        super().__init__(config)
        self.device = device

    @property
    def column(self) -> str:
        """Heading of this instance's column; metrics with variants add to it."""
        return self.name

    @property
    def required(self) -> tuple[Need, ...]:
        """What this instance needs of a sample; by default `needs`."""
        return self.needs

    @abstractmethod
    def card(self) -> MetricCard:
        """Say which number this is; loads weights, if there are any.

        Raises:
            UnavailableError: Weights or a package are missing on this machine.
        """

    @abstractmethod
    def measure(self, sample: Sample) -> Score:
        """Judge one picture, whose shapes and `required` parts were checked.

        Raises:
            UnavailableError: See `card`.
        """

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Judge pictures, each on its own.

        Args:
            samples: Any number of them; sizes may differ from one to the next.

        Returns:
            One score per sample, in order.

        Raises:
            PluginError: A sample's shapes do not fit together.
            UnavailableError: See `card`.
        """
        found = []
        for sample in samples:
            sample.check()
            lacking = sample.lacks(self.required)
            found.append(Score(None, f"no {lacking}") if lacking else self.measure(sample))
        return found


def finite(value: float, reason: str = "not a finite number") -> Score:
    """Return a score for a computed number; NaN and infinity become None with a reason."""
    return Score(value) if math.isfinite(value) else Score(None, reason)
