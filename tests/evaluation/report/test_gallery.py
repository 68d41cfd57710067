"""Pictures of a report: where they go, and what never becomes one."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.errors import InputError
from attnctl_evaluation.report.gallery import Gallery


def png(path: Path, size: int = 32, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(path)
    return path


def test_small_pictures_are_embedded_as_they_are(tmp_path: Path) -> None:
    file = png(tmp_path / "run" / "a.png")
    gallery = Gallery("auto", tmp_path / "files")
    assert gallery.add(tmp_path / "run", "a.png") == 0
    assert gallery.add(tmp_path / "run", "a.png") == 0
    assert gallery.add(tmp_path / "run", None) is None
    (picture,) = gallery.write()
    assert picture is not None
    assert base64.b64decode(picture.full.removeprefix("data:image/png;base64,")) == file.read_bytes()
    assert (picture.width, picture.height) == (32, 32)
    assert not (tmp_path / "files").exists()


def test_beyond_the_limit_they_go_beside_with_thumbnails(tmp_path: Path) -> None:
    file = png(tmp_path / "run" / "a.png", size=200)
    gallery = Gallery("auto", tmp_path / "my files", limit=10, thumbnail=64)
    gallery.add(tmp_path / "run", "a.png")
    (picture,) = gallery.write()
    assert picture is not None
    assert picture.full.startswith("my%20files/")
    assert (tmp_path / picture.full.replace("%20", " ")).read_bytes() == file.read_bytes()
    with Image.open(tmp_path / picture.thumbnail.replace("%20", " ")) as small:
        assert (small.size, small.format) == ((64, 64), "WEBP")


def test_a_report_made_again_leaves_nothing_old_and_spares_what_is_not_its_own(tmp_path: Path) -> None:
    for level in (10, 20):
        png(tmp_path / "run" / "a.png", level=level)
        gallery = Gallery("folder", tmp_path / "files")
        gallery.add(tmp_path / "run", "a.png")
        gallery.write()
        (tmp_path / "files" / "notes.txt").write_text("mine")
    assert len(list((tmp_path / "files").glob("*.png"))) == 1
    gallery = Gallery("embed", tmp_path / "files")
    gallery.add(tmp_path / "run", "a.png")
    gallery.write()
    assert [p.name for p in (tmp_path / "files").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["../secret.png", "link.png", "sub/../../secret.png"])
def test_nothing_outside_the_run_is_read(tmp_path: Path, name: str) -> None:
    png(tmp_path / "secret.png")
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "run" / "link.png").symlink_to(tmp_path / "secret.png")
    gallery = Gallery("embed", tmp_path / "files")
    gallery.add(tmp_path / "run", name)
    assert gallery.write() == [None]
    assert "leads out of the folder" in gallery.problems[name]


def test_an_absolute_path_is_outside_too(tmp_path: Path) -> None:
    file = png(tmp_path / "secret.png")
    gallery = Gallery("embed", tmp_path / "files")
    gallery.add(tmp_path / "run", str(file))
    assert gallery.write() == [None]


@pytest.mark.parametrize(
    "content", [b"", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", b"\x89PNG\r\n\x1a\ncut"]
)
def test_what_is_no_picture_is_named_not_passed_on(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.png").write_bytes(content)
    gallery = Gallery("folder", tmp_path / "files")
    gallery.add(tmp_path / "run", "a.png")
    gallery.add(tmp_path / "run", "gone\0.png")
    gallery.add(tmp_path / "run", "gone.png")
    assert gallery.write() == [None, None, None]
    assert set(gallery.problems) == {"a.png", "gone\0.png", "gone.png"}
    assert not (tmp_path / "files").exists()


def test_formats_that_browsers_do_not_show_become_png(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "run" / "a.tif")
    for mode, start in (("folder", "files/"), ("embed", "data:image/webp")):
        gallery = Gallery(mode, tmp_path / "files")  # type: ignore[arg-type]
        gallery.add(tmp_path / "run", "a.tif")
        (picture,) = gallery.write()
        assert picture is not None
        assert picture.full.startswith(start)


def test_large_pictures_are_embedded_smaller(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "run" / "a.png")
    gallery = Gallery("embed", tmp_path / "files")
    gallery.add(tmp_path / "run", "a.png")
    (picture,) = gallery.write()
    assert picture is not None
    data = base64.b64decode(picture.full.removeprefix("data:image/webp;base64,"))
    assert len(data) < 400_000
    assert Image.open(io.BytesIO(data)).size == (400, 400)


def test_no_pictures_at_all(tmp_path: Path) -> None:
    png(tmp_path / "run" / "a.png")
    gallery = Gallery("none", tmp_path / "files")
    assert gallery.add(tmp_path / "run", "a.png") is None
    assert gallery.write() == []


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    png(tmp_path / "run" / "a.png")
    (tmp_path / "files").write_text("in the way")
    gallery = Gallery("folder", tmp_path / "files")
    gallery.add(tmp_path / "run", "a.png")
    with pytest.raises(InputError, match="cannot write"):
        gallery.write()
