"""`attnctl run`: what it writes and says, and that equal runs give equal bytes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.runs.manifest import Manifest

PAIR = ["--source-prompt", "a red car on a road", "--prompt", "a blue car on a road"]
TROUBLE = str(Path(__file__).with_name("plugin_for_tests.py"))


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_a_drawn_edit(run, tmp_path: Path) -> None:
    done = run(*PAIR, "--out", "there")
    assert (done.code, done.err) == (0, "")
    folder = tmp_path / "there"
    assert {p.name for p in folder.iterdir()} == {"source.png", "fpe.png", "side-by-side.png", "manifest.json"}
    assert picture(folder / "source.png").shape == picture(folder / "fpe.png").shape == (64, 64, 3)
    height, width, _ = picture(folder / "side-by-side.png").shape
    assert width > 1.5 * height  # two pictures beside each other, captions below
    assert "written to there" in done.out

    record = Manifest.read(folder / "manifest.json")
    assert [(lane.name, lane.role, lane.prompt) for lane in record.lanes] == [
        ("source", "source", "a red car on a road"),
        ("fpe", "edit", "a blue car on a road"),
    ]
    assert record.lanes[1].picture is not None
    assert record.lanes[1].picture.file == "fpe.png"
    assert record.settings.steps == 4
    assert record.volatile.command[:3] == ("attnctl", "run", "--method")
    (row,) = record.coverage
    assert (row.sites, row.steps, row.acted, row.expected, row.changed) == (11, 3, 33, 33, True)
    assert re.search(r"fpe +self-attention maps +11 +3 +33/33 +yes", done.out)
    assert re.search(r"denoiser rows +16\n", done.out)

    moved = np.abs(picture(folder / "fpe.png") - picture(folder / "source.png")).mean()
    assert moved > 1
    assert re.search(rf'fpe +"a blue car on a road" +fpe.png +{moved:.1f}\n', done.out)


def test_equal_runs_give_equal_bytes(run, photo: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert run("--image", photo, "--prompt", "a blue car", "--seed", "7", "--out", name).code == 0
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [p.name for p in first] == [p.name for p in second]
    assert "reconstruction.png" in [p.name for p in first]
    for a, b in zip(first, second, strict=True):
        if a.name == "manifest.json":
            assert Manifest.read(a).comparable() == Manifest.read(b).comparable()
        else:
            assert a.read_bytes() == b.read_bytes(), a.name


def test_another_seed_gives_another_source(run, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert run(*PAIR, "--seed", seed, "--out", seed, "--steps", "2").code == 0
    assert (tmp_path / "1/source.png").read_bytes() != (tmp_path / "2/source.png").read_bytes()


def test_methods_times_prompts(run, tmp_path: Path) -> None:
    """Each prompt with each method, settings by method; a lane does not depend on its company."""
    words = ["--source-prompt", "a red car", "--edits", "a blue car", "a green car", "--steps", "3"]
    settings = ["--preset", "paper", "--set", "fpe.max_tokens=4", "--set", "self_replace=0.4"]
    done = run(*words, *settings, "--out", "all", method="fpe,none")
    assert done.code == 0, done.err
    record = Manifest.read(tmp_path / "all/manifest.json")
    assert [(lane.name, lane.prompt) for lane in record.lanes] == [
        ("source", "a red car"),
        ("fpe", "a blue car"), ("none", "a blue car"),
        ("fpe-2", "a green car"), ("none-2", "a green car"),
    ]  # fmt: skip
    by_name = {lane.name: lane for lane in record.lanes}
    assert by_name["fpe-2"].preset == "paper"
    assert by_name["fpe-2"].config["max_tokens"] == 4
    assert by_name["fpe-2"].config["self_replace"] == 0.4
    assert by_name["none-2"].preset is None
    assert by_name["none-2"].config == {}

    words = ["--source-prompt", "a red car", "--prompt", "a green car", "--steps", "3"]
    alone = run(*words, "--out", "one", method="none")
    assert alone.code == 0
    assert np.abs(picture(tmp_path / "one/none.png") - picture(tmp_path / "all/none-2.png")).max() <= 1


def test_a_real_picture(run, photo: Path, tmp_path: Path) -> None:
    """Cropped to the model's size, inverted, its quality said before the edit, no source prompt needed."""
    done = run("--image", photo, "--prompt", "a blue car", "--out", "real", "--steps", "5")
    assert done.code == 0, done.err
    assert "note: " + str(photo) + ": cropped from 120 x 90 to the centred 90 x 90" in done.err
    assert re.search(r"note: inversion ddim without a prompt reconstructs the picture at \d+\.\d dB PSNR", done.err)
    with Image.open(photo) as image:
        expected = np.asarray(image.crop((15, 0, 105, 90)).resize((64, 64), Image.Resampling.LANCZOS))
    assert np.array_equal(picture(tmp_path / "real/source.png"), expected)
    record = Manifest.read(tmp_path / "real/manifest.json")
    assert record.input_picture is not None
    assert record.input_picture.original_size == (90, 120)
    assert record.files["reconstruction"].file == "reconstruction.png"
    assert (tmp_path / "real/reconstruction.png").exists()
    # five steps: one row each up and back; two for the edit and one for the source in the first 80 %
    assert record.rows == {"inversion": 5, "reconstruction": 5, "edit": 14}


def test_the_quality_of_the_inversion_is_optional(run, photo: Path, tmp_path: Path) -> None:
    done = run("--image", photo, "--prompt", "a blue car", "--no-reconstruction", "--out", "o", "--steps", "2")
    assert done.code == 0, done.err
    assert "its reconstruction was not measured" in done.err
    assert not (tmp_path / "o/reconstruction.png").exists()
    assert "reconstruction" not in Manifest.read(tmp_path / "o/manifest.json").rows


def test_a_poor_inversion_is_warned_of(run, photo: Path) -> None:
    """The tiny model's autoencoder is random, so nothing can be reconstructed."""
    done = run("--image", photo, "--prompt", "a blue car", "--steps", "2")
    note, warning = done.err.splitlines()[-2:]
    assert note.startswith("note: inversion ddim without a prompt reconstructs the picture at ")
    assert warning.startswith("warning: the model's autoencoder reconstructs the picture at only ")


def test_json_is_one_object_and_nothing_else_on_stdout(run, tmp_path: Path) -> None:
    done = run(*PAIR, "--json", "--out", "j", "--steps", "2")
    assert done.code == 0
    assert done.data["folder"] == "j"
    assert done.data["error"] is None
    written = json.loads((tmp_path / "j/manifest.json").read_text())
    assert written.pop("digest")
    assert done.data["manifest"] == written
    assert done.data["changes"]["fpe"] > 0


def test_sizes_need_not_be_square(run, tmp_path: Path) -> None:
    assert run(*PAIR, "--size", "48x80", "--out", "o", "--steps", "2").code == 0
    assert picture(tmp_path / "o/fpe.png").shape == (48, 80, 3)


# Raised inside diffusers' own schedulers, with numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("scheduler", ["euler", "dpm++"])
def test_drawn_sources_take_other_schedulers(run, scheduler: str, tmp_path: Path) -> None:
    assert run(*PAIR, "--scheduler", scheduler, "--out", "o").code == 0
    assert Manifest.read(tmp_path / "o/manifest.json").settings.scheduler == scheduler


def test_few_rows_at_once_change_next_to_nothing(run, tmp_path: Path) -> None:
    assert run(*PAIR, "--out", "all").code == 0
    assert run(*PAIR, "--out", "few", "--max-rows", "2").code == 0
    assert np.abs(picture(tmp_path / "all/fpe.png") - picture(tmp_path / "few/fpe.png")).max() <= 1


def test_guidance_one_works_and_says_what_it_is(run, tmp_path: Path) -> None:
    done = run(*PAIR, "--guidance", "1", "--out", "o")
    assert done.code == 0
    assert "note: guidance 1 takes the conditional prediction alone" in done.err
    assert Manifest.read(tmp_path / "o/manifest.json").rows == {"edit": 8}  # two lanes, one half, four steps


def test_the_model_s_own_example(call, model: str, tmp_path: Path) -> None:
    """No prompt and no picture: what the model folder suggests, which single options override."""
    folder = tmp_path / "with-example"
    shutil.copytree(model, folder)
    example = {"source_prompt": "a red cat", "prompt": "a red dog", "seed": 5, "steps": 3, "guidance": 4.0}
    (folder / "demo.json").write_text(json.dumps(example))
    assert call("run", "--method", "fpe", "--model", folder, "--out", "a").code == 0
    record = Manifest.read(tmp_path / "a/manifest.json")
    assert [lane.prompt for lane in record.lanes] == ["a red cat", "a red dog"]
    assert (record.settings.seed, record.settings.steps, record.settings.guidance) == (5, 3, 4.0)
    # with prompts of one's own, the numbers that suit the model stay, its seed does not
    words = ["--source-prompt", "a house", "--prompt", "a tree", "--steps", "2"]
    assert call("run", "--method", "fpe", "--model", folder, "--out", "b", *words).code == 0
    record = Manifest.read(tmp_path / "b/manifest.json")
    assert (record.settings.seed, record.settings.steps, record.settings.guidance) == (0, 2, 4.0)


def test_settings_that_suit_the_model(call, model: str, tmp_path: Path) -> None:
    """They fill in what the user left open, and say so; a setting or a preset of one's own wins."""
    folder = tmp_path / "with-settings"
    shutil.copytree(model, folder)
    suggested = {"fpe": {"min_downscale": 1, "no_such_setting": 2}, "no_such_method": {"x": 1}}
    (folder / "demo.json").write_text(json.dumps({"settings": suggested}))

    def record(name: str, *words: str) -> Manifest:
        done = call("run", "--method", "fpe,none", "--model", folder, *PAIR, "--steps", "1", "--out", name, *words)
        assert done.code == 0, done.err
        said = "note: settings that suit this model: fpe.min_downscale=1" in done.err
        found = Manifest.read(tmp_path / name / "manifest.json")
        assert said == (not words)
        return found

    def downscale(found: Manifest) -> object:
        return next(lane.config["min_downscale"] for lane in found.lanes if lane.method == "fpe")

    assert downscale(record("a")) == 1
    assert downscale(record("b", "--set", "fpe.min_downscale=4")) == 4
    assert record("c", "--preset", "fpe.paper").lanes[1].preset == "paper"
    told = call("explain", "fpe", "--model", folder, "--json").data
    assert told["settings"]["min_downscale"] == 1


def test_a_model_without_an_example_says_so(run) -> None:
    assert "suggests no example to run" in run().error


def test_fresh_folders_are_numbered(run, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(*PAIR, "--seed", "3", "--steps", "1").code == 0
    assert sorted(p.name for p in (tmp_path / "attnctl-runs").iterdir()) == ["fpe-3-1", "fpe-3-2"]


def test_force_replaces_pictures_and_keeps_the_older_record(run, tmp_path: Path) -> None:
    assert run(*PAIR, "--out", "o", "--seed", "1", "--steps", "1").code == 0
    old = (tmp_path / "o/manifest.json").read_bytes()
    assert run(*PAIR, "--out", "o", "--seed", "2", "--steps", "1", "--force").code == 0
    assert Manifest.read(tmp_path / "o/manifest.json").settings.seed == 2
    assert (tmp_path / "o/manifest-replaced-1.json").read_bytes() == old


def test_an_edit_that_changes_nothing_is_an_error_with_its_pictures(run, tmp_path: Path) -> None:
    done = run("--source-prompt", "a red car", "--prompt", "a red car", "--out", "o")
    assert done.code == 2
    assert "is identical to its uncontrolled lane: its prompt equals the source's" in done.error
    assert Manifest.read(tmp_path / "o/manifest.json").coverage[0].changed is False
    assert (tmp_path / "o/fpe.png").read_bytes() == (tmp_path / "o/source.png").read_bytes()
    assert "written to o" in done.out


def test_that_error_is_in_the_json_too_and_can_be_allowed(run) -> None:
    same = ["--source-prompt", "a red car", "--prompt", "a red car", "--json", "--steps", "2"]
    done = run(*same)
    assert done.code == 2
    assert done.data["error"]["message"] in done.error
    done = run(*same, "--allow-no-op")
    assert done.code == 0
    assert done.data["error"] is None


def test_a_method_that_silently_does_nothing_is_an_error(run) -> None:
    done = run(*PAIR, "--plugin", TROUBLE, method="nothing")
    assert "the edit 'nothing' (nothing) is identical to its uncontrolled lane" in done.error


def test_no_steps_by_wish_is_no_error(run) -> None:
    done = run(*PAIR, "--set", "self_replace=0", "--steps", "2")
    assert done.code == 0
    assert "nothing to do" in done.out


@pytest.mark.parametrize(("text", "layers"), [("4-14", list(range(4, 15))), ("2,5,7-9", [2, 5, 7, 8, 9]), ("7", [7])])
def test_layers_are_typed_as_numbers_and_ranges(run, text: str, layers: list[int], tmp_path: Path) -> None:
    settings = ["--set", f"layers={text}", "--set", "min_downscale=none"]
    assert run(*PAIR, *settings, "--out", "o", "--steps", "2").code == 0
    assert Manifest.read(tmp_path / "o/manifest.json").lanes[1].config["layers"] == layers


def test_long_prompts_say_what_is_cut(run) -> None:
    tail = "with a striped boat"
    done = run("--source-prompt", "a red car", "--prompt", "red " * 75 + tail, "--steps", "1")
    assert done.code == 0, done.err
    assert f"warning: the prompt is longer than 77 tokens; this part is cut off: {tail!r}" in done.err


def test_words_that_a_model_never_saw_are_named(call, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    shutil.copytree(model, folder)
    (folder / "words.json").write_text(json.dumps(["a", "red", "car"]))
    words = ["--source-prompt", "a red car", "--prompt", "a Red zeppelin", "--steps", "1"]
    done = call("run", "--method", "fpe", "--model", folder, *words)
    assert done.code == 0
    assert "has never seen: zeppelin" in done.err


def test_a_lane_cannot_take_the_place_of_the_source(run, tmp_path: Path) -> None:
    """A method may be called like one of the files that every run writes."""
    plugin = tmp_path / "named.py"
    text = Path(TROUBLE).read_text().replace('name = "nothing"', 'name = "side-by-side"')
    plugin.write_text(text)
    done = run(*PAIR, "--plugin", plugin, "--allow-no-op", "--out", "o", "--steps", "2", method="side-by-side")
    assert done.code == 0, done.err
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert names == {"source.png", "side-by-side.png", "side-by-side-2.png", "manifest.json"}


COUNTING = """
from pathlib import Path
from typing import ClassVar
from pydantic import model_validator
from attnctl.hookspecs import hookimpl
from attnctl.method import EditMethod, EditPlan, MethodConfig, Preset, Source

class Counting(EditMethod):
    name = "counting"
    no_op = True
    presets: ClassVar = {"much": Preset({"share": 0.9}, "much of it")}

    class Config(MethodConfig):
        share: float = 0.5

        @model_validator(mode="after")
        def count(self):
            with Path("validated.txt").open("a") as file:
                file.write(f"{self.share} ")
            return self

    def plan(self, request, model):
        return EditPlan(Source(request.source_prompt or ""))

@hookimpl
def attnctl_methods():
    return [Counting]
"""


def test_settings_are_validated_once_where_they_enter(call, model: str, tmp_path: Path) -> None:
    """Not again by the plan, the run or its record, however many edits share them."""
    (tmp_path / "counting.py").write_text(COUNTING)
    options = ("--plugin", "counting.py", "--model", model, "--steps", "2", "--preset", "much", "--set", "share=0.6")
    edits = ("--source-prompt", "a red car", "--edits", "a blue car", "a green car")
    done = call("run", "--method", "counting", *options, *edits, "--out", "there")
    assert done.code == 0, done.err
    assert (tmp_path / "validated.txt").read_text() == "0.6 "
    record = Manifest.read(tmp_path / "there" / "manifest.json")
    assert [(lane.preset, lane.config) for lane in record.lanes[1:]] == [("much", {"share": 0.6})] * 2
    (tmp_path / "validated.txt").unlink()
    assert call("explain", "counting", *options).code == 0
    assert (tmp_path / "validated.txt").read_text() == "0.6 "
