"""``attnctl run``: edit one source in one or more ways and write a folder."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnctl.cli.progress import RunProgress
from attnctl.cli.requesting import check_picture, kept_trajectories, read_request, wanted_model
from attnctl.cli.summary import show_run
from attnctl.masks import check_users, load_mask
from attnctl.registry import Registry
from attnctl.terminal import say

if TYPE_CHECKING:
    from attnctl.request import EditRequest
    from attnctl.result import EditResult, NoOpError
    from attnctl.runs.output import RunOutput


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
        load_mask(arguments.mask, arguments.size, fit=arguments.fit, picture=arguments.image)
        check_users({edit.method_name: registry.method(edit.method).uses_mask for edit in request.edits})
    from attnctl.runs.output import RunOutput

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
    from attnctl.runs.carrying import carry_out as carry
    from attnctl.runs.carrying import read_inputs

    model = wanted_model(arguments)
    progress.doing("reading the picture" if arguments.image is not None else "planning")
    inputs = read_inputs(model, request.size, picture=arguments.image, mask=arguments.mask, fit=arguments.fit)
    for read in (inputs.picture, inputs.mask):
        if read is not None:
            for text in read.notes:
                say("note", f"{read.path}: {text}")
    if inputs.picture is not None:
        request = replace(request, pixels=inputs.pixels, source_prompt=arguments.source_prompt)
    if request.guidance == 1:
        say("note", "guidance 1 takes the conditional prediction alone; the negative prompt plays no part")
    carried = carry(
        request,
        model,
        registry,
        output,
        inputs,
        command=("attnctl", *arguments.words),
        cache=kept_trajectories(arguments),
        on_event=progress,
        before_writing=lambda: progress.doing("writing"),
    )
    progress.close()
    return RunOutcome(output, carried.result, carried.fault)


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
