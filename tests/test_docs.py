"""What the documentation says is run, parsed or looked up, so that it cannot rot."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import pkgutil
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"""^(?P<indent> *)```(?P<kind>[\w-]*)(?: title="(?P<title>[^"]+)")?\n(?P<body>.*?)^(?P=indent)```$""",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced code block and where it stands."""

    page: Path
    line: int
    kind: str
    body: str
    title: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, kind: str) -> list[Block]:
    """The fenced blocks of one kind on a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["kind"] == kind:
            body = "".join(line[len(match["indent"]) :] for line in match["body"].splitlines(keepends=True))
            found.append(Block(page, text.count("\n", 0, match.start()) + 1, kind, body, match["title"] or ""))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a console block: what follows `$ `, split at `&&` and pipes."""
    found, text = [], block.body.replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("$ "):
            found += [part.strip() for part in re.split(r"&&|\||;", line[2:])]
    return found


ATTNCTL_COMMANDS = [
    pytest.param(words[1:], id=f"{block}: {' '.join(words[1:])}")
    for page in PAGES
    for block in blocks(page, "console")
    for command in commands(block)
    if (words := shlex.split(command, comments=True)) and Path(words[0]).name == "attnctl"
]
PAGES_WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


def headings(name: str) -> list[str]:
    """The headings of one page below docs, without their marks and code quotes."""
    text = FENCE.sub("", (ROOT / "docs" / name).read_text(encoding="utf-8"))
    return [h.replace("`", "").strip() for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    from attnctl.cli import build_parser

    return build_parser()


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace for each page, in an empty folder; one with a title is a file there, too."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for block in blocks(page, "python"):
        if block.title:
            Path(block.title).write_text(block.body, encoding="utf-8")
        source = "\n" * block.line + block.body  # a traceback then names the line of the page
        exec(compile(source, str(page), "exec"), namespace)


@pytest.mark.parametrize("arguments", ATTNCTL_COMMANDS)
def test_attnctl_commands_parse(arguments: list[str], parser: argparse.ArgumentParser) -> None:
    parser.parse_args(arguments)


def test_the_readme_has_two_marked_commands_at_the_top() -> None:
    """One that edits, one that tests; `.ci/run` takes them from there."""
    top = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert re.findall(r"<!-- command: (\w+) -->\n```console\n\$ ", top) == ["run", "test"]
    run, test = (block.body for block in blocks(ROOT / "README.md", "console")[:2])
    assert run.strip().endswith("attnctl run --method fpe")
    assert "nox -s tests" in test
    assert top.count("```console") == 2


def test_nox_sessions_in_the_docs_exist() -> None:
    defined = set(re.findall(r"^def (\w+)\(session: nox\.Session\) -> None", (ROOT / "noxfile.py").read_text(), re.M))
    said = {
        name
        for page in PAGES
        for names in re.findall(r"nox -s ((?:[a-z]+ ?)+)", page.read_text(encoding="utf-8"))
        for name in names.split()
    }
    assert said
    assert said <= defined


def test_every_error_has_a_section() -> None:
    import attnctl
    from attnctl.errors import AttnctlError

    for module in pkgutil.walk_packages(attnctl.__path__, "attnctl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    errors, open_classes = {AttnctlError}, [AttnctlError]
    while open_classes:
        found = [c for c in open_classes.pop().__subclasses__() if c.__module__.startswith("attnctl.")]
        errors.update(found)
        open_classes += found
    missing = {e.__name__ for e in errors if not e.__name__.startswith("_")} - set(headings("errors.md"))
    assert not missing


def test_every_hook_has_a_section() -> None:
    from attnctl import hookspecs

    hooks = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("attnctl_")]
    assert hooks
    assert set(hooks) <= set(headings("plugins.md"))


def test_the_command_line_page_is_up_to_date(parser: argparse.ArgumentParser) -> None:
    """A section for each command, with every option and its help."""
    spec = importlib.util.spec_from_file_location("cli_docs", ROOT / "tools" / "cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    cli_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cli_docs)
    names = [name for name, _ in cli_docs.commands(parser)]
    assert "run" in names
    assert {f"attnctl {name}" for name in names} <= set(headings("cli.md"))
    page = cli_docs.PAGE.read_text(encoding="utf-8")
    assert page == cli_docs.updated(page, parser), "run `python tools/cli_docs.py`"
