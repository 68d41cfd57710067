"""The shape of the source tree: who imports whom, what core may not know, how long things may get."""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAY_IMPORT = {
    "attnctl": {"attnctl"},
    "attnctl_plugins": {"attnctl", "attnctl_plugins"},
    "attnctl_evaluation": {"attnctl", "attnctl_evaluation"},
}
HEAVY = {"accelerate", "diffusers", "lpips", "open_clip", "peft", "torch", "torchvision", "transformers"}
# Import name -> distribution name, where the two differ by more than a dash.
DISTRIBUTIONS = {"PIL": "pillow", "open_clip": "open-clip-torch", "yaml": "pyyaml"}
# Built-in methods and inversions whose name is also an ordinary word, a scheduler or a part of diffusers' interface:
# the search cannot tell.
ORDINARY_WORDS = {"none", "ddim", "negative-prompt"}


def sources(folder: Path) -> list[Path]:
    """Every Python file of one package, sorted; fails rather than pass on an empty folder."""
    files = sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)
    assert files, f"no Python file in {folder}"
    return files


def imported_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every absolute module name imported anywhere in a file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_one_way(package: str, packages: dict[str, Path], root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}:{line} imports {name}"
        for path in sources(packages[package])
        for name, line in imported_names(ast.parse(path.read_text()))
        if name.partition(".")[0] in set(MAY_IMPORT) - MAY_IMPORT[package]
    ]
    assert not wrong


def module_files(packages: dict[str, Path]) -> dict[str, Path]:
    """Module name -> file, of all three packages."""
    return {
        ".".join((name, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for name, folder in packages.items()
        for path in sources(folder)
    }


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports anywhere, for types alone and inside functions too."""
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in files else node.module for name in inner}
        graph[module] = (found & set(files)) - {module}
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Modules that a module leads to, itself only if there is a way back."""
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += graph[module]
    return seen


def test_no_module_leads_back_to_itself(packages: dict[str, Path]) -> None:
    """Neither at import time, nor inside functions, nor for types: each file can be read before those that use it."""
    graph = import_graph(module_files(packages))
    ways = {module: reachable(graph, module) for module in graph}
    circles = {tuple(sorted(m for m in ways[start] if start in ways[m])) for start in graph if start in ways[start]}
    assert not circles


def test_a_circle_would_be_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert [m for m in graph if m in reachable(graph, m)] == ["a", "b", "c"]


def test_plugins_import_no_machinery(packages: dict[str, Path], root: Path) -> None:
    """What a plugin may import lies flat in `attnctl/`; folders are machinery."""
    machinery = {p.name for p in packages["attnctl"].iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert {"engine", "families", "runs", "cli"} <= machinery
    wrong = [
        f"{path.relative_to(root)}:{line} imports {name}"
        for path in sources(packages["attnctl_plugins"])
        for name, line in imported_names(ast.parse(path.read_text()))
        if name.split(".")[0] == "attnctl" and len(name.split(".")) > 1 and name.split(".")[1] in machinery
    ]
    assert not wrong


def test_library_code_of_the_evaluation_knows_no_command_line(packages: dict[str, Path], root: Path) -> None:
    """Its own commands may use the core's; everything else runs in workers and notebooks, where there is none."""
    folder = packages["attnctl_evaluation"]
    wrong = [
        f"{path.relative_to(root)}:{line} imports {name}"
        for path in sources(folder)
        for name, line in imported_names(ast.parse(path.read_text()))
        if name.startswith(("attnctl.cli", "attnctl_evaluation.cli")) and not path.is_relative_to(folder / "cli")
    ]
    assert not wrong


def test_core_names_no_other_package_in_any_string(packages: dict[str, Path], root: Path) -> None:
    """`importlib.import_module("attnctl_plugins.x")` would be an import that the test above cannot see."""
    others = set(MAY_IMPORT) - {"attnctl"}
    wrong = [
        f"{path.relative_to(root)} says {other}"
        for path in sources(packages["attnctl"])
        for other in others
        if other in path.read_text()
    ]
    assert not wrong


def test_core_names_no_built_in_plugin(packages: dict[str, Path], root: Path, project: dict) -> None:
    built_in = project["entry-points"]["attnctl"].items()
    names = {name for name, target in built_in if target.startswith("attnctl_plugins.")} - ORDINARY_WORDS
    assert names, "the search below would search for nothing"
    pattern = re.compile(r"\b(" + "|".join(sorted(re.escape(name) for name in names)) + r")\b", re.IGNORECASE)
    wrong = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sources(packages["attnctl"])
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_files_and_functions_stay_short(package: str, packages: dict[str, Path], root: Path) -> None:
    wrong = []
    for path in sources(packages[package]):
        text = path.read_text()
        lines = text.count("\n")
        if lines >= MAX_FILE_LINES:
            wrong.append(f"{path.relative_to(root)} has {lines} lines, fewer than {MAX_FILE_LINES} allowed")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length >= MAX_FUNCTION_LINES:
                    wrong.append(f"{path.relative_to(root)}:{node.lineno} {node.name} has {length} lines")
    assert not wrong


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_every_import_is_declared(package: str, packages: dict[str, Path], root: Path, project: dict) -> None:
    """Core and plugins live on the core dependencies; only the evaluation may use extras.

    `attnctl.testing` is for people who test their plugins, with the pytest that they have.
    """
    extras = [r for extra in project["optional-dependencies"].values() for r in extra]
    declared = project["dependencies"] + (extras if package == "attnctl_evaluation" else [])
    known = {normalised(re.match(r"[A-Za-z0-9._-]+", requirement)[0]) for requirement in declared}
    wrong = [
        f"{path.relative_to(root)}:{line} imports {name}"
        for path in sources(packages[package])
        for name, line in imported_names(ast.parse(path.read_text()))
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top not in MAY_IMPORT
        and normalised(DISTRIBUTIONS.get(top, top)) not in known
        and not (top == "pytest" and path.is_relative_to(packages["attnctl"] / "testing"))
    ]
    assert not wrong


def normalised(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("package", ["attnctl_plugins", "attnctl_evaluation"])
def test_every_plugin_module_has_an_entry_point(package: str, packages: dict[str, Path], project: dict) -> None:
    """And the other way round: every entry point names a module that implements a hook."""
    groups = [group for name, group in project["entry-points"].items() if name.partition(".")[0] == "attnctl"]
    targets = {target for group in groups for target in group.values()}
    folder = packages[package]
    modules = {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        for path in sources(folder)
        if re.search(r"^@hookimpl\b", path.read_text(), re.MULTILINE)
    }
    assert modules == {t for t in targets if t.startswith(package + ".")}


COMMAND = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["MODULES_FILE"], "w").write("\\n".join(sys.modules)))
from attnctl.cli import main
sys.argv[0] = "attnctl"
sys.exit(main())
"""


def run_and_list_modules(arguments: list[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run `attnctl ARGUMENTS` in a fresh interpreter; return what it did and every module it had imported."""
    listing = folder / "modules.txt"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        check=False,
        env={**os.environ, "MODULES_FILE": str(listing)},
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
    )
    return done, set(listing.read_text().splitlines())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["run", "--no-such-option"], 2),
        (["no-such-command"], 2),
    ],
)
def test_help_and_argument_errors_import_nothing_heavy(arguments: list[str], code: int, tmp_path: Path) -> None:
    done, modules = run_and_list_modules(arguments, tmp_path)
    assert done.returncode == code, done.stderr
    assert "attnctl.cli" in modules
    assert not modules & HEAVY


def test_help_takes_less_than_half_a_second_of_processor_time(tmp_path: Path) -> None:
    """Processor time of the best of five runs, so that a busy machine does not decide."""
    spent = []
    command = [sys.executable, "-c", COMMAND, "--help"]
    environment = {**os.environ, "MODULES_FILE": os.devnull}
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(spent) < 0.5
