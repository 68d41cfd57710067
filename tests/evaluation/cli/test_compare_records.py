"""`attnctl compare FOLDER` on folders that somebody else may have written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SPEC = 'dataset = "microbench/tiny"\nmethods = ["none"]\nlimit = 1\nsteps = 1\n'
EVIL = "from pathlib import Path\nPath('ran').touch()\n"
HARMLESS = """
from attnctl.hookspecs import hookimpl
from attnctl_plugins.none import Uncontrolled

class Mine(Uncontrolled):
    name = "mine"

@hookimpl
def attnctl_methods():
    return [Mine]
"""


@pytest.mark.parametrize("beside", [None, "run.json", "cases.jsonl", "records.jsonl"])
@pytest.mark.parametrize("named", ["then", "then/compare.toml"])
def test_the_plugin_file_of_a_record_is_not_run(call: Callable[..., Any], named: str, beside: str | None) -> None:
    folder = Path("then")
    folder.mkdir()
    Path("evil.py").write_text(EVIL)
    (folder / "compare.toml").write_text(SPEC + 'plugins = ["evil.py"]\n')
    if beside is not None:
        (folder / beside).write_text("{}")
    if beside is None and named.endswith(".toml"):
        pytest.skip("a file by itself is the user's own")
    code, _, err = call("compare", named)
    assert code == 2
    assert "'evil.py', which continuing would execute" in err
    assert "--plugin evil.py" in err
    assert not Path("ran").exists()


def test_it_is_run_when_the_user_names_it(call: Callable[..., Any]) -> None:
    Path("then").mkdir()
    Path("evil.py").write_text(EVIL)
    Path("then/compare.toml").write_text(SPEC + 'plugins = ["evil.py"]\n')
    call("compare", "then", "--plugin", "./evil.py", "--limit", "0")  # a limit that is refused before any work
    assert Path("ran").exists()


def test_another_file_of_that_name_is_not_the_one_that_was_named(call: Callable[..., Any]) -> None:
    Path("then").mkdir()
    Path("mine").mkdir()
    Path("mine/evil.py").write_text(HARMLESS)
    Path("then/evil.py").write_text(EVIL)
    Path("then/compare.toml").write_text(SPEC + 'plugins = ["then/evil.py"]\n')
    code, _, err = call("compare", "then", "--plugin", "mine/evil.py")
    assert code == 2
    assert "which continuing would execute" in err
    assert not Path("ran").exists()


def test_the_model_of_a_record_is_not_fetched(call: Callable[..., Any]) -> None:
    Path("then").mkdir()
    Path("then/compare.toml").write_text(SPEC + 'model = "stranger/model"\n')
    code, _, err = call("compare", "then")
    assert code == 2
    assert "'stranger/model', which is not on this machine and which continuing would fetch" in err


@pytest.mark.parametrize("name", ["compare.toml", "run.json", "records.jsonl", ".attnctl-lock", "timings.jsonl"])
def test_links_that_lead_out_are_neither_read_nor_written(call: Callable[..., Any], name: str) -> None:
    Path("precious").write_bytes(b"kept\n")
    Path("then").mkdir()
    Path("then/compare.toml").write_text(SPEC)
    (Path("then") / name).unlink(missing_ok=True)
    (Path("then") / name).symlink_to(Path("precious").resolve())
    code, _, err = call("compare", "then")
    assert code == 2
    assert "a link that leads out" in err
    assert Path("precious").read_bytes() == b"kept\n"
    code, _, err = call("report", "then")
    assert code == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize(
    "command", [("report",), ("compare",), ("merge", "-o", "out"), ("verify",)], ids=lambda c: c[0]
)
@pytest.mark.parametrize("name", ["run.json", "compare.toml", "manifest.json"])
def test_pipes_do_not_hang(call: Callable[..., Any], command: tuple[str, ...], name: str) -> None:
    Path("then").mkdir()
    os.mkfifo(f"then/{name}")
    code, _, err = call(*command, "then")
    assert code == 2
    assert err.startswith("error: ")
    code, _, err = call("compare", f"then/{name}") if command == ("compare",) else (2, "", "")
    assert code == 2


def test_a_record_in_other_letters_is_data(call: Callable[..., Any]) -> None:
    """Lone surrogates, as JSON can spell them, are no reason to fall."""
    Path("then").mkdir()
    Path("then/run.json").write_text(json.dumps({"schema_version": 1, "title": "\ud800"}))
    code, _, err = call("report", "then")
    assert code == 2
    assert "is damaged" in err
