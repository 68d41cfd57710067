"""`attnctl metrics` and `attnctl datasets`: what there is to judge with and to judge on."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl.command import Command
from attnctl.hookspecs import hookimpl

if TYPE_CHECKING:
    from attnctl.arguments import Parser
    from attnctl.registry import Registry


def _common(parser: Parser) -> None:
    parser.add_argument("--plugin", metavar="FILE", dest="plugins", action="append", default=[], help="also load this plugin file")  # fmt: skip # noqa: E501
    parser.add_argument("--json", action="store_true", help="print JSON")


class Metrics(Command):
    """List the metrics, or show one with its card."""

    name: ClassVar[str] = "metrics"
    help: ClassVar[str] = "list metrics, or show one with its card"
    description: ClassVar[str] = (
        "List the metrics and protocols, or show one metric: its settings, and the card that says exactly which number "
        "it gives, as far as its weights are on this machine."
    )
    examples: ClassVar[str] = "  attnctl metrics\n  attnctl metrics NAME --set NAME=VALUE"

    def add_arguments(self, parser: Parser) -> None:
        """Add what the command takes."""
        parser.add_argument("name", nargs="?", metavar="NAME", help="show this metric or protocol in full")
        parser.add_argument(
            "--set", metavar="NAME=VALUE", dest="settings", action="append", default=[],
            help="show the card for this setting of the metric",
        )  # fmt: skip
        _common(parser)

    def run(self, arguments: Namespace) -> int:
        """List or show."""
        from attnctl.cli.listing import warn_of_broken
        from attnctl.registry import Registry
        from attnctl.terminal import show, show_json, table
        from attnctl_evaluation.metrics.protocols import PROTOCOLS

        registry = Registry.load(arguments.plugins)
        if arguments.name in PROTOCOLS:
            return _show_protocol(arguments.name, arguments.json)
        if arguments.name is not None:
            return _show_metric(registry, arguments)
        names = sorted(registry.metrics)
        if arguments.json:
            protocols = [_protocol_data(name) for name in PROTOCOLS]
            show_json({"metrics": [_metric_data(registry, name) for name in names], "protocols": protocols})
            return 0
        rows = [
            (n, kind.summary, kind.better, ", ".join(kind.needs), registry.owners["metric", n])
            for n, kind in sorted(registry.metrics.items())
        ]
        lines = [(p.name, p.summary, ", ".join(c.label for c in p.columns)) for p in PROTOCOLS.values()]
        show(table(("metric", "what it measures", "better", "needs", "plugin"), rows))
        show("", table(("protocol", "what it is", "columns"), lines))
        warn_of_broken(registry)
        return 0


def _metric_data(registry: Registry, name: str) -> dict[str, Any]:
    from attnctl.config import describe_fields

    kind = registry.metrics[name]
    return {
        "name": name,
        "summary": kind.summary,
        "better": kind.better,
        "needs": list(kind.needs),
        "paper": kind.paper,
        "plugin": registry.owners["metric", name],
        "settings": describe_fields(kind.Config),
        "presets": {k: {"summary": p.summary, "settings": dict(p.settings)} for k, p in kind.presets.items()},
        "bibtex": kind.bibtex,
    }


def _show_metric(registry: Registry, arguments: Namespace) -> int:
    from attnctl.config import parse_assignments
    from attnctl.metric import UnavailableError
    from attnctl.terminal import facts, plain, show, show_json

    metric = registry.make_metric(arguments.name, parse_assignments(arguments.settings))
    data = _metric_data(registry, arguments.name)
    try:
        data["card"], data["unavailable"] = metric.card().as_dict(), ""
    except UnavailableError as error:
        data["card"], data["unavailable"] = None, f"{error.message}; {error.hint}"
    if arguments.json:
        show_json(data)
        return 0
    show(*_head(data))
    if data["card"] is None:
        show(plain(f"No card: {data['unavailable']}"))
    else:
        rows = [(k.replace("_", " "), _shown(v)) for k, v in data["card"].items() if v not in ("", None, {})]
        show(plain("Card with these settings:"), facts(rows))
    return 0


def _shown(value: Any) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def _head(data: Mapping[str, Any]) -> list[Any]:
    """Lay out what metrics and data sets have in common."""
    from attnctl.terminal import facts, plain, table

    about = [("paper", data["paper"]), ("plugin", data["plugin"])]
    if data.get("needs"):
        about.append(("needs", ", ".join(data["needs"])))
    parts: list[Any] = [plain(f"{data['name']}: {data['summary']}"), facts(p for p in about if p[1]), plain("")]
    if data["settings"]:
        rows = [(f["name"], f["default"], f["range"], f["description"]) for f in data["settings"]]
        parts += [table(("setting", "default", "allowed", "what it does"), rows), plain("")]
    if data["presets"]:
        lines = [(name, _shown(p["settings"]), p["summary"]) for name, p in data["presets"].items()]
        parts += [table(("preset", "settings", "what it gives"), lines), plain("")]
    if data["bibtex"]:
        parts += [plain(data["bibtex"]), plain("")]
    return parts


def _protocol_data(name: str) -> dict[str, Any]:
    from attnctl_evaluation.metrics.protocols import PROTOCOLS

    protocol = PROTOCOLS[name]
    columns = [{"column": c.label, "metric": c.metric, "settings": dict(c.settings)} for c in protocol.columns]
    return {"name": name, "summary": protocol.summary, "notes": list(protocol.notes), "columns": columns}


def _show_protocol(name: str, as_json: bool) -> int:
    from attnctl.terminal import plain, show, show_json, table

    data = _protocol_data(name)
    if as_json:
        show_json(data)
        return 0
    rows = [(c["column"], c["metric"], _shown(c["settings"])) for c in data["columns"]]
    show(plain(f"{name}: {data['summary']}"), plain(""), table(("column", "metric", "settings"), rows))
    for note in data["notes"]:
        show(plain(f"\n{note}"))
    return 0


class Datasets(Command):
    """List the data sets, or show one."""

    name: ClassVar[str] = "datasets"
    help: ClassVar[str] = "list data sets, or check and show one"
    description: ClassVar[str] = (
        "List the data sets, or show one. With what it needs, NAME/PRESET or NAME:PATH, it is read from beginning to "
        "end: cases are counted by edit type, missing pictures too, and a malformed line is named."
    )
    examples: ClassVar[str] = "  attnctl datasets\n  attnctl datasets NAME/PRESET\n  attnctl datasets NAME:PATH"

    def add_arguments(self, parser: Parser) -> None:
        """Add what the command takes."""
        parser.add_argument("name", nargs="?", metavar="NAME", help="NAME, NAME/PRESET or NAME:PATH")
        parser.add_argument(
            "--set", metavar="NAME=VALUE", dest="settings", action="append", default=[],
            help="set one of the data set's settings",
        )  # fmt: skip
        _common(parser)

    def run(self, arguments: Namespace) -> int:
        """List or show."""
        from attnctl.cli.listing import warn_of_broken
        from attnctl.registry import Registry
        from attnctl.terminal import show, show_json, table

        registry = Registry.load(arguments.plugins)
        if arguments.name is not None:
            return _show_dataset(registry, arguments)
        names = sorted(registry.datasets)
        if arguments.json:
            show_json([_dataset_data(registry, name) for name in names])
            return 0
        rows = [
            (
                f"{n}:PATH" if kind.needs_path else n,
                kind.summary,
                ", ".join(kind.presets),
                registry.owners["dataset", n],
            )
            for n, kind in sorted(registry.datasets.items())
        ]
        show(table(("data set", "what it holds", "presets", "plugin"), rows))
        warn_of_broken(registry)
        return 0


def _dataset_data(registry: Registry, name: str) -> dict[str, Any]:
    from attnctl.config import describe_fields

    kind = registry.datasets[name]
    return {
        "name": name,
        "summary": kind.summary,
        "needs_path": kind.needs_path,
        "paper": kind.paper,
        "plugin": registry.owners["dataset", name],
        "settings": describe_fields(kind.Config),
        "presets": {k: {"summary": p.summary, "settings": dict(p.settings)} for k, p in kind.presets.items()},
        "bibtex": kind.bibtex,
    }


def _show_dataset(registry: Registry, arguments: Namespace) -> int:
    from attnctl.config import parse_assignments
    from attnctl.dataset import DatasetSpec
    from attnctl.errors import unknown
    from attnctl.terminal import facts, plain, show, show_json, table

    spec = DatasetSpec.parse(arguments.name)
    settings = parse_assignments(arguments.settings)
    if spec.name not in registry.datasets:
        raise unknown("data set", spec.name, registry.datasets)
    data = _dataset_data(registry, spec.name)
    if data["needs_path"] and spec.path is None and "path" not in settings:
        data["cases"] = None
    else:
        dataset = registry.make_dataset(spec, settings)
        cases = dataset.cases()
        data["cases"] = len(cases)
        data["edit_types"] = dict(Counter(case.edit_type for case in cases))
        data["missing"] = [{"id": case.id, "why": case.missing} for case in cases if case.missing]
        data["fingerprint"] = dataset.fingerprint()
        data["examples"] = [{"id": c.id, "source": c.source_prompt, "prompt": c.prompt} for c in cases[:3]]
    if arguments.json:
        show_json(data)
        return 0
    show(*_head(data))
    if data["cases"] is None:
        show(plain(f"It reads your files: say {spec.name}:PATH to check them."))
        return 0
    missing = f", {len(data['missing'])} of them without their picture" if data["missing"] else ""
    rows = [("cases", f"{data['cases']}{missing}"), ("fingerprint", data["fingerprint"][:16])]
    if data["missing"]:
        rows.append(("first missing", f"{data['missing'][0]['id']}: {data['missing'][0]['why']}"))
    show(facts(rows), plain(""), table(("edit type", "cases"), data["edit_types"].items(), right=("cases",)))
    show(plain(""), table(("case", "source", "target"), [tuple(e.values()) for e in data["examples"]]))
    return 0


@hookimpl
def attnctl_commands() -> list[type[Command]]:
    """Return both."""
    return [Metrics, Datasets]
