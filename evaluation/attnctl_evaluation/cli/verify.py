"""`attnctl verify`: does a run reproduce?"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attnctl.command import Command
from attnctl.hookspecs import hookimpl

if TYPE_CHECKING:
    from attnctl.arguments import Parser
    from attnctl_evaluation.verify import Verdict


class Verify(Command):
    """Do a recorded run again, and compare."""

    name: ClassVar[str] = "verify"
    help: ClassVar[str] = "do a recorded run again and say whether it reproduces"
    description: ClassVar[str] = (
        "Do again what the record of RUN says, a folder of `attnctl run` or `attnctl compare`, and compare pictures "
        "and scores with the recorded ones. Exit code 0: they are the same, but for rounding at most (--tolerance); 1: "
        "they are not. What differs between the two machines is listed."
    )
    examples: ClassVar[str] = (
        "  attnctl verify attnctl-runs/fpe-0-1\n"
        "  attnctl verify my-comparison --sample 10\n"
        "  attnctl verify their-run --image photo.png --model /models/sd-1.5"
    )

    def add_arguments(self, parser: Parser) -> None:
        """Add what the command takes."""
        from attnctl.arguments import number, whole
        from attnctl_evaluation.verify import TOLERANCE

        parser.add_argument("run", metavar="RUN", help="the run's folder")
        parser.add_argument(
            "--tolerance", metavar="DB", type=number, default=TOLERANCE,
            help="PSNR in dB from which two pictures count as the same but for rounding; "
            f"default {TOLERANCE:g}",
        )  # fmt: skip
        parser.add_argument(
            "--sample", metavar="N", type=whole, help="of a comparison, do only N cases, drawn by --seed; default: all"
        )
        parser.add_argument("--seed", metavar="N", type=whole, default=0, help="seed of the sample; default 0")
        where = parser.add_argument_group("what lies elsewhere on this machine")
        where.add_argument("--model", metavar="NAME", help="use this model instead of the recorded name")
        where.add_argument("--image", metavar="FILE", help="the real picture that was edited")
        where.add_argument("--mask", metavar="FILE", help="the mask")
        where.add_argument("--device", metavar="NAME", help="run on this device; default: as recorded in the command")
        where.add_argument(
            "--plugin", metavar="FILE", dest="plugins", action="append", default=[],
            help="load this plugin file; those of the record are not loaded by themselves, since that runs code",
        )  # fmt: skip
        parser.add_argument(
            "--integrity", action="store_true",
            help="run nothing: only look whether the folder is what was written, by the digests that it holds",
        )  # fmt: skip
        parser.add_argument("--keep", metavar="DIR", help="keep what was made again in this new folder")
        parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    def run(self, arguments: Namespace) -> int:
        """Do it again and compare."""
        import tempfile

        from attnctl.errors import InputError
        from attnctl.runs.runfolder import open_run_folder
        from attnctl.terminal import show_json

        if arguments.sample is not None and arguments.sample < 1:
            raise InputError(
                f"--sample must be at least 1, found {arguments.sample}", hint="leave it out for all cases"
            )
        folder = Path(arguments.run)
        if arguments.integrity:
            return _integrity(folder, as_json=arguments.json)
        with tempfile.TemporaryDirectory(prefix="attnctl-verify-") as scratch:
            kept = Path(scratch) / "again" if arguments.keep is None else open_run_folder(arguments.keep).path
            verdict = _verify(folder, arguments, kept)
        if arguments.json:
            show_json(verdict.as_dict())
        else:
            _show(verdict)
        return 0 if verdict.outcome != "different" else 1


def _integrity(folder: Path, *, as_json: bool) -> int:
    from attnctl.terminal import plain, show, show_json
    from attnctl_evaluation.integrity import check_integrity

    looked, faults = check_integrity(folder)
    if as_json:
        show_json({"files": looked, "faults": faults, "intact": not faults})
    else:
        show(*(plain(fault) for fault in faults))
        show(plain(f"{looked} files are what was written." if not faults else f"{len(faults)} faults."))
    return 1 if faults else 0


def _verify(folder: Path, arguments: Namespace, out: Path) -> Verdict:
    from attnctl.errors import InputError
    from attnctl.files import shown
    from attnctl_evaluation.verify import Replacements, verify_run

    replaced = Replacements(
        arguments.model, arguments.image, arguments.mask, arguments.device, tuple(arguments.plugins)
    )
    if (folder / "manifest.json").is_file():
        return verify_run(folder, replaced, arguments.tolerance, out)
    if (folder / "run.json").is_file():
        from attnctl_evaluation.verify_comparison import verify_comparison

        return verify_comparison(folder, replaced, arguments.tolerance, out, arguments.sample, arguments.seed)
    raise InputError(
        f"{shown(folder)} holds no run: there is neither a manifest.json nor a run.json",
        hint="name a folder that `attnctl run` or `attnctl compare` wrote",
    )


def _show(verdict: Verdict) -> None:
    from attnctl.terminal import plain, show, table
    from attnctl_evaluation.verify import worst_first

    rows = [
        (p.name, p.outcome, "" if p.psnr is None else f"{p.psnr:.1f}", "" if p.largest is None else p.largest, p.note)
        for p in worst_first(verdict.pictures)[:20]
    ]
    columns = ("picture", "outcome", "PSNR (dB)", "largest difference (of 255)", "")
    show(table(columns, rows, right=columns[2:4]))
    if len(verdict.pictures) > len(rows):
        show(plain(f"and {len(verdict.pictures) - len(rows)} more, no worse than these"))
    for heading, lines in (
        ("Files that are not what the record says:", verdict.damaged),
        ("Where the record differs from the run:", verdict.record),
        ("Scores that differ:", verdict.scores),
        ("What differs between then and now:", verdict.environment),
    ):
        if lines:
            show(plain(""), plain(heading), *(plain(f"  {line}") for line in lines[:20]))
    sentences = {
        "identical": "It reproduces: every pixel is equal.",
        "close": f"It reproduces but for rounding: every picture is within {verdict.tolerance:g} dB.",
        "different": "It does not reproduce.",
    }
    show(plain(""), plain(sentences[verdict.outcome]))
    if verdict.skipped:
        show(plain(f"A sample: {verdict.skipped} other rows were not tried."))


@hookimpl
def attnctl_commands() -> list[type[Command]]:
    """Return it."""
    return [Verify]
