"""What is installed: methods, inversions, plugins, doctor; a broken plugin is listed and harms nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnctl.config import build_config, describe_fields, shown
from attnctl.errors import InputError
from attnctl.registry import Registry

TROUBLE = str(Path(__file__).with_name("plugin_for_tests.py"))


def test_methods(call) -> None:
    done = call("methods")
    assert (done.code, done.err) == (0, "")
    registry = Registry.load()
    for name, kind in registry.methods.items():
        (line,) = [line for line in done.out.splitlines() if line.split()[:1] == [name]]
        assert kind.summary in line
        assert kind.paper in line


def test_one_method_in_full(call) -> None:
    done = call("methods", "fpe")
    kind = Registry.load().method("fpe")
    assert (done.code, done.err) == (0, "")
    for name, field in kind.Config.model_fields.items():
        assert name in done.out
        assert field.description in done.out
    for name, preset in kind.presets.items():
        assert name in done.out
        assert preset.summary in done.out
    assert kind.bibtex in done.out
    assert "arXiv:2403.03431" in done.out


def test_methods_as_json(call) -> None:
    listed = {entry["name"]: entry for entry in call("methods", "--json").data}
    assert set(listed) == set(Registry.load().methods)
    assert call("methods", "fpe", "--json").data == listed["fpe"]
    settings = {entry["name"]: entry for entry in listed["fpe"]["settings"]}
    assert settings["self_replace"]["default"] == "0.8"
    assert settings["self_replace"]["range"] == "number >= 0 and <= 1"
    assert settings["max_tokens"]["default"] == "none"


def test_inversions(call) -> None:
    assert "ddim" in call("inversions").out
    assert call("inversions", "ddim").out.startswith("ddim: ")
    assert {entry["name"] for entry in call("inversions", "--json").data} == set(Registry.load().inversions)
    assert "unknown inversion 'dimm': known are ddim" in call("inversions", "dimm").error


def test_plugins_and_files(call) -> None:
    done = call("plugins", "--plugin", TROUBLE, "--json")
    by_name = {entry["name"]: entry for entry in done.data}
    assert by_name["fpe"]["provides"] == ["method fpe"]
    assert by_name["fpe"]["owner"] == "attnctl"
    assert "method nan" in by_name[TROUBLE]["provides"]
    assert all(entry["error"] == "" for entry in done.data)
    assert "works" in call("plugins").out


def test_a_broken_file_is_an_error_since_it_was_named(call, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module")
    assert "broken.py cannot be loaded: ModuleNotFoundError" in call("plugins", "--plugin", "broken.py").error


def test_a_broken_installed_plugin_is_listed_and_harms_nothing(tmp_path: Path) -> None:
    """A distribution on the path whose module raises at import."""
    site = tmp_path / "site"
    info = site / "attnctl_broken-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: attnctl-broken\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[attnctl]\nsmash = attnctl_broken\n")
    (site / "attnctl_broken.py").write_text("raise RuntimeError('torn [bold]apart[/bold]')\n")

    def attnctl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "attnctl", *words], check=False, cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(site)}, timeout=300,
        )  # fmt: skip

    done = attnctl("plugins")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("smash")]
    assert "attnctl-broken 1.2" in line
    assert "broken: RuntimeError: torn [bold]apart[/bold]" in line
    assert "method fpe" in done.stdout

    done = attnctl("methods")
    assert done.returncode == 0
    assert "fpe" in done.stdout
    assert done.stderr == "warning: broken plugins: smash; `attnctl plugins` says why\n"

    done = attnctl("run", "--method", "smash", "--source-prompt", "a", "--prompt", "b")
    assert done.returncode == 2
    assert "hint: the plugin 'smash' is installed but broken: RuntimeError: torn" in done.stderr


@pytest.mark.slow
def test_doctor(call) -> None:
    """Imports everything heavy in another process."""
    done = call("doctor", "--json")
    assert done.code == (1 if done.data["status"] == "fail" else 0)
    names = [check["name"] for check in done.data["checks"]]
    assert {"python", "torch", "diffusers", "torchvision"} <= set(names)
    table = call("doctor").out
    assert all(name in table for name in names)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "true"), (0.8, "0.8"), ((4, 5, 6), "4,5,6"), ("word", "word"), (["a", None], "a,none")],
)
def test_settings_are_shown_as_they_are_typed(value: object, text: str) -> None:
    assert shown(value) == text


def test_what_is_shown_can_be_typed() -> None:
    """For every method: its defaults, as text, give its defaults."""
    for name, kind in Registry.load().methods.items():
        typed = {row["name"]: row["default"] for row in describe_fields(kind.Config) if row["default"]}
        assert build_config(kind.Config, typed, owner=name) == kind.Config()


def test_a_long_range_of_layers_is_refused_not_built() -> None:
    config = Registry.load().method("fpe").Config
    with pytest.raises(InputError, match="is not allowed"):
        build_config(config, {"layers": "0-99999999999"}, owner="fpe")


def test_tables_are_plain_text_when_piped(call) -> None:
    out = call("methods", "fpe").out
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_json_is_for_machines(call) -> None:
    for words in (["methods"], ["inversions"], ["plugins"]):
        done = call(*words, "--json")
        assert json.loads(done.out) is not None
        assert done.err == ""
