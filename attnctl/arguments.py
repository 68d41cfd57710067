"""An argument parser whose faults are `InputError`s, and the types of values that options take."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from attnctl.errors import InputError, nearest_first, unknown
from attnctl.loading import DTYPES, EMBEDDED
from attnctl.request import GUIDANCE, STEPS
from attnctl.sampling import SCHEDULERS
from attnctl.terminal import quoted


class Formatter(argparse.HelpFormatter):
    """Wraps paragraphs to the terminal, and leaves those with indented lines (examples) as they are."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=26, **options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(p if "\n  " in p else textwrap.fill(p, width) for p in parts)


class Parser(argparse.ArgumentParser):
    """Like argparse's, but raises instead of exiting, names the nearest option, and takes no abbreviations."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Formatter, "allow_abbrev": False, **options})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse all arguments.

        Raises:
            InputError: An argument is unknown, missing or malformed.
        """
        found, extra = self.parse_known_args(args, namespace)
        if extra:
            commands = _commands(self)
            commands.get(getattr(found, "command", None) or "", self).refuse(extra[0])
        return found

    def refuse(self, word: str) -> NoReturn:
        """Raise the error for an argument that this parser does not know."""
        more = f"`{self.prog} --help` lists all options"
        if word.startswith("-") and word != "-":
            option = word.partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            nearest = nearest_first(option, [name for name in known if name.startswith("--")])[0]
            raise InputError(f"{self.prog} has no option {quoted(option)}", hint=f"did you mean {nearest}? {more}")
        raise InputError(
            f"{self.prog} does not expect {quoted(word)}", hint=f"put quotes around text with spaces; {more}"
        )

    def error(self, message: str) -> NoReturn:
        """Raise argparse's own complaints, such as a missing value."""
        raise InputError(message.removeprefix("argument "), hint=f"`{self.prog} --help` lists all options")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not among the choices, the nearest first."""
        if action.choices is not None and value not in action.choices:
            kind = "command" if action.dest == "command" else (action.metavar or action.dest)
            raise unknown(str(kind), str(value), [str(choice) for choice in action.choices])


def _commands(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def add_inversion_arguments(parser: Any) -> None:
    """Add what `attnctl invert` takes beside the options of model and sampling."""
    what = parser.add_argument_group("what to invert")
    what.add_argument("--image", metavar="FILE", required=True, help="the picture")
    what.add_argument(
        "--source-prompt", metavar="TEXT", type=text, default="", help="what it shows; default: nothing is said"
    )
    what.add_argument(
        "--fit", default="crop", metavar="HOW",
        help="how a picture comes to the size: crop (default), stretch, nearest-stretch",
    )  # fmt: skip
    what.add_argument(
        "--preset", metavar="NAME", help="start from an inversion's named settings, see `attnctl inversions NAME`"
    )
    what.add_argument(
        "--set", metavar="NAME=VALUE", dest="settings", action="append", default=[],
        help="set one of the inversion's settings; may be given several times",
    )  # fmt: skip
    what.add_argument(
        "--plugin", metavar="FILE", dest="plugins", action="append", default=[], help="also load this plugin file"
    )
    what.add_argument("--metrics", metavar="NAME[,NAME...]", type=names, help="measure with these too; default: LPIPS")
    what.add_argument("--out", metavar="FILE", help="write the reconstruction to this PNG file, which must not exist")
    what.add_argument("--no-cache", action="store_true", help="neither look for a kept inversion nor keep this one")
    what.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")


def add_model_arguments(parser: Any, *, default: str | None = EMBEDDED) -> None:
    """Add what says which model is meant and where it runs: what `attnctl.loading.load_model` takes.

    Args:
        parser: A parser, or a group of one.
        default: The model if none is named; None where a file may name it.
    """
    parser.add_argument(
        "--model", metavar="NAME", default=default,
        help=f"a folder in diffusers' layout, a .safetensors file, a hub name OWNER/NAME, or {EMBEDDED} (default), "
        "the small model that comes with attnctl",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub model")
    parser.add_argument("--dtype", metavar="TYPE", help=f"{', '.join(DTYPES)}; default: float32 on a CPU, else float16")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:0, mps; default: the best there is")
    parser.add_argument("--config", metavar="FOLDER", help="configuration for a .safetensors file that does not tell")


def add_sampling_arguments(parser: Any) -> None:
    """Add what `attnctl.request.Sampling.of` reads, save the seed; what is not given stays None."""
    parser.add_argument("--steps", metavar="N", type=whole, help=f"denoising steps; default: the model's, else {STEPS}")
    parser.add_argument(
        "--guidance", metavar="G", type=number,
        help="classifier-free guidance, at least 1; 1 is the conditional prediction alone; "
        f"default: the model's, else {GUIDANCE}",
    )  # fmt: skip
    parser.add_argument(
        "--negative-prompt", metavar="TEXT", type=text, help="text of the unconditional half; default: none"
    )
    add_size_argument(parser)
    parser.add_argument(
        "--scheduler", metavar="NAME",
        help=f"{', '.join(SCHEDULERS)}; default ddim, which real pictures need",
    )  # fmt: skip
    parser.add_argument(
        "--max-rows", metavar="N", type=whole, help="at most so many rows in one denoiser call, to save memory"
    )


def add_size_argument(parser: Any) -> None:
    """Add the size of pictures."""
    parser.add_argument(
        "--size", metavar="HxW", type=picture_size, help="height and width in pixels; default: the model's"
    )


def text(word: str) -> str:
    """Read text as UTF-8 whatever encoding Python took the command line for; bytes that are none stay as they are.

    Paths are not for this: the operating system wants them back as they came.
    """
    try:
        return os.fsencode(word).decode("utf-8") if any("\ud800" <= c <= "\udfff" for c in word) else word
    except UnicodeError:
        return word


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {quoted(text)}") from None


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {quoted(text)}") from None


def picture_size(text: str) -> tuple[int, int]:
    """Read ``HEIGHTxWIDTH`` in pixels; one number means a square."""
    height, cross, width = text.lower().replace("×", "x").partition("x")  # noqa: RUF001
    try:
        size = int(height), int(width if cross else height)
    except ValueError:
        size = 0, 0
    if min(size) < 1:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels such as 512x768, found {quoted(text)}")
    return size


def names(text: str) -> list[str]:
    """Read names separated by commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, found {quoted(text)}")
    return found
