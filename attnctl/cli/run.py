"""``attnctl run``: edit one source in one or more ways and write a folder."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnctl.cli.progress import RunProgress
from attnctl.cli.summary import show_run
from attnctl.cli.wanted import check_picture, kept_trajectories, read_request, wanted_model
from attnctl.masks import check_users
from attnctl.registry import Registry
from attnctl.terminal import say

if TYPE_CHECKING:
    from attnctl.cli.output import RunOutput
    from attnctl.events import Event
    from attnctl.model import Model
    from attnctl.pictures import LoadedPicture
    from attnctl.request import EditRequest
    from attnctl.result import EditResult, NoOpError
    from attnctl.runs.manifest import InputPicture


@dataclass
class RunOutcome:
    """A run that was carried out.

    Attributes:
        output: Its folder and record.
        result: What came of it.
        fault: Set when an edit did not act; the folder is complete all the same.
    """

    output: RunOutput
    result: EditResult
    fault: NoOpError | None = None


def run(arguments: Namespace) -> int:
    """Carry out the command.

    Raises:
        AttnctlError: Something that the user can mend; after a `NoOpError` the folder is complete all the same.
        KeyboardInterrupt: The user stopped it; its text says where, and what was kept.
    """
    done = carry_out(arguments)
    show_run(done.output, done.result, done.fault, as_json=arguments.json)
    if done.fault is not None:
        raise done.fault
    return 0


def carry_out(arguments: Namespace) -> RunOutcome:
    """Do what the command does, but for its summary.

    Raises:
        AttnctlError: Something that the user can mend; a `NoOpError` is in `RunOutcome.fault` instead.
        KeyboardInterrupt: The user stopped it; its text says where, and what was kept.
    """
    registry = Registry.load(arguments.plugins)
    request = read_request(arguments, registry)
    if arguments.image is not None:
        check_picture(arguments.image, arguments.fit, arguments.size)
    if arguments.mask is not None:
        check_picture(arguments.mask, arguments.fit, arguments.size)
        check_users({edit.method_name: registry.method(edit.method).uses_mask for edit in request.edits})
    from attnctl.cli.output import RunOutput

    label = "-".join(dict.fromkeys(edit.method_name for edit in request.edits))
    output = RunOutput(arguments.out, label=label, seed=request.seed, force=arguments.force)
    progress = RunProgress()
    try:
        with progress:
            progress.doing("loading the model")
            return _run(arguments, request, registry, output, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"while {progress.where}; {_kept(output)}") from None
    except (RuntimeError, MemoryError) as error:
        _raise_shortage(error, progress.where)
        raise
    finally:
        output.discard_if_empty()


def _run(
    arguments: Namespace, request: EditRequest, registry: Registry, output: RunOutput, progress: RunProgress
) -> RunOutcome:
    from attnctl.events import Inverted
    from attnctl.result import NoOpError
    from attnctl.session import EditSession

    model = wanted_model(arguments)
    progress.doing("reading the picture" if arguments.image is not None else "planning")
    request, picture = _with_picture(arguments, request, model, output)
    request, mask = _with_mask(arguments, request, model)
    if request.guidance == 1:
        say("note", "guidance 1 takes the conditional prediction alone; the negative prompt plays no part")

    def on_event(event: Event) -> None:
        progress(event)
        if isinstance(event, Inverted) and event.reconstruction is not None:
            output.write_reconstruction(event.report.lane, event.reconstruction)

    fault: NoOpError | None = None
    result: EditResult
    try:
        result = EditSession(model, registry, cache=kept_trajectories(arguments)).run(request, on_event)
    except NoOpError as error:
        fault, result = error, error.result
    progress.doing("writing")
    command = ("attnctl", *arguments.words)
    output.write_result(request, result, model, picture, command, mask=mask)
    progress.close()
    return RunOutcome(output, result, fault)


def _with_picture(
    arguments: Namespace, request: EditRequest, model: Model, output: RunOutput
) -> tuple[EditRequest, InputPicture | None]:
    """Read the real picture at the model's size, if there is one, and put it into the request."""
    if arguments.image is None:
        return request, None
    import torch

    from attnctl.pictures import load_picture

    size = request.size or model.default_size
    model.latent_size(size)  # refuse a size that does not fit before the picture is brought to it
    loaded = load_picture(arguments.image, size, fit=arguments.fit)
    for text in loaded.notes:
        say("note", f"{arguments.image}: {text}")
    output.write_input(loaded)
    pixels = torch.from_numpy(loaded.pixels)
    request = replace(request, pixels=pixels, source_prompt=arguments.source_prompt)
    return request, _record(arguments.image, arguments.fit, loaded)


def _with_mask(arguments: Namespace, request: EditRequest, model: Model) -> tuple[EditRequest, InputPicture | None]:
    """Read the mask, if there is one, brought to the model's size as the picture is, and put it into the request."""
    if arguments.mask is None:
        return request, None
    import torch

    from attnctl.pictures import load_picture

    loaded = load_picture(arguments.mask, request.size or model.default_size, fit=arguments.fit)
    mask = torch.from_numpy(loaded.pixels.mean(0) / 2 + 0.5).clamp(0, 1)
    return replace(request, mask=mask), _record(arguments.mask, arguments.fit, loaded)


def _record(path: str, fit: str, loaded: LoadedPicture) -> InputPicture:
    from attnctl.runs.manifest import InputPicture

    return InputPicture(
        path=path, sha256=loaded.sha256, original_size=loaded.original_size, fit=fit, notes=loaded.notes
    )


def _kept(output: RunOutput) -> str:
    if not output.written:
        return "nothing was written"
    return f"{', '.join(output.written)} kept in {output.folder.path}"


def _raise_shortage(error: BaseException, where: str) -> None:
    """Turn running out of memory outside the denoising loop, which handles its own, into one line."""
    if "torch" not in sys.modules:
        return
    from attnctl.engine.memory import MemoryShortageError, is_shortage

    if is_shortage(error):
        raise MemoryShortageError(
            f"out of memory while {where}",
            hint="use a smaller --size, --dtype float16 or bfloat16, or another --device",
        ) from error
