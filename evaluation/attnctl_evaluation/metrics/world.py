"""Ground truth of the drawn world: what a judge, trained on exact drawings alone, sees in an edited picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from attnctl.hookspecs import hookimpl
from attnctl.method import MethodConfig, Preset
from attnctl.metric import Metric, MetricCard, Need, Sample, Score, UnavailableError, finite
from attnctl_evaluation.metrics.common import ScaledConfig, versions, weights_hash

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl_evaluation.judge import Judge, JudgeResult
    from attnctl_evaluation.world import Scene

OVERLAP = 0.5
"""Intersection over union from which an object counts as being in its place; one that moved or grew must also overlap
more with its new outline than with its old one."""

GROWTH = 1.1
"""Ratio of areas from which an object counts as having grown, where its exact place is unknown."""


class _WorldMetric(Metric):
    needs: ClassVar[tuple[Need, ...]] = ("source", "facts")

    def judge(self) -> Judge:
        """Return the judge.

        Raises:
            UnavailableError: Its weights are not in this installation.
        """
        return _judge(self.device)[0]

    def look(self, picture: Tensor) -> JudgeResult:
        """Let the judge look at one picture (3, H, W)."""
        return self.judge().judge(picture[None])

    def _card(self, low: float, high: float, preprocessing: str, source: str, degenerate: str) -> MetricCard:
        _, digest = _judge(self.device)
        return MetricCard(
            self.name, self.column, self.summary, self.better, low, high, source=source, preprocessing=preprocessing,
            model="the drawn world's judge (attnctl_evaluation.judge)", weights="in the package", weights_sha256=digest,
            scale=getattr(self.config, "scale", 1.0), degenerate=degenerate, settings=self.config.model_dump(),
            packages=versions("torch"),
        )  # fmt: skip


@lru_cache(maxsize=2)
def _judge(device: str) -> tuple[Judge, str]:
    from attnctl_evaluation.judge import WEIGHTS, Judge

    if not WEIGHTS.is_file():
        raise UnavailableError(
            "the drawn world's judge is not in this installation", hint="it is trained with tools/train_micro"
        )
    found = Judge.load(device=device)
    return found, weights_hash(found.net)


def _scenes(facts: Mapping[str, Any]) -> tuple[Scene, Scene] | None:
    """Return the scenes before and after; None where the facts are not the drawn world's."""
    from attnctl_evaluation.datasets.microbench import scene_of

    if facts.get("world") != "micro":
        return None
    return scene_of(facts["before"]), scene_of(facts["after"])


_NOT_OURS = Score(None, "not of the drawn world")


class AttributeAccuracy(_WorldMetric):
    """Share of attributes that came out as the exact edit has them."""

    name = "attribute-accuracy"
    summary = "Share of attributes (object, colour, pattern, place, background, count) that are as in the exact edit."
    better = "higher"
    presets: ClassVar[Mapping[str, Preset]] = {
        "edited": Preset({"which": "edited"}, "only what the edit was to change: did it work?"),
        "kept": Preset({"which": "kept"}, "only what it was to keep: did it leave the rest alone?"),
    }

    class Config(MethodConfig):
        """Settings."""

        which: Literal["all", "edited", "kept"] = Field("all", description="Attributes that are looked at.")
        tolerant: bool = Field(False, description="Accept the two nearest shades of a colour.")

    @property
    def column(self) -> str:
        """The name, with which attributes where it is not all of them."""
        return self.name + ("" if self.config.which == "all" else f".{self.config.which}")

    def card(self) -> MetricCard:
        """Return the card.

        Raises:
            UnavailableError: The judge's weights are missing.
        """
        return self._card(
            0.0,
            1.0,
            preprocessing="area average to 64 x 64",
            source=f"judge's words against the exact scene's; a place is right from an overlap of {OVERLAP:g}",
            degenerate="a case with no such attribute has no value",
        )

    def measure(self, sample: Sample) -> Score:
        """Return the share."""
        scenes = _scenes(sample.facts)
        if scenes is None:
            return _NOT_OURS
        edited = set(sample.facts["edited"])
        which = self.config.which
        found = [
            right
            for name, right in self._answers(sample, *scenes)
            if which == "all" or (name in edited) == (which == "edited")
        ]
        return finite(sum(found) / len(found)) if found else Score(None, f"no {which} attribute to look at")

    def _answers(self, sample: Sample, before: Scene, after: Scene) -> Iterator[tuple[str, bool]]:
        """Yield each attribute of the exact edit and whether the picture has it."""
        seen = self.look(sample.edited)
        findings = seen.findings[0]
        yield "background", seen.background[0] == after.background
        yield "count", len(findings) == len(after.things)
        matched = _matched(after, seen.masks[0, : len(findings)])
        for i, thing in enumerate(after.things):
            at = matched[i]
            there = findings[at] if at is not None else None
            yield f"{i}.object", there is not None and there.object == thing.object
            right_colour = there is not None and there.has_colour(thing.colour, tolerant=self.config.tolerant)
            yield f"{i}.colour", right_colour
            yield f"{i}.pattern", there is not None and there.pattern == thing.pattern
            mask = seen.masks[0, at] if at is not None else seen.masks.new_zeros(seen.masks.shape[-2:])
            place = self._in_place(sample, before, after, i, mask)
            if place is not None:
                yield f"{i}.place", there is not None and place

    def _in_place(self, sample: Sample, before: Scene, after: Scene, index: int, mask: Tensor) -> bool | None:
        """Say whether a thing is where it belongs; None where nobody can tell.

        That is so for a thing that becomes another object, of another outline, and for a new one beside a generated
        source, whose exact edit is unknown.
        """
        if f"{index}.object" in sample.facts["edited"]:
            return None
        old = {new: was for was, new in sample.facts["things"]}.get(index)
        if sample.truth is not None:
            there = _overlap(mask, _exact(after, index, mask))
            moved = f"{index}.place" in sample.facts["edited"] and old is not None
            return there >= OVERLAP and not (moved and there <= _overlap(mask, _exact(before, old or 0, mask)))
        if old is None or sample.source is None:
            return None
        was = self.look(sample.source).masks[0, old]
        if f"{index}.place" not in sample.facts["edited"]:
            return _overlap(mask, was) >= OVERLAP
        first, second = before.things[old], after.things[index]
        if first.size != second.size:
            ratio = float(mask.sum()) / max(1.0, float(was.sum()))
            return ratio > GROWTH if second.size > first.size else ratio < 1 / GROWTH
        return bool(mask.any()) and abs(_middle(mask) - second.x) < abs(_middle(mask) - first.x)


def _matched(scene: Scene, masks: Tensor) -> list[int | None]:
    """Say which of the seen objects stands for which thing.

    As many as there should be are taken in order, the left one first; of another number, each thing takes the one whose
    middle is nearest, and no two things the same one.

    Args:
        scene: The exact scene.
        masks: Bool (n, H, W), n seen objects.
    """
    if len(masks) == len(scene.things):
        return list(range(len(masks)))
    pairs = sorted(
        (abs(_middle(mask) - thing.x), i, j)
        for i, thing in enumerate(scene.things)
        for j, mask in enumerate(masks)
        if bool(mask.any())
    )
    found: list[int | None] = [None] * len(scene.things)
    for _, i, j in pairs:
        if found[i] is None and j not in found:
            found[i] = j
    return found


def _exact(scene: Scene, index: int, like: Tensor) -> Tensor:
    """Return where a thing is drawn, bool in the shape of `like`, a square."""
    import torch

    from attnctl_evaluation.world import object_mask

    return torch.from_numpy(object_mask(scene, index, like.shape[-1]).copy())


def _overlap(first: Tensor, second: Tensor) -> float:
    """Return the intersection over union of two masks; two empty ones have 0."""
    return float((first & second).sum()) / max(1.0, float((first | second).sum()))


def _middle(mask: Tensor) -> float:
    """Return the mean horizontal position of a mask's pixels, as a fraction of the width."""
    return float((mask.nonzero()[:, 1].double().mean() + 0.5) / mask.shape[1])


class MaskIoU(_WorldMetric):
    """How well the objects lie where the exact edit draws them."""

    name = "mask-iou"
    summary = "Intersection over union of all objects as the judge sees them and as the exact edit draws them."
    better = "higher"
    needs = ("truth", "facts")

    def card(self) -> MetricCard:
        """Return the card.

        Raises:
            UnavailableError: The judge's weights are missing.
        """
        return self._card(
            0.0,
            1.0,
            preprocessing="area average to 64 x 64; masks back to the picture's size, bilinear",
            source="objects of both scenes together, their outlines included",
            degenerate="a picture without objects gets 0; generated sources have no exact edit and no value",
        )

    def measure(self, sample: Sample) -> Score:
        """Return the overlap."""
        scenes = _scenes(sample.facts)
        if scenes is None:
            return _NOT_OURS
        seen = self.look(sample.edited).masks[0].any(dim=0)
        if seen.shape[0] != seen.shape[1]:
            return Score(None, "the picture is not square")
        exact = seen.new_zeros(seen.shape)
        for index in range(len(scenes[1].things)):
            exact |= _exact(scenes[1], index, seen)
        return finite(_overlap(seen, exact))


class Leakage(_WorldMetric):
    """How much an edit of one object changed another one."""

    name = "leakage"
    summary = "Mean absolute change of pixels of the object that was not to be edited."
    better = "lower"

    class Config(ScaledConfig):
        """Settings."""

        scale: float = Field(255.0, gt=0, description="Factor that values are multiplied by; 255 gives 8-bit levels.")

    def card(self) -> MetricCard:
        """Return the card.

        Raises:
            UnavailableError: The judge's weights are missing.
        """
        return self._card(
            0.0,
            self.config.scale,
            preprocessing="values in [0, 1]; pixels of the other object in the source, exact ones or, where the source "
            "is generated, the judge's; without those of the edit mask",
            source="mean absolute difference of edited and source picture",
            degenerate="a case without another object has no value",
        )

    def measure(self, sample: Sample) -> Score:
        """Return the mean change."""
        scenes = _scenes(sample.facts)
        if scenes is None:
            return _NOT_OURS
        assert sample.source is not None
        touched = {name.partition(".")[0] for name in sample.facts["edited"]}
        others = [was for was, new in sample.facts["things"] if str(new) not in touched]
        if "background" in touched or not others:
            return Score(None, "no other object")
        area = sample.edited.new_zeros(sample.edited.shape[1:]).bool().cpu()
        seen = self.look(sample.source).masks[0] if sample.truth is None else None
        for index in others:
            area |= seen[index] if seen is not None else _exact(scenes[0], index, area)
        if sample.mask is not None:
            area &= ~sample.mask.bool().cpu()
        if not bool(area.any()):
            return Score(None, "nothing of the other object outside the mask")
        change = (sample.edited - sample.source).abs().cpu().double()
        return finite(self.config.scale * float(change[:, area].mean()))


@hookimpl
def attnctl_metrics() -> list[type[Metric]]:
    """Return the three; PSNR and the others against the exact picture are those metrics with ``against=truth``."""
    return [AttributeAccuracy, MaskIoU, Leakage]
