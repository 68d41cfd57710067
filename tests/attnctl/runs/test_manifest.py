"""The run record: equal runs give equal bytes, nothing is lost on the way, damage is named."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import attnctl
from attnctl.errors import InputError
from attnctl.families.hubcache import hub_cache, hub_snapshot
from attnctl.files import sha256_of_file
from attnctl.runs.manifest import (
    SCHEMA_VERSION,
    CoverageRecord,
    DeviceRecord,
    FileRecord,
    InputPicture,
    InversionRecord,
    LaneRecord,
    Manifest,
    ModelRecord,
    SettingsRecord,
    Volatile,
    environment,
    model_files,
    model_fingerprint,
    processor_name,
)


def record(**changes) -> Manifest:
    digest = hashlib.sha256(b"picture").hexdigest()
    parts = {
        "environment": environment(),
        "device": DeviceRecord(kind="cpu", name="a processor", threads=2),
        "model": ModelRecord(id="micro", family="sd", prediction="v_prediction", sha256=digest, files={"a": digest}),
        "settings": SettingsRecord(seed=2**62, steps=30, guidance=7.5, size=(128, 96), scheduler="ddim"),
        "input_picture": InputPicture(path="büro/写真.png", sha256=digest, original_size=(3, 4), notes=("rotated",)),
        "lanes": (
            LaneRecord(
                name="source",
                role="source",
                prompt="a red car",
                picture=FileRecord(file="source.png", sha256=digest),
            ),
            LaneRecord(
                name="edit[0]",
                role="edit",
                prompt='一辆 blue car\n"quoted"',
                method="m",
                preset="paper",
                config={"self_replace": 0.1 + 0.2, "layers": (4, 14), "nested": {"on": True, "off": None}},
            ),
        ),
        "inversions": (InversionRecord(lane="source", name="ddim", psnr=31.25, vae_psnr=math.inf),),
        "coverage": (CoverageRecord(lane="edit[0]", controller="c", sites=9, steps=24, expected=216, acted=216),),
        "rows": {"edit": 90},
        "warnings": ("a warning",),
        "volatile": Volatile(created="2026-01-01T00:00:00Z", command=("attnctl", "run"), seconds={"edit": 1.5}),
    }
    return Manifest(**{**parts, **changes})


def test_what_is_written_is_read_back(tmp_path):
    made = record()
    digest = made.write(tmp_path / "manifest.json")
    assert digest == sha256_of_file(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == made
    assert "一辆 blue car" in (tmp_path / "manifest.json").read_text(encoding="utf-8")


@given(
    st.text(st.characters(codec=None, exclude_categories=())),
    st.floats(allow_nan=False),
    st.integers(0, 2**63 - 1),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        st.lists,
        max_leaves=5,
    ),
)
def test_any_prompt_number_and_setting_survives(prompt, psnr, seed, value):
    made = record(
        lanes=(LaneRecord(name="edit[0]", role="edit", prompt=prompt, config={"x": value}),),
        inversions=(InversionRecord(lane="source", name="ddim", psnr=psnr),),
        settings=SettingsRecord(seed=seed, steps=1, guidance=1, size=(8, 8), scheduler="ddim"),
    )
    again = Manifest.model_validate_json(made.to_json().encode("utf-8"))
    assert again == made
    assert again.to_json() == made.to_json()
    if not any("\ud800" <= c <= "\udfff" for c in prompt):
        assert again.lanes[0].prompt == prompt


def test_equal_runs_differ_in_volatile_alone():
    one = record()
    two = record(volatile=Volatile(created="2027-07-07T07:07:07Z", seconds={"edit": 9.0}, peak_memory_bytes=5))
    assert one.to_json() != two.to_json()
    assert one.comparable() == two.comparable()
    assert record().to_json() == one.to_json()
    assert record(warnings=()).comparable() != one.comparable()
    assert list(json.loads(one.to_json()))[-1] == "volatile"


def test_a_misspelt_field_is_refused():
    with pytest.raises(ValidationError, match="promt"):
        LaneRecord(name="a", role="edit", prompt="x", promt="y")
    with pytest.raises(ValidationError, match="frozen"):
        record().warnings = ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the run record"),
        (b"", "is not JSON"),
        (b'{"schema_version": 1', "is not JSON"),
        (b"\xff\xfe{", "is not UTF-8"),
        (b"[" * 200_000, "are nested 200000 deep"),
        (b'{"schema_version": ' + b"9" * 5000 + b"}", "a number has 5000 digits"),
        (b"[]", "is not a run record"),
        (b'{"schema_version": true}', "is not a run record"),
        (b'{"schema_version": 99, "new": 1}', "expected at most 2"),
        (b'{"schema_version": 1}', "is damaged at environment: Field required (and 4 more)"),
        (b'{"schema_version": -1}', "is damaged at schema_version"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_in_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        Manifest.read(tmp_path / "manifest.json")
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_the_environment_names_the_stack_without_importing_it():
    code = (
        "import sys; from attnctl.runs.manifest import environment; e = environment();"
        "bad = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules);"
        "print(e.model_dump_json()); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["attnctl"] == attnctl.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    import numpy
    import PIL

    assert found["packages"]["numpy"] == numpy.__version__
    assert found["packages"]["pillow"] == PIL.__version__
    assert found["packages"]["torch"]


def test_a_package_that_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr("attnctl.runs.manifest.STACK", ("no-such-distribution",))
    assert environment().packages == {"no-such-distribution": None}


def test_the_processor_has_a_name():
    assert processor_name()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the layout of a pipeline, with files that a run reads and files that it does not."""
    root = tmp_path / "model"
    for name, content in {
        "model_index.json": "{}",
        "unet/config.json": '{"a": 1}',
        "unet/diffusion_pytorch_model.safetensors": "weights",
        "unet/diffusion_pytorch_model.fp16.safetensors": "a variant",
        "unet/diffusion_pytorch_model.bin": "a pickle",
        "text_encoder/model-00001-of-00002.safetensors": "shard",
        "tokenizer/merges.txt": "a b",
        "safety_checker/config.json": "{}",
        "README.md": "read me",
        ".git/config.json": "{}",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


READ = {
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/model-00001-of-00002.safetensors",
    "tokenizer/merges.txt",
}


def test_a_fingerprint_covers_what_a_run_reads(folder):
    files = model_files(folder)
    assert set(files) == READ
    assert files["unet/config.json"] == hashlib.sha256(b'{"a": 1}').hexdigest()
    before = model_fingerprint(folder)
    for name in ("README.md", "unet/diffusion_pytorch_model.bin", "safety_checker/config.json"):
        (folder / name).write_text("changed")
    assert model_fingerprint(folder) == before


@pytest.mark.parametrize("name", sorted(READ))
def test_a_fingerprint_changes_with_content_and_name(folder, name):
    before = model_fingerprint(folder)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")  # the same length: the cache must not hide it
    os.utime(path, ns=(1, 1))
    assert model_fingerprint(folder) != before
    path.write_bytes(content)
    assert model_fingerprint(folder) == before
    path.rename(path.with_name("other" + path.suffix))
    assert model_fingerprint(folder) != before


def test_a_fingerprint_does_not_depend_on_the_place(folder, tmp_path):
    before = model_fingerprint(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved)
    assert model_fingerprint(moved) == model_fingerprint(str(tmp_path / "link")) == before


def test_a_fingerprint_can_be_checked_with_sha256sum(folder):
    lines = "".join(f"{sha256_of_file(folder / name)}  {name}\n" for name in sorted(READ))
    assert model_fingerprint(folder) == hashlib.sha256(lines.encode()).hexdigest()


def test_the_fingerprint_of_a_single_file_is_its_digest(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"weights")
    assert model_fingerprint(tmp_path / "m.safetensors") == hashlib.sha256(b"weights").hexdigest()


def test_a_variant_alone_is_taken(folder):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in model_files(folder)


def test_files_are_hashed_once(folder, monkeypatch):
    first = model_fingerprint(folder)
    monkeypatch.setattr("attnctl.runs.manifest.sha256_of_file", lambda path: pytest.fail(f"{path} was read again"))
    assert model_fingerprint(folder) == first


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_a_model(tmp_path, name):
    with pytest.raises(InputError, match="model"):
        model_fingerprint(tmp_path / name)


def test_the_hub_cache_obeys_the_hub_variables(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert hub_cache() == tmp_path / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "$HOME/hf")
    assert hub_cache() == tmp_path / "hf/hub"
    monkeypatch.setenv("HF_HUB_CACHE", "~/cache")
    assert hub_cache() == tmp_path / "cache"


def test_the_hub_cache_is_where_the_client_looks():
    code = (
        "from huggingface_hub.constants import HF_HUB_CACHE; from attnctl.families.hubcache import hub_cache;"
        "print(HF_HUB_CACHE); print(hub_cache())"
    )
    for extra in ({}, {"HF_HOME": "/a"}, {"HF_HUB_CACHE": "/b"}, {"XDG_CACHE_HOME": "/c"}):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_H", "HUGGINGFACE", "XDG_CACHE"))}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**kept, **extra}
        )
        theirs, ours = done.stdout.split()
        assert theirs == ours


def test_a_downloaded_model_is_found_by_branch_and_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    assert hub_snapshot("owner/name") == hub_snapshot("owner/name", commit) == snapshot
    assert hub_snapshot("owner/name", "other") is None
    assert hub_snapshot("owner/other") is None
    assert hub_snapshot("owner/name", "f" * 40) is None


def test_the_schema_version_is_what_the_class_says():
    assert record().schema_version == SCHEMA_VERSION
