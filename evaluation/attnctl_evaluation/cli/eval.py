"""`attnctl eval`: score pictures that any other code made."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl.command import Command
from attnctl.hookspecs import hookimpl

if TYPE_CHECKING:
    from attnctl.arguments import Parser
    from attnctl.registry import Registry


class Eval(Command):
    """Measure pictures that are there already."""

    name: ClassVar[str] = "eval"
    help: ClassVar[str] = "score pictures that any other code made"
    description: ClassVar[str] = (
        "Measure edited pictures that are there already, whatever made them, with the metrics of `attnctl compare`, "
        "and write the same folder, from which the same report is made. Pictures are found by the ids of cases: "
        "METHOD/CASE.png for several methods, CASE.png for one; those that are not there are counted as missing. "
        "What was measured already, on the same files, is not measured again."
    )
    examples: ClassVar[str] = (
        "  attnctl eval --outputs RESULTS --dataset pie-bench:PATH --metrics pie-bench/v1-official --strip\n"
        "  attnctl eval --outputs RESULTS --dataset microbench/tiny --source-folder SOURCES"
    )

    def add_arguments(self, parser: Parser) -> None:
        """Add what the command takes."""
        from attnctl.arguments import names, whole

        add = parser.add_argument
        add("--outputs", metavar="FOLDER", required=True, help="METHOD/CASE.png or CASE.png, other kinds of pictures and folders between included")  # fmt: skip # noqa: E501
        add("--dataset", metavar="NAME", required=True, help="NAME, NAME/PRESET or NAME:PATH, see `attnctl datasets`")
        add("--methods", metavar="NAME[,NAME...]", type=names, default=[], help="only these folders")
        add("--source-folder", metavar="FOLDER", help="CASE.png: sources of cases that have no picture of their own")
        add("--strip", action="store_true", help="take the rightmost square of wide pictures, as PIE-Bench's evaluation does with its strips")  # fmt: skip # noqa: E501
        add("--metrics", metavar="NAME[,NAME...]", type=names, help="protocols and metrics; default: what suits the data set")  # fmt: skip # noqa: E501
        add("--set", metavar="OWNER.NAME=VALUE", dest="settings", action="append", default=[], help="set a setting of a metric or of the data set")  # fmt: skip # noqa: E501
        add("--edit-type", metavar="NAME[,NAME...]", dest="edit_types", type=names, default=[], help="only cases of these types")  # fmt: skip # noqa: E501
        add("--device", metavar="NAME", default="cpu", help="where networks of metrics run; default cpu")
        add("--threads", metavar="N", type=whole, help="torch threads; default: torch's own choice")
        add("--title", metavar="TEXT", default="", help="a line for the report's heading")
        add("--plugin", metavar="FILE", dest="plugins", action="append", default=[], help="also load this plugin file")
        add("--out", metavar="FOLDER", help="folder to write to, or to continue; default: one in attnctl-runs named after OUTPUTS")  # fmt: skip # noqa: E501
        add("--force", action="store_true", help="start over where FOLDER holds a run")
        add("--quiet", action="store_true", help="no progress")
        add("--json", action="store_true", help="print one JSON object on stdout and nothing else there")

    def run(self, arguments: Namespace) -> int:
        """Score."""
        from attnctl.dataset import DatasetSpec
        from attnctl.files import real, slug
        from attnctl.loading import pick_device
        from attnctl.registry import Registry
        from attnctl.runs.runfolder import DEFAULT_ROOT
        from attnctl_evaluation.benchmark.compare import Outcome
        from attnctl_evaluation.benchmark.outputs import OutputsSpec, check_folder, evaluate, find_outputs
        from attnctl_evaluation.benchmark.plan import choose_cases
        from attnctl_evaluation.benchmark.resolve import DEFAULT_METRICS, GENERAL_METRICS
        from attnctl_evaluation.benchmark.table import show_outcome

        registry = Registry.load(arguments.plugins)
        metric_settings, dataset_settings = _settings(arguments, registry)
        dataset = registry.make_dataset(arguments.dataset, dataset_settings)
        named = DatasetSpec.parse(arguments.dataset).name
        metrics = arguments.metrics or list(DEFAULT_METRICS.get(named, GENERAL_METRICS))
        config = {
            "eval": {"outputs": arguments.outputs, "strip": arguments.strip, "source_folder": arguments.source_folder},
            "dataset": arguments.dataset, "dataset_settings": dataset_settings, "metrics": metrics,
            "metric_settings": metric_settings, "edit_types": arguments.edit_types, "device": arguments.device,
        }  # fmt: skip
        sources = None if arguments.source_folder is None else Path(arguments.source_folder).expanduser()
        check_folder(sources)
        spec = OutputsSpec(
            outputs=Path(arguments.outputs).expanduser(),
            dataset=arguments.dataset,
            cases=choose_cases(dataset.cases(), arguments.edit_types),
            source_folder=sources,
            strip=arguments.strip,
            methods=arguments.methods,
            device=str(pick_device(arguments.device)),
            title=arguments.title,
            config=config,
        )
        find_outputs(spec)  # before weights are loaded
        panel = _panel(arguments, metrics, metric_settings, registry, spec.device)
        default = DEFAULT_ROOT / f"eval-{slug(real(spec.outputs).name)}-{slug(arguments.dataset)[:40]}"
        out = Path(arguments.out).expanduser() if arguments.out else default
        results = evaluate(spec, dataset, panel, out, force=arguments.force, quiet=arguments.quiet)
        wanted = len(spec.cases) * len(results.header.methods)
        return show_outcome(Outcome(out, results, wanted, wanted), as_json=arguments.json)


def _panel(
    arguments: Namespace, metrics: list[str], settings: dict[str, dict[str, Any]], registry: Registry, device: str
) -> Any:
    import torch

    from attnctl_evaluation.metrics.protocols import build_panel

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    return build_panel(metrics, registry, settings=settings, device=device)


def _settings(arguments: Namespace, registry: Registry) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Sort ``OWNER.NAME=VALUE`` into settings of metrics and those of the data set."""
    from attnctl.config import parse_assignments
    from attnctl.dataset import DatasetSpec
    from attnctl.errors import unknown

    named = DatasetSpec.parse(arguments.dataset).name
    metrics: dict[str, dict[str, Any]] = {}
    dataset: dict[str, Any] = {}
    for key, value in parse_assignments(arguments.settings).items():
        owner, _, name = key.partition(".")
        if owner == named and name:
            dataset[name] = value
        elif owner in registry.metrics and name:
            metrics.setdefault(owner, {})[name] = value
        else:
            raise unknown("owner of a setting", owner, [named, *registry.metrics])
    return metrics, dataset


@hookimpl
def attnctl_commands() -> list[type[Command]]:
    """Return it."""
    return [Eval]
