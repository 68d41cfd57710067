"""One case with one seed: all entries that can share an inversion and a source run together, and every row says how."""

from __future__ import annotations

import gc
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attnctl.dataset import Case
from attnctl.errors import AttnctlError
from attnctl.pictures import png_bytes, to_image
from attnctl.result import CoverageRow, EditResult, check_coverage
from attnctl_evaluation.benchmark.plan import picture_name
from attnctl_evaluation.benchmark.score import Reference, mask_picture, read_reference, score
from attnctl_evaluation.benchmark.setup import JobResult, Setup, SetupRecord, failure_of
from attnctl_evaluation.benchmark.spec import CompareSpec
from attnctl_evaluation.benchmark.store import INPUT, MASK, TRUTH
from attnctl_evaluation.rows import Failure, Pictures, Row, RowScore, Timing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from attnctl.engine.planning import RunPlan
    from attnctl.request import EditRequest

_NO_OP_HINT = "`attnctl explain` shows what was to act where"
_FAULTS = (Exception, SystemExit)
"""What strangers' code may raise; an interrupt is the user's and goes on."""


@dataclass(eq=False)
class _Lane:
    """One entry of a case while it is worked off."""

    label: str
    edit_rows: int = 0
    step_actions: bool = False
    same_prompt: bool = False
    image: Image | None = None
    failure: Failure | None = None
    coverage: list[CoverageRow] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak: int | None = None
    scores: dict[str, RowScore] = field(default_factory=dict)
    score_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class _CaseInput:
    """What all requests of a case are made from."""

    setup: Setup
    case: Case
    seed: int
    pixels: Tensor | None
    mask: Tensor | None

    def request(self, labels: Sequence[str]) -> EditRequest:
        shown = self.mask if self.setup.spec.methods[labels[0]].mask else None
        return self.setup.request(list(labels), self.case, self.seed, self.pixels, shown)


@dataclass(frozen=True)
class CaseWorker:
    """Works off jobs in this process.

    Attributes:
        record: What the header says of it.
        run: From case id and seed to what came of them.
    """

    record: SetupRecord
    run: Callable[[str, int], JobResult]


def make_worker(setup: Setup) -> CaseWorker:
    """Return who works off the jobs of a setup."""
    return CaseWorker(setup.record, partial(run_case, setup))


def load_worker(spec: CompareSpec, index: int) -> CaseWorker:
    """Load what a worker needs; several workers of a machine share its GPUs evenly.

    Raises:
        AttnctlError: It cannot be loaded.
    """
    if spec.device in (None, "cuda") and torch.cuda.device_count() > 1:
        torch.cuda.set_device(index % torch.cuda.device_count())
    return make_worker(Setup(spec))


def run_case(setup: Setup, case_id: str, seed: int) -> JobResult:
    """Edit one case with every entry and measure the pictures; faults of methods, pictures and metrics become rows.

    Args:
        setup: Model, methods, cases and metrics.
        case_id: The case.
        seed: Seed of the run.
    """
    case = setup.cases[case_id]
    lanes = [_Lane(label) for label in setup.spec.methods]
    if case.missing:
        gone = Failure(kind="MissingPicture", message=case.missing)
        return _result(setup, case, seed, [replace(lane, failure=gone) for lane in lanes], Reference(), "missing")
    try:
        source = None if case.picture is None else case.picture(setup.size).convert("RGB")
        reference = read_reference(case, setup.size, source)
    except _FAULTS as error:
        for lane in lanes:
            lane.failure = _fault(error)
        return _result(setup, case, seed, lanes, Reference())
    pixels = None if source is None else torch.from_numpy(np.asarray(source).transpose(2, 0, 1) / np.float32(127.5) - 1)
    mask = None if reference.mask is None else torch.from_numpy(reference.mask.copy())
    generated = _edit(_CaseInput(setup, case, seed, pixels, mask), lanes)
    if source is None:
        reference = replace(reference, source=generated)
    for lane in lanes:
        if lane.failure is None and lane.image is not None:
            _measure(setup, case, lane, lane.image, reference)
    return _result(setup, case, seed, lanes, reference)


def _edit(material: _CaseInput, lanes: Sequence[_Lane]) -> Image | None:
    """Run every lane, together where they can; return the generated source, if there is one."""
    groups: dict[Hashable, list[_Lane]] = {}
    for lane in lanes:
        try:
            groups.setdefault(_prepare(material, lane), []).append(lane)
        except _FAULTS as error:
            lane.failure = _fault(error)
    found = [_attempt(material, group) for group in groups.values()]
    return None if material.case.real else next((image for image in found if image is not None), None)


def _attempt(material: _CaseInput, group: Sequence[_Lane]) -> Image | None:
    """Run some lanes; where that fails, one by one, so that the fault is that of the lane that has it."""
    try:
        return _run(material, group)
    except _FAULTS as error:
        fault = _fault(error)
    if len(group) == 1:
        group[0].failure = fault
        return None
    found = [_attempt(material, [lane]) for lane in group]
    return next((image for image in found if image is not None), None)


def _prepare(material: _CaseInput, lane: _Lane) -> Hashable:
    """Plan a lane alone; return what lanes must have in common to run in one request.

    Raises:
        AttnctlError: The method refuses the case.
    """
    session = material.setup.session
    request = material.request([lane.label])
    plan = session.plan(request)
    lane.edit_rows = session.edit_rows(request, plan)
    lane.step_actions = any(bound.controller.is_step_action for bound in plan.bounds)
    lane.same_prompt = _same_prompt(plan)
    shown = request.mask is not None
    if not plan.inversions:
        return (shown,)
    asked = json.dumps([request.inversion, dict(request.inversion_settings)], sort_keys=True, default=str)
    found: list[Hashable] = [shown, asked]
    for name, wanted in plan.inversions.items():
        source = plan.lanes[name]
        reads = session.registry.make_inversion(wanted).reads_lane
        found += [wanted, (source.prompt, source.negative_prompt, source.guidance) if reads else None]
    return tuple(found)


def _same_prompt(plan: RunPlan) -> bool:
    (edit,) = plan.edits
    return plan.lanes[edit.name].prompt == plan.lanes[edit.source].prompt


def _run(material: _CaseInput, group: Sequence[_Lane]) -> Image:
    """Run some lanes in one request and keep what came of each; return the source.

    Raises:
        Exception: Whatever went wrong; no lane is changed then.
    """
    session = material.setup.session
    request = material.request([lane.label for lane in group])
    result = session.run(request)
    images = {lane.label: to_image(result[lane.label].pixels) for lane in group}
    source = to_image(result.source.pixels)
    rows = _rows(session, request, result, group)
    for lane in group:
        lane.image = images[lane.label]
        lane.coverage = [row for row in result.coverage if row.lane == lane.label]
        lane.rows = rows[lane.label]
        lane.warnings = _own_warnings(material.setup, result.warnings, lane, group)
        lane.seconds = {stage: seconds / len(group) for stage, seconds in result.seconds.items()}
        lane.peak = result.peak_memory or None
        fault = _idle(result, lane)
        if fault:
            lane.failure = Failure(kind="NoOpError", message=fault, hint=_NO_OP_HINT)
    return source


def _rows(session: Any, request: EditRequest, result: EditResult, group: Sequence[_Lane]) -> dict[str, dict[str, int]]:
    """Return the denoiser rows that each lane takes; what lanes share counts fully in each.

    Rows that step actions ask for are known for the request as a whole; they are divided among the lanes with any.
    """
    shared = {stage: rows for stage, rows in result.rows.items() if stage != "edit"}
    if len(group) == 1:
        return {group[0].label: {**shared, "edit": result.rows["edit"]}}
    acting = [lane for lane in group if lane.step_actions]
    further = 0
    if acting and request.max_rows is None:
        further = max(0, result.rows["edit"] - session.edit_rows(request, session.plan(request))) // len(acting)
    return {lane.label: {**shared, "edit": lane.edit_rows + (further if lane in acting else 0)} for lane in group}


def _idle(result: EditResult, lane: _Lane) -> str | None:
    """Return why a lane's edit is not what it claims to be; None where it is."""
    own = replace(result, lanes=(result[lane.label],), coverage=tuple(lane.coverage))
    return check_coverage(own, {lane.label: lane.same_prompt})


def _own_warnings(setup: Setup, warnings: Iterable[str], lane: _Lane, group: Sequence[_Lane]) -> list[str]:
    """Return the warnings that are about a lane: those that name it or its method, and those that name nobody."""

    def names(one: _Lane) -> str:
        alike = "|".join(re.escape(name) for name in {one.label, setup.spec.methods[one.label].method})
        return rf"^({alike})\b|\((\w+ of )?({alike})\)|\bof ({alike})\b"

    found = []
    for text in warnings:
        about = [one for one in group if re.search(names(one), text)]
        if not about or lane in about:
            found.append(text)
    return found


def _measure(setup: Setup, case: Case, lane: _Lane, image: Image, reference: Reference) -> None:
    began = time.perf_counter()
    try:
        lane.scores = score(setup.panel, case, image, reference)
    except _FAULTS as error:
        lane.failure = _fault(error)
    lane.score_seconds = time.perf_counter() - began


def _result(
    setup: Setup, case: Case, seed: int, lanes: Sequence[_Lane], reference: Reference, status: str = ""
) -> JobResult:
    """Write everything down."""
    pictures, shared = _shared_pictures(setup, case, seed, reference)
    name = picture_name(case.id, seed, setup.spec.seeds)
    records, timings = [], []
    for lane in lanes:
        edit = None
        if lane.image is not None:
            edit = f"{setup.entries[lane.label].folder}/{name}"
            pictures[edit] = png_bytes(lane.image)
        records.append(
            Row.model_validate(
                {
                    "case": case.id,
                    "method": lane.label,
                    "seed": seed,
                    "status": status or ("ok" if lane.failure is None else "failed"),
                    "edit_type": case.edit_type,
                    "source_prompt": case.source_prompt,
                    "prompt": case.prompt,
                    "real": case.real,
                    "scores": lane.scores,
                    "cards": {label: setup.card_ids[label] for label in lane.scores},
                    "coverage": [asdict(row) for row in lane.coverage],
                    "rows": lane.rows,
                    "warnings": lane.warnings,
                    "pictures": Pictures(edit=edit, **shared),
                    "failure": lane.failure,
                }
            )
        )
        if lane.seconds or lane.score_seconds is not None:
            timings.append(
                Timing(
                    case=case.id,
                    method=lane.label,
                    seed=seed,
                    seconds=lane.seconds,
                    peak_memory_bytes=lane.peak,
                    score_seconds=lane.score_seconds,
                )
            )
    return JobResult(records, timings, pictures)


def _shared_pictures(
    setup: Setup, case: Case, seed: int, reference: Reference
) -> tuple[dict[str, bytes], Mapping[str, str]]:
    """Return the pictures that all lanes have in common, as files and by their role."""
    files: dict[str, bytes] = {}
    roles: dict[str, str] = {}
    own = f"{case.id}.png"
    if reference.source is not None:
        name = own if case.real else picture_name(case.id, seed, setup.spec.seeds)
        roles["source"] = f"{INPUT}/{name}"
        files[roles["source"]] = png_bytes(reference.source)
    if reference.truth is not None:
        roles["truth"] = f"{TRUTH}/{own}"
        files[roles["truth"]] = png_bytes(reference.truth)
    if reference.mask is not None:
        roles["mask"] = f"{MASK}/{own}"
        files[roles["mask"]] = png_bytes(mask_picture(reference.mask))
    return files, roles


def _fault(error: BaseException) -> Failure:
    if os.environ.get("ATTNCTL_DEBUG", "0") not in {"", "0"}:
        traceback.print_exception(error)
    if not isinstance(error, AttnctlError):
        _tidy()
    return failure_of(error)


def _tidy() -> None:
    """Give back what a failed run held, so that the next one is not short of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
