"""Carrying a request out into a run folder, and building it again from the record that lies there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from attnctl.errors import InputError
from attnctl.events import Event, Inverted
from attnctl.files import sha256_of_file
from attnctl.request import Edit, EditRequest
from attnctl.runs.manifest import InputPicture, Manifest, PluginFile

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.cache import TrajectoryCache
    from attnctl.masks import LoadedMask
    from attnctl.model import Model
    from attnctl.pictures import Fit, LoadedPicture
    from attnctl.registry import Registry
    from attnctl.result import EditResult, NoOpError
    from attnctl.runs.output import RunOutput


@dataclass(frozen=True, eq=False)
class Inputs:
    """The files that a run reads.

    Attributes:
        picture: Record of the real picture; None where there is none.
        mask: Record of the mask.
        pixels: The picture, (3, H, W) in [-1, 1].
        mask_values: The mask, (H, W) in [0, 1].
        loaded: The picture as it was read.
    """

    picture: InputPicture | None = None
    mask: InputPicture | None = None
    pixels: Tensor | None = None
    mask_values: Tensor | None = None
    loaded: LoadedPicture | None = None


@dataclass(frozen=True, eq=False)
class Carried:
    """A run that was carried out: its record, what came of it, and the error of an edit that did not act."""

    manifest: Manifest
    result: EditResult
    fault: NoOpError | None = None


def read_inputs(
    model: Model,
    size: tuple[int, int] | None = None,
    *,
    picture: str | None = None,
    mask: str | None = None,
    fit: str = "crop",
    mask_fit: str | None = None,
) -> Inputs:
    """Read a real picture and a mask at the size of a run.

    Args:
        model: The model that will run.
        size: (height, width) in pixels; None: the model's own.
        picture: File of the real picture; None: the source is generated.
        mask: File of the mask, light where the source may change.
        fit: How the picture comes to the size, see `attnctl.pictures.load_picture`.
        mask_fit: The same for the mask; None: as the picture.

    Raises:
        InputError: A file cannot be read, or the size does not fit the model.
    """
    if picture is None and mask is None:
        return Inputs()
    import torch

    from attnctl.masks import load_mask
    from attnctl.pictures import load_picture

    wanted = size or model.default_size
    model.latent_size(wanted)  # refuse a size that does not fit before a picture is brought to it
    found = Inputs()
    if picture is not None:
        loaded = load_picture(picture, wanted, fit=cast("Fit", fit))
        pixels = torch.from_numpy(loaded.pixels)
        found = replace(found, picture=_record(picture, fit, loaded), pixels=pixels, loaded=loaded)
    if mask is not None:
        read = load_mask(mask, wanted, fit=cast("Fit", mask_fit or fit), picture=picture)
        values = torch.from_numpy(read.values)
        found = replace(found, mask=_record(mask, mask_fit or fit, read), mask_values=values)
    return found


def carry_out(
    request: EditRequest,
    model: Model,
    registry: Registry,
    output: RunOutput,
    inputs: Inputs | None = None,
    *,
    command: Sequence[str] = (),
    cache: TrajectoryCache | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    before_writing: Callable[[], None] = lambda: None,
) -> Carried:
    """Run a request and write its folder: pictures, sheet and record.

    Args:
        request: What to do; picture and mask of `inputs` take the place of its own.
        model: The model.
        registry: Where methods are looked up; the plugin files that it loaded are recorded.
        output: The folder.
        inputs: The files that the run reads, of `read_inputs`.
        command: The command line, for people who read the record.
        cache: Where inversions are kept.
        on_event: Told about progress.
        before_writing: Called when everything is computed.

    Raises:
        AttnctlError: Something that the user can mend; a `NoOpError` is in `Carried.fault` instead.
    """
    from attnctl.result import NoOpError
    from attnctl.session import EditSession

    inputs = inputs or Inputs()
    if inputs.loaded is not None:
        output.write_input(inputs.loaded)
        request = replace(request, pixels=inputs.pixels)
    if inputs.mask_values is not None:
        request = replace(request, mask=inputs.mask_values)

    def heard(event: Event) -> None:
        on_event(event)
        if isinstance(event, Inverted) and event.reconstruction is not None:
            output.write_reconstruction(event.report.lane, event.reconstruction)

    fault: NoOpError | None = None
    result: EditResult
    try:
        result = EditSession(model, registry, cache=cache).run(request, heard)
    except NoOpError as error:
        fault, result = error, error.result
    before_writing()
    manifest = output.write_result(
        request, result, model, inputs.picture, command, mask=inputs.mask, plugins=plugin_files(registry)
    )
    return Carried(manifest, result, fault)


def plugin_files(registry: Registry) -> tuple[PluginFile, ...]:
    """Return the plugin files that a registry was told to load, by name and SHA-256."""
    files = [Path(entry.name) for entry in registry.plugins if entry.owner == "file"]
    return tuple(PluginFile(name=path.name, sha256=sha256_of_file(path)) for path in files if path.is_file())


def build_request(manifest: Manifest, inputs: Inputs) -> EditRequest:
    """Return what a record says was asked for, with the pictures that it was asked of.

    Of records of schema 1, which hold no request, it is put together from lanes, settings and inversions.

    Raises:
        InputError: The run was given tensors that came from no file, or the record contradicts itself.
    """
    asked = manifest.request
    shared: dict[str, Any] = {"pixels": inputs.pixels, "mask": inputs.mask_values}
    if asked is None:
        return _of_schema_1(manifest, shared)
    if asked.tensors:
        raise InputError(
            f"the run was given {', '.join(asked.tensors)} as tensors that came from no file, so the record alone "
            "cannot make it again",
            hint="name picture and mask as files in `read_inputs`",
        )
    if asked.real != (inputs.pixels is not None):
        raise InputError("the record contradicts itself about a real picture", hint="it was changed after the run")
    edits = tuple(
        Edit(e.prompt, e.method, e.settings, e.preset, e.name, cast("dict[str, dict[str, Any]]", e.modifiers))
        for e in asked.edits
    )
    same = asked.model_dump(exclude={"edits", "real", "tensors", "plugins"})
    return EditRequest(edits, **same, **shared)


def _of_schema_1(manifest: Manifest, shared: dict[str, Any]) -> EditRequest:
    settings = manifest.settings
    sources = [lane for lane in manifest.lanes if lane.role == "source"]
    edits = tuple(
        Edit(e.prompt, e.method, e.config, None, e.name, cast("dict[str, dict[str, Any]]", e.modifiers))
        for e in manifest.lanes
        if e.role == "edit"
    )
    inverted = manifest.inversions[0] if len(manifest.inversions) == 1 else None
    return EditRequest(
        edits,
        source_prompt=(sources[0].prompt or None) if sources else None,
        negative_prompt=settings.negative_prompt,
        steps=settings.steps,
        guidance=settings.guidance,
        seed=settings.seed,
        size=settings.size,
        scheduler=settings.scheduler,
        inversion=None if inverted is None else inverted.name,
        inversion_settings={} if inverted is None else inverted.settings,
        check_reconstruction="reconstruction" in manifest.rows or not manifest.inversions,
        allow_no_op=any(row.changed is False for row in manifest.coverage),
        **shared,
    )


def _record(path: str, fit: str, loaded: LoadedPicture | LoadedMask) -> InputPicture:
    return InputPicture(
        path=path, sha256=loaded.sha256, original_size=loaded.original_size, fit=fit, notes=loaded.notes
    )
