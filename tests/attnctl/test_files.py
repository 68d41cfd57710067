"""Atomic writes and safe names."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attnctl.errors import InputError
from attnctl.files import (
    parse_json,
    read_bytes,
    read_json,
    read_text,
    read_toml,
    sha256_of_file,
    slug,
    write_atomic,
)

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


class TestGuardedReading:
    """Whatever a stranger's file is: read, or refused in one line, in bounded time and memory."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "x"

    @pytest.mark.parametrize("read", [read_bytes, read_text, read_json, read_toml])
    def test_what_is_no_file_is_refused_at_once(self, read, file):
        file.mkdir()
        with pytest.raises(InputError, match="it is a folder"):
            read(file)
        file.rmdir()
        os.mkfifo(file)
        with pytest.raises(InputError, match="it is a pipe"):
            read(file)
        file.unlink()
        with pytest.raises(InputError, match="no such file"):
            read(file)
        file.symlink_to("/dev/zero")
        with pytest.raises(InputError, match="it is a device"):
            read(file)
        with pytest.raises(InputError, match="null"):
            read("a\0b")

    def test_a_digest_of_what_never_ends_is_refused(self):
        with pytest.raises(OSError, match="device"):
            sha256_of_file("/dev/zero")

    def test_large_files_are_not_read(self, file):
        with file.open("wb") as stream:
            stream.truncate(2**40)  # takes no room
        with pytest.raises(InputError, match="more than 64 MiB"):
            read_bytes(file)
        file.write_bytes(b"abc")
        assert read_bytes(file, limit=3) == b"abc"
        with pytest.raises(InputError, match="too large"):
            read_bytes(file, limit=2)

    def test_text_is_utf_8_with_its_line_breaks(self, file):
        file.write_bytes("\ufeffä\r\n\x0c".encode())
        assert read_text(file) == "ä\r\n\x0c"
        file.write_bytes(b"ab\xff")
        with pytest.raises(InputError, match="not UTF-8: byte 2"):
            read_text(file)

    @pytest.mark.parametrize("text", ["[" * 200_000 + "]" * 200_000, '{"a":' * 65, "[" * 65, '["[]", ' + "[" * 64])
    def test_deep_json_is_refused(self, text):
        with pytest.raises(InputError, match=r"nested .* deep"):
            parse_json(text, "x")

    def test_json_as_deep_as_allowed_and_brackets_in_text_are_read(self):
        assert parse_json("[" * 64 + "]" * 64, "x")
        assert parse_json('{"a": "[[[\\"[", "b": "' + "[" * 100 + '"}', "x")["a"] == '[[["['

    @pytest.mark.parametrize("text", ['"' * 1_000_000, '"' + '\\"' * 1_000_000, '"a" ' * 300_000])
    def test_quotes_take_no_long_time(self, text):
        began = time.perf_counter()
        with pytest.raises(InputError):
            parse_json(text, "x")
        assert time.perf_counter() - began < 5

    def test_long_numbers_are_refused(self):
        assert parse_json("9" * 400, "x") == int("9" * 400)
        with pytest.raises(InputError, match="a number has 5000 digits"):
            parse_json('{"a": -' + "9" * 4999 + "}", "x")

    @pytest.mark.parametrize(
        "text",
        [
            ".".join("a" * 50_000) + " = 1",
            "[" + " . ".join(["'a b'"] * 50_000) + "]",
            "a = " + "[" * 20_000 + "]" * 20_000,
            "a = " + "{a = " * 20_000,
            "a = " + "9" * 5000,
            "a = 2020-02-31",
        ],
    )
    def test_hostile_toml_is_refused_soon(self, text, file):
        file.write_text(text)
        began = time.perf_counter()
        with pytest.raises(InputError):
            read_toml(file)
        assert time.perf_counter() - began < 5

    def test_ordinary_toml_is_read(self, file):
        file.write_text('a.b.c = [[1], [\'[\']]\n[x.\'y z\']\nt = """a.b.c [ ["""\n')
        assert read_toml(file) == {"a": {"b": {"c": [[1], ["["]]}}, "x": {"y z": {"t": "a.b.c [ ["}}}
