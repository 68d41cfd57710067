"""Turning a finished run into its record."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from attnctl.families.hubcache import hub_snapshot
from attnctl.files import sha256_of
from attnctl.model import Model
from attnctl.request import Edit, EditRequest
from attnctl.result import EditResult, LaneResult
from attnctl.runs.manifest import (
    CoverageRecord,
    DeviceRecord,
    EditRecord,
    FileRecord,
    InputPicture,
    InversionRecord,
    LaneRecord,
    Manifest,
    ModelRecord,
    PluginFile,
    RequestRecord,
    SettingsRecord,
    Volatile,
    environment,
    model_files,
    model_fingerprint,
    processor_name,
)


def describe_run(
    request: EditRequest,
    result: EditResult,
    model: Model,
    *,
    pictures: Mapping[str, FileRecord],
    files: Mapping[str, FileRecord] | None = None,
    input_picture: InputPicture | None = None,
    mask: InputPicture | None = None,
    command: Sequence[str] = (),
    plugins: Sequence[PluginFile] = (),
) -> Manifest:
    """Return the record of a run: everything needed to make its pictures again, and to see that it is they.

    Args:
        request: What was asked for.
        result: What came of it.
        model: The model that ran; its files are hashed, once per process.
        pictures: Per lane name, the picture file that was written.
        files: Other files of the run by what they are, for example ``side_by_side``.
        input_picture: The real picture that was edited, if any.
        mask: The picture that said where to edit, if any.
        command: The command line, kept among the volatile fields.
        plugins: Plugin files that were loaded by name.

    Raises:
        InputError: If the model's files cannot be read any more.
    """
    height, width = (int(side) for side in result.source.pixels.shape[-2:])
    scheduler = {k: v for k, v in dict(model.pipe.scheduler.config).items() if not k.startswith("_")}
    return Manifest(
        environment=environment(),
        device=describe_device(model.device, model.dtype),
        model=describe_model(model),
        settings=SettingsRecord(
            seed=request.seed,
            steps=request.steps,
            guidance=request.guidance,
            size=(height, width),
            scheduler=request.scheduler,
            scheduler_config=scheduler,
            negative_prompt=request.negative_prompt,
        ),
        input_picture=input_picture,
        mask=mask,
        lanes=tuple(_describe_lane(lane, pictures.get(lane.name)) for lane in result.lanes),
        files=dict(files or {}),
        inversions=tuple(InversionRecord(**asdict(report)) for report in result.inversions),
        coverage=tuple(CoverageRecord(**asdict(row)) for row in result.coverage),
        rows=result.rows,
        warnings=result.warnings,
        request=describe_request(request, input_picture is not None, mask is not None, plugins),
        volatile=Volatile(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=tuple(command),
            seconds=result.seconds,
            peak_memory_bytes=result.peak_memory or None,
        ),
    )


def describe_request(
    request: EditRequest, from_file: bool, mask_from_file: bool, plugins: Sequence[PluginFile] = ()
) -> RequestRecord:
    """Return the record of what was asked for.

    Args:
        request: What was asked for.
        from_file: Whether the real picture is a file that the record names, so that its pixels need no digest here.
        mask_from_file: The same of the mask.
        plugins: Plugin files that were loaded by name.
    """
    given: dict[str, Any] = {"x0": request.x0, "x_T": request.x_T}
    if not from_file:
        given["pixels"] = request.pixels
    if not mask_from_file:
        given["mask"] = request.mask
    return RequestRecord(
        edits=tuple(describe_edit(edit, request.lane_name(i)) for i, edit in enumerate(request.edits)),
        source_prompt=request.source_prompt,
        real=request.real,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        guidance=request.guidance,
        seed=request.seed,
        size=request.size,
        scheduler=request.scheduler,
        inversion=request.inversion,
        inversion_settings=dict(request.inversion_settings),
        max_rows=request.max_rows,
        keep_source=request.keep_source,
        check_reconstruction=request.check_reconstruction,
        allow_no_op=request.allow_no_op,
        tensors={name: _tensor_digest(tensor) for name, tensor in given.items() if tensor is not None},
        plugins=tuple(plugins),
    )


def describe_edit(edit: Edit, name: str) -> EditRecord:
    """Return the record of one edit; of a method or modifier that was built already, its whole settings."""
    method = edit.method
    if isinstance(method, str):
        kind, settings, preset = method, dict(edit.settings), edit.preset
    else:
        kind, settings, preset = method.name, method.config.model_dump(mode="json"), method.preset
    return EditRecord(
        name=name,
        prompt=edit.prompt,
        method=kind,
        settings=settings,
        preset=preset,
        modifiers={
            key: dict(value) if isinstance(value, Mapping) else value.config.model_dump(mode="json")
            for key, value in edit.modifiers.items()
        },
    )


def _tensor_digest(tensor: torch.Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return sha256_of(str(values.shape).encode() + values.tobytes())


def _describe_lane(lane: LaneResult, picture: FileRecord | None) -> LaneRecord:
    return LaneRecord(
        name=lane.name,
        role=lane.role,
        prompt=lane.prompt,
        method=lane.method,
        preset=lane.preset,
        config=lane.settings,
        modifiers=lane.modifiers,
        picture=picture,
    )


def describe_device(device: torch.device, dtype: torch.dtype) -> DeviceRecord:
    """Name the hardware behind a torch device; on the CPU the number of threads can change the last bits."""
    kind, name = str(device), str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return DeviceRecord(kind=kind, name=torch.cuda.get_device_name(device), dtype=name)
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return DeviceRecord(kind=kind, name=processor_name(), dtype=name, threads=threads)


def describe_model(model: Model) -> ModelRecord:
    """Name a model, the commit that it is where the hub told it, and the fingerprint of its files where known.

    Raises:
        InputError: If its files cannot be read.
    """
    commit = None
    place: Path | None = model.folder
    if place is None and Path(model.name).is_file():
        place = Path(model.name)
    elif place is None and (place := hub_snapshot(model.name, model.revision)) is not None:
        commit = place.name
    return ModelRecord(
        id=model.name,
        revision=model.revision,
        commit=commit,
        family=model.family,
        prediction=model.prediction,
        sha256=model_fingerprint(place) if place is not None else None,
        files=model_files(place) if place is not None else {},
    )
