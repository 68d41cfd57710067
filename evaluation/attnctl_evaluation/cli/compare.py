"""`attnctl compare`: methods over a data set."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attnctl.command import Command
from attnctl.hookspecs import hookimpl

if TYPE_CHECKING:
    from attnctl.arguments import Parser


class Compare(Command):
    """Edit every case of a data set with every method, and measure the pictures."""

    name: ClassVar[str] = "compare"
    help: ClassVar[str] = "compare methods over a data set"
    description: ClassVar[str] = (
        "Edit every case of a data set with every method, measure the pictures, and write a folder that `attnctl "
        "report` turns into a page. It may be stopped at any moment, even by force: the same command continues, and "
        "the folder comes out the same to the byte. A case that fails is recorded with its error, and the rest goes "
        "on.\n\n"
        "Exit codes: 0 all rows are there; 1 some rows failed, which is said; 2 something that you can mend; "
        "130 interrupted, 143 by SIGTERM."
    )
    examples: ClassVar[str] = (
        "  attnctl compare --dataset microbench/tiny --methods none,fpe,p2p\n"
        "  attnctl compare --dataset pie-bench:PATH --methods fpe,p2p --inversion direct --seeds 3 --out FOLDER\n"
        "  attnctl compare FILE.toml --shard 2/8 --out FOLDER-2"
    )

    def add_arguments(self, parser: Parser) -> None:
        """Add what the command takes."""
        from attnctl.arguments import names

        parser.add_argument(
            "file", nargs="?", metavar="FILE",
            help="TOML file that says what the options say, or the folder of a run to continue; options win over it",
        )  # fmt: skip
        _what(parser.add_argument_group("what to compare"), names)
        _sampling(parser.add_argument_group("model and sampling"))
        _how(parser.add_argument_group("how"))

    def run(self, arguments: Namespace) -> int:
        """Compare."""
        from attnctl.budget import MAX_WORKERS, within
        from attnctl.errors import InputError
        from attnctl.registry import Registry
        from attnctl_evaluation.benchmark.arguments import read_spec, run_folder
        from attnctl_evaluation.benchmark.compare import Options, compare
        from attnctl_evaluation.benchmark.plan import Shard
        from attnctl_evaluation.benchmark.resolve import resolve
        from attnctl_evaluation.benchmark.table import show_outcome

        if arguments.workers < 1:
            raise InputError(f"--workers must be at least 1, found {arguments.workers}", hint="1 works in one process")
        within("the number of --workers", arguments.workers, MAX_WORKERS, hint="one for each core is enough")
        if arguments.case_timeout is not None and not arguments.case_timeout > 0:
            raise InputError(
                f"--case-timeout must be more than 0 seconds, found {arguments.case_timeout:g}",
                hint="give the longest time that one case may honestly take",
            )
        shard = None if arguments.shard is None else Shard.parse(arguments.shard)
        registry = Registry.load(arguments.plugins)
        spec = read_spec(arguments, registry)
        if spec.plugins and set(spec.plugins) != set(arguments.plugins):
            registry = Registry.load(spec.plugins)
        options = Options(
            out=Path(arguments.out).expanduser() if arguments.out else run_folder(arguments.file),
            force=arguments.force,
            retry_failed=arguments.retry_failed,
            workers=arguments.workers,
            engine=arguments.engine,
            address=arguments.ray_address,
            shard=shard,
            case_timeout=arguments.case_timeout,
            quiet=arguments.quiet,
        )
        outcome = compare(resolve(spec, registry), registry, options)
        return show_outcome(outcome, as_json=arguments.json)


def _what(group: object, names: object) -> None:
    add = group.add_argument  # type: ignore[attr-defined]
    add("--dataset", metavar="NAME", help="NAME, NAME/PRESET or NAME:PATH, see `attnctl datasets`")
    add("--methods", metavar="NAME[,NAME...]", type=names, help="see `attnctl methods`; with FILE, labels in it")
    add("--inversion", metavar="NAME", help="how real pictures are inverted, for every method that leaves a choice; default: as each method asks")  # fmt: skip # noqa: E501
    add("--metrics", metavar="NAME[,NAME...]", type=names, help="protocols and metrics, see `attnctl metrics`; default: what suits the data set")  # fmt: skip # noqa: E501
    add("--seeds", metavar="N|S,S...", type=seed_list, help="so many seeds, from 0; or these, separated by commas; default: seed 0")  # fmt: skip # noqa: E501
    add("--set", metavar="[OWNER.]NAME=VALUE", dest="settings", action="append", default=[], help="set a setting of a method (or its label), inversion, modifier, metric or the data set")  # fmt: skip # noqa: E501
    add("--preset", metavar="[METHOD.]NAME", dest="presets", action="append", default=[], help="start from a method's named settings")  # fmt: skip # noqa: E501
    add("--modifier", metavar="NAME[,NAME...]", dest="modifiers", type=names, action="extend", default=[], help="add this to every method")  # fmt: skip # noqa: E501
    add("--baseline", metavar="LABEL", help="what the others are compared with; default: none if it takes part, else the first")  # fmt: skip # noqa: E501
    add("--limit", metavar="N", type=int, help="only N cases, spread evenly over the data set")
    add("--edit-type", metavar="NAME[,NAME...]", dest="edit_types", type=names, help="only cases of these types")
    add("--title", metavar="TEXT", help="a line for the report's heading")
    add("--plugin", metavar="FILE", dest="plugins", action="append", default=[], help="also load this plugin file")


def _sampling(group: object) -> None:
    from attnctl.arguments import add_model_arguments, add_sampling_arguments, whole

    add_model_arguments(group, default=None)
    add_sampling_arguments(group)
    add = group.add_argument  # type: ignore[attr-defined]
    add("--threads", metavar="N", type=whole, help="torch threads of each process; default: those of the run that is continued, else this machine's cores shared among the workers")  # fmt: skip # noqa: E501


def _how(group: object) -> None:
    from attnctl.arguments import number, whole

    add = group.add_argument  # type: ignore[attr-defined]
    add("--out", metavar="FOLDER", help="folder to write to, or to continue; default: one in attnctl-runs that is named after what is asked, so that asking again continues")  # fmt: skip # noqa: E501
    add("--force", action="store_true", help="start over where FOLDER holds a run")
    add("--retry-failed", action="store_true", help="make rows that failed again")
    add("--shard", metavar="I/N", help="only this part of the cases, counted from 1; `attnctl merge` puts parts together")  # fmt: skip # noqa: E501
    add("--workers", metavar="N", type=whole, default=1, help="number of processes; default 1")
    add("--case-timeout", metavar="SECONDS", type=number, help="with several workers, or given here: a worker that takes longer to load or for one case is ended, and the case tried again once, then recorded as failed; default 14400")  # fmt: skip # noqa: E501
    add("--engine", metavar="NAME", choices=("local", "ray"), default="local", help="local (default), or ray for a Ray cluster")  # fmt: skip # noqa: E501
    add("--ray-address", metavar="ADDRESS", help="the Ray cluster; default: the one this machine is part of, else a new one here")  # fmt: skip # noqa: E501
    add("--quiet", action="store_true", help="no progress")
    add("--json", action="store_true", help="print one JSON object on stdout and nothing else there")


def seed_list(text: str) -> list[int]:
    """Read ``3`` as the seeds 0, 1 and 2, and ``4,7`` or ``4,`` as these seeds."""
    from attnctl.terminal import quoted

    if not re.fullmatch(r"\s*[0-9]{1,10}\s*(,\s*[0-9]{1,10}\s*)*,?\s*", text):
        raise ArgumentTypeError(f"expected a number of seeds or seeds separated by commas, found {quoted(text)}")
    if "," in text:
        return [int(part) for part in text.split(",") if part.strip()]
    if not 1 <= int(text) <= 10_000:
        raise ArgumentTypeError(f"expected 1 to 10000 seeds, found {quoted(text)}; one seed is said {text.strip()},")
    return list(range(int(text)))


@hookimpl
def attnctl_commands() -> list[type[Command]]:
    """Return it."""
    return [Compare]
