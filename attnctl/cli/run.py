"""``attnctl run``: edit one source in one or more ways and write a folder."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

from attnctl.cli.progress import RunProgress
from attnctl.cli.summary import show_run
from attnctl.cli.terminal import say
from attnctl.cli.wanted import check_picture, read_request
from attnctl.registry import Registry

if TYPE_CHECKING:
    from attnctl.cli.output import RunOutput
    from attnctl.events import Event
    from attnctl.manifest import InputPicture
    from attnctl.model import Model
    from attnctl.request import EditRequest
    from attnctl.result import EditResult


def run(arguments: Namespace) -> int:
    """Carry out the command.

    Raises:
        AttnctlError: Something that the user can mend; after a `NoOpError` the folder is complete all the same.
        KeyboardInterrupt: The user stopped it; its text says where, and what was kept.
    """
    registry = Registry.load(arguments.plugins)
    request = read_request(arguments, registry)
    if arguments.image is not None:
        check_picture(arguments.image, arguments.fit, arguments.size)
    from attnctl.cli.output import RunOutput

    label = "-".join(dict.fromkeys(edit.method for edit in request.edits))
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
) -> int:
    from attnctl.events import Inverted
    from attnctl.loading import load_model
    from attnctl.result import NoOpError
    from attnctl.session import EditSession

    model = load_model(
        arguments.model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=arguments.device,
        config=arguments.config,
    )
    progress.doing("reading the picture" if arguments.image is not None else "planning")
    request, picture = _with_picture(arguments, request, model, output)
    if request.guidance == 1:
        say("note", "guidance 1 takes the conditional prediction alone; the negative prompt plays no part")

    def on_event(event: Event) -> None:
        progress(event)
        if isinstance(event, Inverted) and event.reconstruction is not None:
            output.write_reconstruction(event.report.lane, event.reconstruction)

    fault: NoOpError | None = None
    result: EditResult
    try:
        result = EditSession(model, registry).run(request, on_event)
    except NoOpError as error:
        fault, result = error, error.result
    progress.doing("writing")
    command = ("attnctl", *arguments.words)
    output.write_result(request, result, model, picture, command)
    progress.close()
    show_run(output, result, fault, as_json=arguments.json)
    if fault is not None:
        raise fault
    return 0


def _with_picture(
    arguments: Namespace, request: EditRequest, model: Model, output: RunOutput
) -> tuple[EditRequest, InputPicture | None]:
    """Read the real picture at the model's size, if there is one, and put it into the request."""
    if arguments.image is None:
        return request, None
    import torch

    from attnctl.manifest import InputPicture
    from attnctl.pictures import load_picture

    size = request.size or model.default_size
    model.latent_size(size)  # refuse a size that does not fit before the picture is brought to it
    loaded = load_picture(arguments.image, size, fit=arguments.fit)
    for text in loaded.notes:
        say("note", f"{arguments.image}: {text}")
    output.write_input(loaded)
    record = InputPicture(
        path=arguments.image,
        sha256=loaded.sha256,
        original_size=loaded.original_size,
        fit=arguments.fit,
        notes=loaded.notes,
    )
    pixels = torch.from_numpy(loaded.pixels)
    return replace(request, pixels=pixels, source_prompt=arguments.source_prompt), record


def _kept(output: RunOutput) -> str:
    if not output.written:
        return "nothing was written"
    return f"{', '.join(output.written)} kept in {output.folder.path}"


def _raise_shortage(error: BaseException, where: str) -> None:
    """Turn running out of memory outside the denoising loop, which handles its own, into one line."""
    if "torch" not in sys.modules:
        return
    from attnctl.memory import MemoryShortageError, is_shortage

    if is_shortage(error):
        raise MemoryShortageError(
            f"out of memory while {where}",
            hint="use a smaller --size, --dtype float16 or bfloat16, or another --device",
        ) from error
