"""A valid folder or file of every kind, damaged at random: one line and exit code 0, 1 or 2, in bounded time."""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from attnctl.cli import main

SECONDS = 30
"""More than any of these commands takes; a reader that waits, or never ends, takes longer."""

BYTES = 1 << 30
"""How much more memory than before a command may take."""

MANY = int(os.environ.get("ATTNCTL_DAMAGES", "1"))
"""Times as many damages as usual, for a longer search."""

SPEC = 'dataset = "microbench/tiny"\nmethods = ["none"]\nlimit = 1\nsteps = 1\n'


@pytest.fixture(scope="module")
def mutating(root: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "tests" / "fixtures"))
        return importlib.import_module("mutating")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of one case."""
    folder = tmp_path_factory.mktemp("valid") / "run"
    spec = folder.parent / "spec.toml"
    spec.write_text(SPEC)
    assert main(["compare", str(spec), "--out", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the embedded model."""
    folder = tmp_path_factory.mktemp("valid") / "run"
    assert main(["run", "--method", "none", "--steps", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def bounded() -> Iterator[None]:
    """End what takes too long or too much with an error that no command catches as the user's."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"it takes more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def check(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Run a command and look at how it ends."""
    capsys.readouterr()
    signal.alarm(SECONDS)
    try:
        code = main(words)
    finally:
        signal.alarm(0)
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    shown = f"{' '.join(words)} after {what}: exit {code}, {errors or said[-3:]}"
    assert code in {0, 1, 2}, shown
    assert not [line for line in errors if "internal:" in line], shown
    assert len(errors) == (1 if code == 2 else 0), shown
    assert all(len(line) < 4000 for line in said), shown
    return code


def files_of(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")
    )


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "report": lambda run: ["report", run, "-o", "report.html"],
    "report-md": lambda run: ["report", run, "-o", "report.md"],
    "report-latex": lambda run: ["report", run, "-o", "report.tex"],
    "report-csv": lambda run: ["report", run, "-o", "report.csv"],
    "merge": lambda run: ["merge", run, "-o", "merged"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("seed", range(12 * MANY))
def test_readers_of_comparisons(
    command: str, seed: int, comparison: Path, mutating: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, bounded: None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    chance = random.Random(f"{command} {seed}")
    for _ in range(5):
        shutil.rmtree("then", ignore_errors=True)
        shutil.rmtree("merged", ignore_errors=True)
        shutil.copytree(comparison, "then")
        what = mutating.damage(Path("then"), files_of(comparison), chance)
        check(COMMANDS[command]("then"), what, capsys)


@pytest.mark.parametrize("seed", range(8 * MANY))
def test_configurations_of_comparisons(
    seed: int, comparison: Path, mutating: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, bounded: None,
) -> None:  # fmt: skip
    """Far enough to see what a file says; ``--limit 0`` is refused once it was understood."""
    monkeypatch.chdir(tmp_path)
    chance = random.Random(seed)
    for _ in range(6):
        shutil.rmtree("then", ignore_errors=True)
        Path("then").mkdir()
        shutil.copy(comparison / "compare.toml", "then/compare.toml")
        what = mutating.damage(Path("then"), ["compare.toml"], chance)
        assert check(["compare", "then", "--limit", "0"], what, capsys) == 2


@pytest.mark.parametrize("seed", range(8 * MANY))
def test_records_of_runs(seed: int, run: Path, mutating: ModuleType, tmp_path: Path, bounded: None) -> None:
    from attnctl.errors import InputError
    from attnctl.runs.manifest import Manifest

    chance = random.Random(seed)
    for number in range(12):
        place = tmp_path / str(number)
        place.mkdir()
        shutil.copy(run / "manifest.json", place)
        what = mutating.damage(place, ["manifest.json"], chance)
        signal.alarm(SECONDS)
        found = ""
        try:
            Manifest.read(place / "manifest.json")
        except InputError as error:
            found = error.message
        finally:
            signal.alarm(0)
        assert "\n" not in found, what
        assert len(found) < 4000, what


@pytest.mark.parametrize("name", ["demo.json", "words.json", "model_index.json"])
@pytest.mark.parametrize("seed", range(3 * MANY))
def test_small_files_of_models(
    name: str, seed: int, mutating: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path,
    monkeypatch: pytest.MonkeyPatch, bounded: None,
) -> None:  # fmt: skip
    """Every other file of the model is a link to the valid one's folder, which the user named."""
    monkeypatch.chdir(tmp_path)
    chance = random.Random(f"{name} {seed}")
    for number in range(6):
        place = Path(f"model{number}")
        place.mkdir()
        for path in (root / "attnctl" / "models" / "micro").iterdir():
            if path.name != name:
                (place / path.name).symlink_to(path)
            else:
                shutil.copy(path, place)
        what = mutating.damage(place, [name], chance)
        words = ["explain", "none", "--model", str(place)]
        check(words, what, capsys)


DATA = {
    "folder": ("edits.csv", "image,prompt,source_prompt,seed\na.png,a dog,a cat,3\na.png,a horse,a cat,\n"),
    "folder:jsonl": ("edits.jsonl", '{"image": "a.png", "prompt": "a dog", "source_prompt": "a cat"}\n' * 3),
    "ti2i": ("x.yaml", "- init_img: a.png\n  target_prompts:\n    - a cat\n    - a dog\n"),
    "car-real-edit": (
        "Car_real_edit.json",
        '[{"image_name": "a.png", "soure_prompt": "a car", "edit_prompt": "a red car"}]',
    ),
    "pie-bench": ("mapping_file.json", json.dumps({"000000000000": {
        "image_path": "a.png", "original_prompt": "a [red] car", "editing_prompt": "a [blue] car",
        "editing_type_id": "6", "editing_instruction": "x", "blended_word": "car car", "mask": [0, 3, 500, 100],
    }})),
}  # fmt: skip
"""By data set, the file that it reads and a valid one."""


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("seed", range(4 * MANY))
def test_tables_of_data_sets(
    name: str, seed: int, mutating: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, bounded: None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    chance = random.Random(f"{name} {seed}")
    file, text = DATA[name]
    for number in range(8):
        place = Path(f"data{number}")
        place.mkdir()
        (place / file).write_text(text)
        Image.new("RGB", (8, 8)).save(place / "a.png")
        what = mutating.damage(place, [file, file, "a.png"], chance)
        path = place if name != "ti2i" else place / file
        check(["datasets", f"{name.partition(':')[0]}:{path}"], what, capsys)


def test_damage_is_done(mutating: ModuleType, tmp_path: Path) -> None:
    """The tests above can fail: every kind of damage changes what a plain reader gets."""
    for way in mutating.WAYS:
        path = tmp_path / f"{way.__name__}.json"
        path.write_text('{"schema_version": 1, "title": "x"}\n')
        before = path.read_bytes()
        chance = random.Random(3)
        way(path, chance)
        if way.__name__ in {"pipe", "endless", "folder", "gone"}:
            assert not path.is_file()
        elif way.__name__ == "sparse":
            assert path.stat().st_size == 2**31
        else:
            assert path.read_bytes() != before, way.__name__


def test_nothing_is_said_of_a_valid_folder(
    comparison: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, bounded: None
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(comparison, "then")
    for command in COMMANDS.values():
        assert check(command("then"), "nothing", capsys) == 0
