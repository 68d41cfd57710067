"""Atomic writes and safe names."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attnctl.errors import InputError
from attnctl.files import sha256_of_file, slug, write_atomic

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=200)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fpe", "fpe"),
        ("a blue car, on a road!", "a-blue-car-on-a-road"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\Windows\\x", "c-windows-x"),
        ("一辆蓝色的汽车", "一辆蓝色的汽车"),
        ("Über Straße", "über-straße"),
        ("हरी गाड़ी", unicodedata.normalize("NFKC", "हरी-गाड़ी")),
        ("", "unnamed"),
        ("...", "unnamed"),
        ("NUL", "nul-"),
        ("com1", "com1-"),
    ],
)
def test_slug(text, expected):
    assert slug(text) == expected


@given(ANY_TEXT)
@example("ǅ" * 80)
@example("İ" * 60)
@example("ﷺ" * 30)
def test_a_slug_never_leaves_its_folder(text):
    name = slug(text)
    assert name
    assert len(name.encode("utf-8")) <= 85
    assert not set(name) & set('/\\.:*?"<>|~$%\0\n')
    assert not any(unicodedata.category(c)[0] in "CZ" for c in name)
    assert PurePosixPath("root", name).parent == PurePosixPath("root")
    assert PureWindowsPath("root", name).parent == PureWindowsPath("root")
    assert name.upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT9"}


def test_write_atomic_writes_replaces_and_returns_the_digest(tmp_path):
    path = tmp_path / "a.bin"
    assert write_atomic(path, b"one") == hashlib.sha256(b"one").hexdigest()
    assert write_atomic(path, b"two") == sha256_of_file(path)
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "a", b"")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch, failure):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def broken(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", broken)
    if isinstance(failure, OSError):
        with pytest.raises(InputError, match="no space left on device") as caught:
            write_atomic(path, b"new")
        assert str(path) in caught.value.message
    else:
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("name", ["missing/a.bin", "a\0b"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(Path(f"{tmp_path}/{name}"), b"")
