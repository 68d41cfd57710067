"""Every command and option. Describes alone: what a command does is imported when it runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from attnctl import __version__
from attnctl.arguments import (
    Parser,
    add_inversion_arguments,
    add_model_arguments,
    add_sampling_arguments,
    add_size_argument,
    names,
    text,
    whole,
)
from attnctl.command import Command, Commands
from attnctl.loading import EMBEDDED
from attnctl.terminal import say

_ABOUT = """\
Attention-control image editing on diffusion models: draw a source picture and edits of it together, and let every
edit take over from the source what its method says, layer by layer and step by step."""

_EXAMPLES = """\
examples (`attnctl methods` lists what METHOD can be):
  attnctl run --method METHOD
  attnctl run --method METHOD --source-prompt "a red car on a road" --prompt "a blue car on a road"
  attnctl run --method METHOD --image photo.png --prompt "a blue car on a road"
  attnctl explain METHOD

exit codes: 0 done; 2 something that you can mend, said in one line; 1 a fault of attnctl; 130 interrupted.
ATTNCTL_DEBUG=1 shows tracebacks."""

_RUN = """\
Edit one source in one or more ways. The source is drawn from --source-prompt, or is a picture given with --image;
every --prompt is edited with every --method. With neither prompt nor picture, the model's own example is run.

Writes a folder: source.png, one picture for each edit, side-by-side.png, for a real picture reconstruction.png, and
manifest.json with everything that is needed to make them again. Equal runs on one machine give equal bytes."""

_RUN_EXAMPLES = """\
examples:
  attnctl run --method METHOD
  attnctl run --method METHOD,OTHER --source-prompt "a red car" --edits "a blue car" "a green car"
  attnctl run --method METHOD --image photo.png --prompt "a blue car on a road" --set NAME=VALUE --out blue-car"""


def build_parser(plugged: Mapping[str, type[Command]] | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line; its namespaces carry the command in ``execute``.

    Args:
        plugged: Commands of plugins by name; None loads those that are installed.
    """
    if plugged is None:
        plugged = Commands.load().classes
    parser = Parser(prog="attnctl", description=_ABOUT, epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"attnctl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for add in (_run, _catalogues, _explain, _invert, _cache, _sites, _tokens, _plugins, _doctor):
        add(commands)
    for command in plugged.values():
        _plugged(commands, command)
    return parser


def _plugged(commands: Any, kind: type[Command]) -> None:
    """Add a plugin's command."""
    try:
        command = kind()
        command.add_arguments(Parser(prog=kind.name))  # on trial: a broken command must not take down all others
    except Exception as fault:
        say("warning", f"the command {kind.name} is left out: {type(fault).__name__}: {fault}")
        return
    about, end = kind.description or kind.help, f"examples:\n{kind.examples}" if kind.examples else None
    parser = commands.add_parser(kind.name, help=kind.help, description=about, epilog=end)
    command.add_arguments(parser)
    parser.set_defaults(execute=command.run)


def _run(commands: Any) -> None:
    run = commands.add_parser("run", help="edit a picture", description=_RUN, epilog=_RUN_EXAMPLES)
    run.set_defaults(execute=_later("run", "run"))
    what = run.add_argument_group("what to edit")
    what.add_argument(
        "--prompt", metavar="TEXT", type=text, dest="prompts", action="append",
        help="what an edit shows; may be given several times",
    )  # fmt: skip
    what.add_argument(
        "--edits", metavar="TEXT", type=text, dest="prompts", action="extend", nargs="+", help="several prompts at once"
    )
    what.add_argument(
        "--source-prompt", metavar="TEXT", type=text,
        help="what the source shows; needed to draw one, optional for most methods with --image",
    )  # fmt: skip
    what.add_argument("--image", metavar="FILE", help="edit this picture instead of a drawn source")
    what.add_argument(
        "--mask", metavar="FILE",
        help="a picture that is white where the source may change, for the methods that use masks",
    )  # fmt: skip
    what.add_argument(
        "--fit", default="crop", metavar="HOW",
        help="how a picture comes to the size: crop (default), stretch, nearest-stretch",
    )  # fmt: skip
    _method_options(run.add_argument_group("method"), several=True)
    add_model_arguments(run.add_argument_group("model"))
    _sampling_options(run.add_argument_group("sampling"))
    write = run.add_argument_group("output")
    write.add_argument("--out", metavar="FOLDER", help="folder to write to; default: attnctl-runs/METHOD-SEED-N")
    write.add_argument(
        "--force", action="store_true", help="write into a folder that holds files; those of the same name are replaced"
    )
    write.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
    write.add_argument(
        "--allow-no-op", action="store_true", help="report an edit that changed nothing instead of failing"
    )
    write.add_argument(
        "--no-cache", action="store_true", help="neither look for a kept inversion of --image nor keep it"
    )
    write.add_argument(
        "--no-reconstruction", action="store_true",
        help="do not measure how well the inversion of --image reconstructs; saves its denoiser rows",
    )  # fmt: skip


_CATALOGUES = {
    "methods": (
        "list edit methods, or show one",
        "List the edit methods, or show one: its paper, settings with their ranges, presets and citation.",
    ),
    "inversions": (
        "list inversions of real pictures, or show one",
        "List the inversions, which turn a real picture into the noise that a method starts from, or show one.",
    ),
    "modifiers": (
        "list additions to methods, or show one",
        "List the modifiers, which add to an edit whatever its method is, or show one.",
    ),
}
"""Commands that list what plugins provide, with their summaries and descriptions."""


def _catalogues(commands: Any) -> None:
    for name, texts in _CATALOGUES.items():
        parser = _listing(commands, name, *texts)
        parser.add_argument("name", nargs="?", metavar="NAME", help=f"show this {name.removesuffix('s')} in full")


def _invert(commands: Any) -> None:
    about = """\
Turn a picture into the noise that a method would start from, sample it back without an edit, and say how close that
comes to the picture. What was found is kept, so that `attnctl run` with the same picture need not find it again."""
    parser = commands.add_parser("invert", help="invert a picture, and measure how well", description=about)
    parser.set_defaults(execute=_later("invert", "invert"))
    add_inversion_arguments(parser)
    add_model_arguments(parser.add_argument_group("model"))
    _sampling_options(parser.add_argument_group("sampling"))


def _cache(commands: Any) -> None:
    about = """\
List the inversions that are kept on disk, last used first, or take them all away. They lie in ~/.cache/attnctl, or
where ATTNCTL_CACHE says; beyond 2 GiB those that were not used for longest go by themselves."""
    parser = commands.add_parser("cache", help="list kept inversions, or clear them", description=about)
    parser.set_defaults(execute=_later("invert", "cache"))
    parser.add_argument(
        "action", nargs="?", metavar="ACTION", choices=("list", "clear"), default="list", help="list or clear"
    )
    _json_option(parser)


def _plugins(commands: Any) -> None:
    about = "List every installed plugin and what it provides; one that is broken with the reason why."
    _listing(commands, "plugins", "list plugins, broken ones with their error", about)


def _explain(commands: Any) -> None:
    about = """\
Show what a method would do, without doing it: at which sites, in which steps, by which expression, from which source,
and how many rows (single pictures) the denoiser would evaluate."""
    parser = commands.add_parser("explain", help="show a method's plan as a table", description=about)
    parser.set_defaults(execute=_later("explain", "explain"))
    parser.add_argument("method", metavar="METHOD", help="see `attnctl methods`")
    parser.add_argument("--real", action="store_true", help="plan for a real picture instead of a drawn source")
    parser.add_argument("--prompt", metavar="TEXT", type=text, help="target prompt; default: the model's own example")
    parser.add_argument(
        "--source-prompt", metavar="TEXT", type=text, help="source prompt; default: the model's own example"
    )
    _method_options(parser.add_argument_group("method"), several=False)
    add_model_arguments(parser.add_argument_group("model"))
    _sampling_options(parser.add_argument_group("sampling"))
    _json_option(parser)


def _sites(commands: Any) -> None:
    about = "List a model's sites, the places where an edit can act, in the order in which they run."
    parser = commands.add_parser("sites", help="list a model's attention layers and features", description=about)
    parser.set_defaults(execute=_later("sites", "sites"))
    parser.add_argument("--kind", metavar="KIND", help="only these: self, cross or feature")
    add_size_argument(parser)
    add_model_arguments(parser)
    _json_option(parser)


def _tokens(commands: Any) -> None:
    about = """\
Show the words of a prompt as the model's tokens; with a second prompt, which of the first one's tokens each of its
tokens takes its attention from, with which weight, and which words to name where only what changed may change."""
    parser = commands.add_parser("tokens", help="show how prompts are cut up and line up", description=about)
    parser.set_defaults(execute=_later("tokens", "tokens"))
    parser.add_argument("source", metavar="PROMPT", type=text, help="a prompt; with TARGET, the source's")
    parser.add_argument("target", metavar="TARGET", type=text, nargs="?", help="the prompt of an edit")
    parser.add_argument(
        "--by", metavar="WHAT", default="auto",
        help="line up words one for one, or tokens that are equal; default: auto, words if there are equally many",
    )  # fmt: skip
    parser.add_argument(
        "--published", action="store_true", help="as published code does it, quirks and all, not as it is meant"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        default=EMBEDDED,
        help=f"whose tokenizer, see `attnctl run --help`; default {EMBEDDED}",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub model")
    _json_option(parser)


def _doctor(commands: Any) -> None:
    about = "Look at this installation: versions, devices, the torch and torchvision pair, which parts work."
    parser = commands.add_parser("doctor", help="check this installation", description=about)
    parser.set_defaults(execute=_later("listing", "doctor"))
    _json_option(parser)


def _listing(commands: Any, name: str, summary: str, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=about)
    parser.set_defaults(execute=_later("listing", name))
    _plugin_option(parser)
    _json_option(parser)
    return parser


def _method_options(group: Any, *, several: bool) -> None:
    if several:
        group.add_argument(
            "--method", metavar="NAME[,NAME...]", dest="methods", type=names, action="extend",
            help="how to edit, see `attnctl methods`; several draw one edit each",
        )  # fmt: skip
    group.add_argument(
        "--preset", metavar="[METHOD.]NAME", dest="presets", action="append", default=[],
        help="start from a method's named settings, see `attnctl methods NAME`",
    )  # fmt: skip
    group.add_argument(
        "--set", metavar="[METHOD.]NAME=VALUE", dest="settings", action="append", default=[],
        help="set one of a method's settings; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--modifier", metavar="NAME[,NAME...]", dest="modifiers", type=names, action="extend", default=[],
        help="add this to every edit, see `attnctl modifiers`; --set NAME.SETTING=VALUE is for its settings",
    )  # fmt: skip
    _plugin_option(group)


def _sampling_options(group: Any) -> None:
    group.add_argument("--seed", metavar="N", type=whole, help="seed of the start noise; default 0")
    add_sampling_arguments(group)
    group.add_argument(
        "--inversion", metavar="NAME",
        help="how to invert --image, see `attnctl inversions`; --set NAME.SETTING=VALUE is for its settings",
    )  # fmt: skip


def _plugin_option(group: Any) -> None:
    group.add_argument(
        "--plugin", metavar="FILE", dest="plugins", action="append", default=[], help="also load this plugin file"
    )


def _json_option(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="print JSON")


def _later(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command that imports its module when it is called."""

    def execute(arguments: argparse.Namespace) -> int:
        command: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(f"attnctl.cli.{module}"), name)
        return command(arguments)

    return execute
