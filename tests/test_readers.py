"""No reader of files but the guarded ones: every other is listed here with the reason why it may stay."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ALLOWED = {
    ("attnctl/files.py", "os.open"): "the guarded reader itself, after a look at what the path leads to",
    ("attnctl/files.py", "json.loads"): "the guarded reader itself, after a look at depth and digits",
    ("attnctl/files.py", "tomllib.loads"): "the guarded reader itself, after a look at depth and keys",
    ("attnctl/files.py", ".open"): "hashes in pieces after a look at the file, and writes",
    ("attnctl/runs/decode.py", "Image.open"): "the guarded reader of pictures itself",
    ("attnctl/runs/decode.py", ".open"): "three bytes of a file that the guarded reader looked at",
    ("attnctl/cli/streams.py", "os.open"): "the null device, where standard streams are closed",
    ("attnctl/cache.py", "safe_open"): "kept inversions; what cannot be read is dropped and made anew",
    ("attnctl/cache.py", "json.loads"): "the header of a kept inversion; what cannot be read is dropped and made anew",
    ("attnctl/loading.py", "safe_open"): "names of tensors, whose format bounds its header",
    ("attnctl/doctor/importing.py", "json.loads"): "a line of a process that this one started",
    ("attnctl/runs/manifest.py", ".read_text"): "/proc/cpuinfo",
    ("attnctl/runs/manifest.py", "json.loads"): "text that it has just made itself",
    ("attnctl_evaluation/benchmark/store.py", ".open"): "appends to a file inside the run folder",
    ("attnctl_evaluation/benchmark/store.py", "tomllib.loads"): "text that it has just made itself",
    ("attnctl_evaluation/datasets/pie_bench.py", "pyarrow.parquet.ParquetFile"): "the format's own reader",
    ("attnctl_evaluation/datasets/tables.py", "csv.reader"): "text from the guarded reader",
    ("attnctl_evaluation/datasets/ti2i.py", "yaml.load"): "text from the guarded reader, by a loader with bounds",
    ("attnctl_evaluation/judge.py", "load_file"): "weights inside this package",
    ("attnctl_evaluation/metrics/common.py", "load_file"): "weights that the user named; tensors alone",
    ("attnctl_evaluation/metrics/common.py", "torch.load"): "weights that the user named; tensors alone",
    ("attnctl_evaluation/metrics/protocols.py", "Image.open"): "a JPEG that it has just made itself",
    ("attnctl_evaluation/report/page.py", ".read_text"): "files inside this package",
}  # fmt: skip
"""Per file and call, why."""

METHODS = {"open", "read_text", "read_bytes"}
FUNCTIONS = {
    "open", "io.open", "os.open", "os.fdopen", "json.load", "json.loads", "tomllib.load", "tomllib.loads",
    "Image.open", "PIL.Image.open", "yaml.load", "yaml.safe_load", "yaml.unsafe_load", "yaml.full_load", "np.load",
    "np.loadtxt", "np.genfromtxt", "numpy.load", "torch.load", "safe_open", "load_file",
    "safetensors.torch.load_file", "csv.reader", "csv.DictReader", "pickle.load", "pickle.loads",
    "pyarrow.parquet.ParquetFile", "pq.read_table", "pd.read_csv", "zipfile.ZipFile", "tarfile.open", "shelve.open",
    "mmap.mmap", "model_validate_json",
}  # fmt: skip


def readers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every call that reads a file or text of one, and its line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FUNCTIONS:
            yield name, node.lineno
        elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            yield f".{node.func.attr}", node.lineno


def found(packages: dict[str, Path]) -> dict[tuple[str, str], list[int]]:
    calls: dict[tuple[str, str], list[int]] = {}
    for name, folder in packages.items():
        for path in sorted(folder.rglob("*.py")):
            for call, line in readers(ast.parse(path.read_text(encoding="utf-8"))):
                calls.setdefault((f"{name}/{path.relative_to(folder).as_posix()}", call), []).append(line)
    return calls


def test_no_bare_reader_is_anywhere(packages: dict[str, Path]) -> None:
    calls = found(packages)
    own = {("attnctl/files.py", "os.fdopen")}
    bare = [f"{file}:{lines[0]} calls {call}" for (file, call), lines in calls.items()
            if (file, call) not in ALLOWED and (file, call) not in own]  # fmt: skip
    assert not bare, "use attnctl.files, attnctl.runs.decode, or say in ALLOWED why not"


def test_the_list_of_exceptions_holds_no_more_than_there_are(packages: dict[str, Path]) -> None:
    gone = sorted(ALLOWED.keys() - found(packages).keys())
    assert not gone, "take these lines out"


def test_the_search_finds_what_it_looks_for() -> None:
    text = "open('x')\nPath('x').read_text()\nq.open('rb')\njson.loads(t)\nread_text(p)\nfiles.read_json(p)\n"
    assert [line for _, line in readers(ast.parse(text))] == [1, 2, 3, 4]


def test_no_path_is_followed_but_by_one_function(packages: dict[str, Path]) -> None:
    """``Path.resolve`` fails on links in a circle, with an error that nobody expects."""
    wrong = []
    for folder in packages.values():
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = node.func if isinstance(node, ast.Call) and not node.args else None
                if isinstance(called, ast.Attribute) and called.attr == "resolve" and path.name != "trusting.py":
                    wrong.append(f"{path.name}:{called.lineno}")
    assert not wrong, "use attnctl.files.real"
