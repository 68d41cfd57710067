"""Running inversions: look for a kept trajectory, else make it; sample it back, and say how good it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnctl.cache import TrajectoryCache, trajectory_key
from attnctl.engine.lanes import Lane
from attnctl.engine.loop import Engine
from attnctl.engine.rows import Rows
from attnctl.errors import InputError
from attnctl.events import Event, Inverted, Progress, Warned
from attnctl.inversion import InversionCall, Trajectory
from attnctl.result import InversionReport

if TYPE_CHECKING:
    from attnctl.inversion import Inversion, InversionSpec
    from attnctl.model import Model
    from attnctl.registry import Registry
    from attnctl.sampling import Path

PSNR_WARNING = 20.0
"""Reconstruction PSNR in dB below which an inversion is called poor: edits then start from another picture."""


@dataclass(frozen=True, eq=False)
class SourceInversion:
    """One finished inversion.

    Attributes:
        trajectory: What was found.
        report: How good it is.
        reconstruction: Sampled back without an edit, (3, H, W) in [0, 1]; None if that was not asked for.
        rows: Denoiser rows by stage; of what was kept on disk, the rows that it once took.
        seconds: Wall-clock seconds by stage.
        cached: Whether it was found on disk rather than computed.
    """

    trajectory: Trajectory
    report: InversionReport
    reconstruction: Tensor | None
    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cached: bool = False


@dataclass
class Inverter:
    """Inverts one picture in the ways that its lanes ask for, each way once.

    Attributes:
        model: The model.
        registry: Where inversions are looked up.
        grid: The schedule of the sampling that will follow.
        x0: Clean latents, (1, C, h, w).
        pixels: The picture (3, H, W) in [-1, 1]; None compares with the decoded latents.
        seed: Seed for inversions that draw noise.
        check: Whether to sample back and measure.
        cache: Where trajectories are kept; None keeps none.
        on_event: Told about progress, quality and warnings.
    """

    model: Model
    registry: Registry
    grid: Path
    x0: Tensor
    pixels: Tensor | None
    seed: int = 0
    check: bool = True
    cache: TrajectoryCache | None = None
    on_event: Callable[[Event], None] = lambda event: None
    _made: dict[Any, SourceInversion] = field(default_factory=dict, repr=False)

    def invert(self, lane: Lane, spec: InversionSpec) -> SourceInversion:
        """Invert for a source lane; a second lane that wants the same gets the same, at no cost.

        Args:
            lane: The source lane: its texts and its guidance scale.
            spec: Which inversion, under which text, with which settings.

        Raises:
            AttnctlError: The inversion refuses, or its settings are wrong.
        """
        own = (lane.prompt, lane.uncond.prompt, lane.guidance)
        wanted = (spec, own if self.registry.make_inversion(spec).reads_lane else None)
        if wanted not in self._made:
            self._made[wanted] = self._invert(lane, spec)
            found = self._made[wanted]
        else:
            first = self._made[wanted]
            report = replace(first.report, lane=lane.name)
            found = SourceInversion(first.trajectory, report, first.reconstruction, cached=first.cached)
        self.on_event(Inverted(found.report, found.reconstruction, found.cached))
        fault = _poor(found.report.psnr, found.report.vae_psnr)
        if fault:
            self.on_event(Warned(fault))
        return found

    def _invert(self, lane: Lane, spec: InversionSpec) -> SourceInversion:
        inversion = self.registry.make_inversion(spec)
        if inversion.paths and self.grid.name not in inversion.paths:
            raise InputError(
                f"{spec.name} climbs {' and '.join(inversion.paths)} schedules alone, and this model has "
                f"{self.grid.name}",
                hint="use another --inversion",
            )
        call = InversionCall(
            self.model,
            self.grid,
            self.x0,
            self.model.encode_text(spec.prompt),
            lane.cond,
            lane.uncond,
            lane.guidance.scale,
            self.seed,
            lambda done, total: self.on_event(Progress("inversion", done, total)),
        )
        began = time.perf_counter()
        key = trajectory_key(inversion, call) if self.cache is not None else None
        kept = self.cache.get(key, self.model.device, call) if self.cache is not None and key is not None else None
        trajectory = inversion.invert(call) if kept is None else kept.trajectory
        latents = None if kept is None else kept.reconstruction
        rows = {"inversion": trajectory.denoiser_rows}
        seconds = {"inversion": time.perf_counter() - began}
        if self.check:
            began = time.perf_counter()
            count = len(self.grid.timesteps)
            back = {"reconstruction": self._way_back(trajectory, inversion, lane)}
            engine = Engine(self.model, self.grid, back)
            rows["reconstruction"] = Rows.of(back, (), keep_source=False).count(engine.steps)
            if latents is None:
                engine.run(lambda step: self.on_event(Progress("reconstruction", step.index + 1, count)))
                latents = back["reconstruction"].latents
            seconds["reconstruction"] = time.perf_counter() - began
        if self.cache is not None and key is not None and (kept is None or kept.reconstruction is None):
            fault = self.cache.put(key, trajectory, latents, inversion)
            if fault:
                self.on_event(Warned(f"the inversion is not kept for another time: {fault}"))
        picture = None if latents is None or not self.check else self.model.decode_latents(latents)
        settings = inversion.config.model_dump(mode="json")
        report = self._measure(InversionReport(lane.name, spec.name, spec.prompt, None, None, settings), picture)
        return SourceInversion(trajectory, report, picture, rows, seconds, kept is not None)

    def _way_back(self, trajectory: Trajectory, inversion: Inversion, source: Lane) -> Lane:
        """Return a lane that samples back without an edit.

        An inversion that corrects guidance, or that kept noises or offsets, is sampled with guidance; a plain one
        without. One that puts its source back on the path needs no denoiser at all.
        """
        corrects = trajectory.uncond or trajectory.noises is not None or trajectory.offsets is not None
        lane = Lane(
            "reconstruction",
            trajectory.prompt,
            self.model.encode_text(trajectory.prompt),
            source.uncond,
            source.guidance if corrects else replace(source.guidance, scale=1.0),
            inversion.pin,
        )
        lane.follow(trajectory)
        return lane

    def _measure(self, report: InversionReport, picture: Tensor | None) -> InversionReport:
        if picture is None:
            return report
        ideal = self.model.decode_latents(self.x0)
        truth = ideal if self.pixels is None else self.pixels.float().cpu() / 2 + 0.5
        quality = psnr(picture, truth)
        best = None if self.pixels is None else psnr(ideal, truth)
        return replace(report, psnr=quality, vae_psnr=best)


def _poor(quality: float | None, best: float | None) -> str:
    """Say what is wrong with a reconstruction of `quality` dB, where the autoencoder alone reaches `best`; or ""."""
    if best is not None and best < PSNR_WARNING:
        return (
            f"the model's autoencoder reconstructs the picture at only {best:.1f} dB, and no inversion comes closer: "
            "the model does not know pictures like this one"
        )
    if quality is not None and quality < PSNR_WARNING:
        return (
            f"the inversion reconstructs the picture at only {quality:.1f} dB, so edits start from another picture; "
            "more --steps or a source prompt that describes it may help"
        )
    return ""


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; infinite for equal ones."""
    mse = float(torch.mean((a - b) ** 2))
    return math.inf if mse == 0 else -10 * math.log10(mse)
