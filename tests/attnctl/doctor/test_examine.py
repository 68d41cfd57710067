"""The doctor: finds what is broken, survives it, and says what to do."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from attnctl.doctor import examine as doctor
from attnctl.doctor.examine import Check, as_data, check_versions, examine, render, worst
from attnctl.doctor.importing import probe


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes packages that are found before any other, here and in child processes."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)

    return make


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes installed distributions: metadata alone, which is what versions are read from."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, version: str, *requires: str) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        (folder / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")

    return make


class TestProbe:
    def test_a_package_that_ends_the_interpreter_does_not_end_the_others(self, packages):
        packages("fine_one", "")
        packages("dies", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        packages("leaves", "import os, sys; sys.stderr.write('a last word\\n'); sys.stderr.flush(); os._exit(7)")
        packages("raises", "raise RuntimeError('operator x::y does not exist\\nand more')")
        packages("fine_two", "")
        found = probe(["fine_one", "dies", "leaves", "raises", "no_such_package", "fine_two"], timeout=60)
        assert found["fine_one"]["state"] == found["fine_two"]["state"] == "works"
        assert found["dies"] == {"error": "its import ended the process (SIGKILL)"}
        assert found["leaves"] == {"error": "its import ended the process (exit code 7: a last word)"}
        assert found["raises"]["state"] == "broken"
        assert found["raises"]["error"] == "operator x::y does not exist"
        assert found["no_such_package"]["state"] == "missing"

    def test_a_package_that_hangs_is_given_up(self, packages):
        packages("fine_one", "")
        packages("hangs", "import time; time.sleep(600)")
        packages("fine_two", "")
        found = probe(["fine_one", "hangs", "fine_two"], timeout=5)
        assert found["fine_one"]["state"] == found["fine_two"]["state"] == "works"
        assert found["hangs"] == {"error": "did not finish within 5 s"}

    def test_what_a_package_prints_is_not_taken_for_an_answer(self, packages):
        packages("chatty", 'print(\'attnctl-probe {"part": "chatty", "state": "lies"}\')')
        assert probe(["chatty"], timeout=60)["chatty"]["state"] == "works"

    def test_nothing_is_imported_from_the_working_folder(self, tmp_path, monkeypatch):
        (tmp_path / "attnctl.py").write_text("raise SystemExit('the wrong attnctl')")
        (tmp_path / "only_here.py").write_text("")
        monkeypatch.chdir(tmp_path)
        assert probe(["only_here"], timeout=60)["only_here"]["state"] == "missing"

    def test_an_interpreter_that_cannot_be_run(self, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        assert probe(["json"], timeout=5) == {
            "json": {"error": "/no/such/python cannot be run: no such file or directory"}
        }

    def test_torch_and_the_plugins_of_this_installation(self):
        import torch

        found = probe(["torch", "plugins"], timeout=300)
        assert found["torch"]["version"] == torch.__version__
        assert found["torch"]["capability"] == torch.backends.cpu.get_cpu_capability()
        assert len(found["torch"]["devices"]) == torch.cuda.device_count()
        assert {p["name"]: p["error"] for p in found["plugins"]["plugins"]}["none"] == ""
        assert [c.status for c in doctor.check_torch(found["torch"])][:2] == ["ok", "ok"]
        assert doctor.check_plugins(found["plugins"])[0].status == "ok"


class TestFindings:
    def test_versions_in_range_below_above_and_missing(self, distributions):
        distributions(
            "tool",
            "3.0",
            "good>=1,<2",
            "old>=2",
            "new<5",
            "gone>=1",
            "local<3,>=2.6",
            "extra-only; extra == 'x'",
            "pre>=1",
        )
        for name, version in [
            ("good", "1.5"),
            ("old", "1.9"),
            ("new", "5.1"),
            ("local", "2.13.0+cpu"),
            ("pre", "2.0rc1"),
        ]:
            distributions(name, version)
        checks = {check.name: check for check in check_versions("tool")}
        assert {name: check.status for name, check in checks.items()} == {
            "tool": "ok",
            "good": "ok",
            "old": "fail",
            "new": "warn",
            "gone": "fail",
            "local": "ok",
            "pre": "ok",
        }
        assert checks["old"].detail == "1.9, expected >=2"
        assert checks["old"].advice == "pip install 'old>=2'"
        assert checks["new"].detail == "5.1, tested with <5"
        assert checks["gone"].detail == "not installed, expected >=1"

    def test_a_distribution_that_is_not_installed(self):
        (check,) = check_versions("no-such-distribution")
        assert check.status == "fail"

    def test_this_installation_is_in_range(self):
        checks = check_versions()
        assert {"torch", "diffusers", "transformers", "pydantic"} <= {check.name for check in checks}
        assert worst(checks) == "ok", [check for check in checks if check.status != "ok"]

    def test_a_torchvision_built_for_another_torch(self, packages, distributions):
        packages("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
        distributions("torchvision", "0.1")
        check = doctor.check_torchvision(probe(["torchvision"], timeout=60)["torchvision"])
        assert check.status == "warn"
        assert "operator torchvision::nms does not exist" in check.detail
        assert "0.1" in check.detail
        assert "scoring does not" in check.advice

    def test_a_missing_torchvision_is_fine(self):
        check = doctor.check_torchvision({"state": "missing", "version": "", "seconds": 0.0})
        assert (check.status, check.advice) == ("ok", "pip install 'attnctl[eval]'")

    def test_optional_packages(self):
        version = {"version": "1.0", "seconds": 0.1}
        assert doctor.check_optional("peft", {"state": "works", **version}).detail == "1.0, for LoRA weights"
        missing = doctor.check_optional("lpips", {"state": "missing", **version})
        assert (missing.status, missing.advice) == ("ok", "pip install 'attnctl[eval]'")
        broken = doctor.check_optional("lpips", {"state": "broken", "error": "boom", **version})
        assert (broken.status, "boom" in broken.detail) == ("warn", True)

    def test_required_parts_that_fail(self):
        dead = {"error": "its import ended the process (SIGSEGV)"}
        (torch,) = doctor.check_torch(dead)
        checks = [torch, doctor.check_import("diffusers", dead), doctor.check_model(dead), *doctor.check_plugins(dead)]
        assert [check.status for check in checks] == ["fail"] * 4
        assert all("SIGSEGV" in check.detail and check.advice for check in checks)

    def test_a_missing_model(self):
        check = doctor.check_model({"state": "missing", "folder": "/x/micro", "seconds": 0.0})
        assert (check.status, check.detail) == ("fail", "missing, expected in /x/micro")

    def test_a_broken_plugin_is_named_and_the_others_counted(self):
        fine = {"name": "a", "owner": "attnctl", "version": "1", "provides": ["method a"], "error": ""}
        bad = {"name": "b", "owner": "stranger", "version": "2", "provides": [], "error": "ImportError: no x"}
        summary, finding = doctor.check_plugins({"plugins": [fine, bad]})
        assert (summary.status, summary.detail) == ("ok", "1 of 2 work: method a")
        assert (finding.name, finding.status, finding.detail) == ("plugin b", "warn", "stranger 2: ImportError: no x")
        assert doctor.check_plugins({"plugins": [bad]})[0].status == "fail"

    def test_devices_are_listed(self):
        device = {"name": "GPU X", "memory": 80 * 2**30, "capability": "9.0", "bfloat16": True}
        found = {"version": "2.9", "seconds": 1.0, "threads": 4, "capability": "AVX512", "bfloat16": True}
        checks = doctor.check_torch({**found, "built_for": "13.0", "mps": False, "devices": [device]})
        assert checks[-1] == Check("cuda:0", "ok", "GPU X, 80 GiB, capability 9.0, float32, bfloat16, float16")
        assert "bfloat16 in hardware" in checks[1].detail
        assert doctor.check_torch({**found, "built_for": None, "mps": True, "devices": []})[-1].name == "mps"

    @pytest.mark.parametrize(
        ("tool", "built_for", "status", "words"),
        [
            (None, "13.0", "ok", "runs on the CPU"),
            ("/usr/bin/nvidia-smi", None, "warn", "built for the CPU alone"),
            ("/usr/bin/nvidia-smi", "13.0", "warn", "finds no device"),
        ],
    )
    def test_an_accelerator_that_torch_cannot_use(self, monkeypatch, tool, built_for, status, words):
        if tool is None and Path("/dev/nvidia0").exists():
            pytest.skip("there is a device here")
        monkeypatch.setattr(doctor.shutil, "which", lambda name: tool)
        found = {"version": "2", "seconds": 1.0, "threads": 4, "capability": "AVX2", "bfloat16": False}
        last = doctor.check_torch({**found, "built_for": built_for, "mps": False, "devices": []})[-1]
        assert last.status == status
        assert words in last.detail

    def test_folders(self, tmp_path, monkeypatch):
        assert doctor.check_writable("hub cache", tmp_path).status == "ok"
        assert doctor.check_writable("hub cache", tmp_path / "a" / "b").detail.endswith("(will be made)")
        assert list(tmp_path.iterdir()) == []

        def read_only(self: Path, data: bytes) -> int:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(Path, "write_bytes", read_only)
        check = doctor.check_writable("hub cache", tmp_path)
        assert (check.status, check.detail) == ("warn", f"{tmp_path} cannot be written to: read-only file system")
        assert "HF_HOME" in check.advice

    def test_space(self, tmp_path):
        assert doctor.check_space("space", tmp_path / "not" / "yet", 1).status == "ok"
        assert doctor.check_space("space", tmp_path, 2**70).status == "warn"


CHECKS = [
    Check("one", "ok", "fine"),
    Check("two", "warn", "a [bold]plugin[/bold] says \x1b[31mred\x1b[0m", "do this"),
    Check("three", "fail", "broken", "do that"),
]


class TestReport:
    def test_the_worst_finding_decides(self):
        assert worst([]) == "ok"
        assert worst(CHECKS[:1]) == "ok"
        assert worst(CHECKS[:2]) == "warn"
        assert worst(CHECKS) == "fail"

    def test_the_table_says_everything_and_steers_no_terminal(self):
        out = io.StringIO()
        Console(file=out, width=100).print(render(CHECKS))
        text = out.getvalue()
        assert "\x1b" not in text
        assert "a [bold]plugin[/bold] says  [31mred [0m" in text
        for word in ("ok", "warn", "fail", "one", "two", "three", "fine", "-> do this", "-> do that"):
            assert word in text

    def test_plain_data(self):
        data = json.loads(json.dumps(as_data(CHECKS)))
        assert data["status"] == "fail"
        assert data["checks"][0] == {"name": "one", "status": "ok", "detail": "fine", "advice": ""}


def test_without_imports_it_is_quick_and_imports_nothing_heavy():
    before = set(sys.modules)
    checks = examine(imports=False)
    assert {"python", "attnctl", "torch", "hub cache", "space for runs"} <= {check.name for check in checks}
    assert not {"torch", "diffusers"} & (set(sys.modules) - before)


@pytest.mark.slow
def test_the_whole_examination_of_this_installation():
    checks = {check.name: check for check in examine()}
    assert {"torch import", "cpu", "torchvision", "diffusers import", "peft", "embedded model", "plugins"} <= set(
        checks
    )
    assert checks["torch import"].status == checks["diffusers import"].status == checks["plugins"].status == "ok"
