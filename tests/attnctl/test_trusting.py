"""What a file may decide that somebody else wrote: never more than what lies in its own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnctl.errors import InputError
from attnctl.trusting import check_code, check_fetched, check_inside, inside, unnamed_code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, links that stay inside and links that lead out, and a secret beside it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(b"x")
    made = tmp_path / "data"
    (made / "sub").mkdir(parents=True)
    (made / "sub" / "a.png").write_bytes(b"x")
    (made / "within.png").symlink_to(made / "sub" / "a.png")
    (made / "out.png").symlink_to(tmp_path / "secret" / "a.png")
    (made / "outdir").symlink_to(tmp_path / "secret")
    (made / "dangling.png").symlink_to(tmp_path / "nowhere")
    (made / "circle.png").symlink_to(made / "circle.png")
    (made / "device.png").symlink_to("/dev/zero")
    return made


@pytest.mark.parametrize(
    "name", ["sub/a.png", "sub\\a.png", "within.png", "not-there.png", "./sub/a.png", "a:b.png"[2:], ""]
)
def test_what_lies_inside_is_given(folder: Path, name: str) -> None:
    assert inside(folder, name) == folder / name.replace("\\", "/")


@pytest.mark.parametrize(
    "name",
    [
        "../secret/a.png", "sub/../../secret/a.png", "..\\secret\\a.png", "/etc/passwd", "C:\\x.png", "C:x.png",
        "\\\\host\\x", "out.png", "outdir/a.png", "outdir", "dangling.png", "circle.png", "device.png", "a\0b",
        "x" * 70_000 + "/../..", "~/../../x/..",
    ],
)  # fmt: skip
def test_what_leads_out_is_refused_in_one_line(folder: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        inside(folder, name, "'t.csv', line 3")
    assert caught.value.message.startswith("'t.csv', line 3: ")
    assert len(caught.value.message) < 300 + len(str(folder))
    assert caught.value.hint
    with pytest.raises(InputError):
        check_inside(folder, ["sub/a.png", name])


def test_a_link_to_the_folder_itself_is_no_way_out(folder: Path, tmp_path: Path) -> None:
    """The folder that the person named may be a link: that is their word."""
    (tmp_path / "named").symlink_to(folder)
    assert inside(tmp_path / "named", "sub/a.png") == tmp_path / "named" / "sub" / "a.png"


def test_snapshots_of_the_hub_hold_links_to_their_contents(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--owner--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "1").write_bytes(b"x")
    snapshot = repository / "snapshots" / ("a" * 40)
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "x.png").symlink_to("../../../blobs/1")
    (tmp_path / "secret").write_bytes(b"x")
    (snapshot / "data" / "y.png").symlink_to(tmp_path / "secret")
    assert inside(snapshot, "data/x.png")
    assert inside(snapshot / "data", "x.png")
    with pytest.raises(InputError):
        inside(snapshot / "data", "y.png")


def test_code_of_a_record_needs_the_persons_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.py").write_text("")
    assert unnamed_code(["own/p.py", "p.py"], [str(tmp_path / "own" / "p.py")]) == ["p.py"]
    check_code(["own/p.py"], ["./own/../own/p.py"], "continuing")
    check_code([], [], "continuing")
    with pytest.raises(InputError, match=r"'p\.py', which continuing would execute") as caught:
        check_code(["p.py"], ["own/p.py"], "continuing")
    assert "--plugin" in caught.value.hint


def test_a_model_of_a_record_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="would fetch") as caught:
        check_fetched("owner/name", None, "continuing")
    assert "--model owner/name" in caught.value.hint
    check_fetched("micro", None, "continuing")
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("b" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("b" * 40)
    check_fetched("owner/name", None, "continuing")
