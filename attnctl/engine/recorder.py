"""Recordings of one run: bound to sites and steps, counted before the run, filled while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnctl.attend import AttentionCall
from attnctl.controller import Controller, Observation
from attnctl.engine.operation import Bound
from attnctl.errors import InputError, SelectionError, unknown
from attnctl.recording import DTYPES, Key, Recorded, Recording
from attnctl.sites import Site
from attnctl.steps import Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attnctl.engine.rows import LaneRows
    from attnctl.model import Model

FEATURE_TAP = "conv2"


@dataclass(frozen=True, eq=False)
class PlannedReading:
    """A recording with what it will read.

    Attributes:
        recording: The recording.
        sites: Its sites in execution order.
        steps: Indices of its steps.
        size: Bytes that its results will take.
    """

    recording: Recording
    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    size: int


def plan_readings(
    recordings: Sequence[Recording],
    lanes: Mapping[str, LaneRows],
    model: Model,
    latent_size: tuple[int, int],
    steps: Sequence[Step],
    budget: int,
) -> tuple[PlannedReading, ...]:
    """Bind recordings and count what they will take; runs no denoiser.

    Raises:
        InputError: Two have one name, or together they are over the budget.
        SelectionError: One names a lane, a half, sites or steps that are not there.
    """
    found: list[PlannedReading] = []
    for recording in recordings:
        if recording.name in {reading.recording.name for reading in found}:
            raise InputError(f"two recordings are called {recording.name!r}", hint="give each a name of its own")
        if recording.lane not in lanes:
            raise unknown("lane to record", recording.lane, lanes, cls=SelectionError)
        if recording.half not in lanes[recording.lane].halves:
            raise SelectionError(
                f"the recording {recording.name!r} reads the {recording.half} half of {recording.lane}, which is not "
                "evaluated",
                hint="guidance 1 has the conditional half alone",
            )
        sites = recording.where.select(model.sites, latent_size)
        window = tuple(step.index for step in steps if step in recording.when)
        if not window:
            raise SelectionError(
                f"the recording {recording.name!r} reads in {recording.when}, which holds none of {len(steps)} steps",
                hint="count steps from 0, or give fractions of the schedule",
            )
        found.append(_sized(recording, sites, window, model, latent_size))
    total = sum(reading.size for reading in found)
    if total > budget:
        largest = max(found, key=lambda reading: reading.size).recording.name
        raise InputError(
            f"the recordings would take {total:,} bytes, allowed are {budget:,}",
            hint=f"the largest is {largest!r}: record fewer sites or steps, average heads or steps, keep float16, or "
            "raise max_recorded",
        )
    return tuple(found)


def _sized(
    recording: Recording, sites: tuple[Site, ...], steps: tuple[int, ...], model: Model, latent_size: tuple[int, int]
) -> PlannedReading:
    numbers = {site: _numbers(recording, site, model, latent_size) for site in sites}
    if "sites" in recording.reduce and len(set(numbers.values())) > 1:
        raise SelectionError(
            f"the recording {recording.name!r} averages sites of different sizes", hint="select sites of one grid"
        )
    per_step = max(numbers.values()) if "sites" in recording.reduce else sum(numbers.values())
    kept = per_step * (1 if "steps" in recording.reduce else len(steps))
    return PlannedReading(recording, sites, steps, kept * DTYPES[recording.dtype])


def _numbers(recording: Recording, site: Site, model: Model, latent_size: tuple[int, int]) -> int:
    """Return how many numbers one reading at a site has."""
    module = model.denoiser.get_submodule(site.path)
    if recording.of == "feature":
        h, w = site.grid(latent_size)
        return int(getattr(module, FEATURE_TAP).out_channels) * h * w
    layout = site.layout(latent_size, model.text_length)
    heads = 1 if "heads" in recording.reduce else site.heads
    queries = layout.query_count if recording.queries is None else _length(layout.queries, recording, site)
    width = int(module.to_q.out_features) // site.heads
    columns = recording.columns
    per_query = {
        "map": layout.key_count,
        "columns": int(columns.shape[-1]) if isinstance(columns, Tensor) else layout.key_count,
        "mass": 1,
    }
    tokens = layout.key_count if recording.of in "kv" else queries
    return heads * tokens * per_query.get(recording.of, width)


def _length(segments: Mapping[str, slice], recording: Recording, site: Site) -> int:
    wanted = str(recording.queries)
    if wanted not in segments:
        raise unknown(f"segment of queries at {site.path}", wanted, segments, cls=SelectionError)
    return int(segments[wanted].stop - segments[wanted].start)


@dataclass(eq=False)
class Recorder:
    """Fills one recording's results."""

    reading: PlannedReading
    result: Recorded
    _counts: dict[Key, int] = field(default_factory=dict)

    @classmethod
    def of(cls, reading: PlannedReading) -> Recorder:
        """Start empty."""
        return cls(reading, Recorded(reading.recording, reading.sites, reading.steps))

    @property
    def bound(self) -> Bound:
        """The reader as the engine takes it."""
        recording, reading = self.reading.recording, self.reading
        quantity = recording.of if recording.of in ("q", "k", "v", "out", "feature") else "columns"
        observe = Observation(self._columns, self.take, of=quantity)
        controller = Controller(
            recording.name, recording.where, recording.when, (recording.half,), observe=observe, lanes=()
        )
        expected = len(reading.sites) * len(reading.steps)
        return Bound(controller, recording.lane, recording.lane, reading.sites, reading.steps, expected)

    def _columns(self, call: AttentionCall) -> Tensor:
        recording = self.reading.recording
        if recording.of == "mass":
            column = torch.zeros(call.keys, 1)
            if "image" in call.segments.keys:
                column[call.segments.keys["image"]] = 1
            return column
        if recording.of == "map":
            return torch.eye(call.keys)
        assert recording.columns is not None  # the recording checked it
        return recording.columns(call) if callable(recording.columns) else recording.columns

    def take(self, call: AttentionCall, read: Tensor) -> None:
        """Take one reading, (H, N, ...) or a feature (C, h, w)."""
        if call.step.stage > 0:
            return
        recording = self.reading.recording
        value = read.detach().float()
        if recording.of not in ("k", "v", "feature") and recording.queries is not None:
            value = value[:, call.segments.queries[recording.queries]]
        if recording.of == "mass":
            value = value[..., 0]
        if "heads" in recording.reduce:
            value = value.mean(0)
        path = None if "sites" in recording.reduce else call.site.path
        key = (path, None if "steps" in recording.reduce else call.step.index)
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if count > 1:  # a running mean, in float32 until the run ends
            value = self.result.tensors[key] + (value.cpu() - self.result.tensors[key]) / count
        averaged = {"sites", "steps"} & recording.reduce
        self.result.tensors[key] = (value if averaged else self._kept(value)).cpu().clone()

    def finish(self) -> Recorded:
        """Return what was read, in the type that it is kept in."""
        self.result.tensors = {key: self._kept(tensor) for key, tensor in self.result.tensors.items()}
        return self.result

    def _kept(self, value: Tensor) -> Tensor:
        return value.to(getattr(torch, self.reading.recording.dtype))
