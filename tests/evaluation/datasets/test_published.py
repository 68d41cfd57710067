"""Loaders of other people's data sets and of folders: what they read, and how they name what is wrong."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError
from attnctl_evaluation.datasets.fpe_edits import CarFakeEdit, CarRealEdit, ImageNetFakeEdit, ImageNetRealEdit
from attnctl_evaluation.datasets.own_folder import Folder
from attnctl_evaluation.datasets.pie_bench import PIEBench, decode_mask
from attnctl_evaluation.datasets.tables import InnerPicture
from attnctl_evaluation.datasets.ti2i import TI2I


def read(kind: type[Dataset], path: Path, **settings: object) -> list[Case]:
    return list(kind(kind.Config(path=str(path), **settings)).cases())


def picture(path: Path, size: tuple[int, int] = (40, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, size[0], dtype=np.uint8)
    Image.fromarray(np.broadcast_to(ramp[None, :, None], (size[1], size[0], 3)).copy()).save(path)
    return path


@pytest.fixture
def fpe_data(root: Path) -> Path:
    folder = root.parent / "shared" / "data"
    if not (folder / "Car_fake_edit.json").is_file():
        pytest.skip("no ../shared/data beside this checkout: the published prompt sets are not there to compare with")
    return folder


class TestFPE:
    def test_the_rule_gives_the_published_car_set_in_its_order(self, fpe_data: Path) -> None:
        published = json.loads((fpe_data / "Car_fake_edit.json").read_text())
        made = CarFakeEdit().cases()
        assert [(c.source_prompt, c.prompt) for c in made] == [(e["soure_prompt"], e["edit_prompt"]) for e in published]

    def test_every_ordered_pair_of_28_colours_once(self) -> None:
        made = CarFakeEdit().cases()
        assert len(made) == len({c.id for c in made}) == len({(c.source_prompt, c.prompt) for c in made}) == 28 * 27
        assert len({c.source_prompt for c in made}) == 28

    @pytest.mark.parametrize(
        ("kind", "count", "real"),
        [(CarRealEdit, 4058, True), (ImageNetFakeEdit, 1182, False), (ImageNetRealEdit, 1092, True)],
    )
    def test_the_other_three_files_are_read_whole(self, kind: type, count: int, real: bool, fpe_data: Path) -> None:
        made = read(kind, fpe_data)
        assert len(made) == len({c.id.lower() for c in made}) == count
        assert all(c.real == real for c in made)
        assert all(("there is no picture" in c.missing) == real for c in made)

    def test_pictures_that_are_there_are_loaded_and_others_counted(self, tmp_path: Path) -> None:
        entries = [
            {"image_name": n, "soure_prompt": "a white car", "edit_prompt": "a red car"} for n in ("a.png", "b.png")
        ]
        (tmp_path / "cars.json").write_text(json.dumps(entries))
        picture(tmp_path / "pictures" / "a.png")
        made = read(CarRealEdit, tmp_path / "cars.json", images=str(tmp_path / "pictures"))
        assert [bool(c.missing) for c in made] == [False, True]
        assert made[0].picture((16, 16)).size == (16, 16)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("[{]", "line 1, column 3"),
            ("{}", "no list of entries"),
            ("[1]", "entry 1 is no object"),
            ('[{"soure_prompt": "a", "edit_prompt": "b"}, {"soure_prompt": "a"}]', "entry 2 has no edit_prompt"),
            ('[{"soure_prompt": "a", "edit_prompt": 3}]', "entry 1: edit_prompt is a int"),
            ('[{"soure_prompt": "a", "edit_promt": "b"}]', "entry 1: unknown column 'edit_promt'"),
        ],
    )
    def test_the_bad_entry_is_named(self, text: str, why: str, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match=why):
            read(ImageNetFakeEdit, tmp_path / "x.json")


RUNS = [0, 3, 512 * 511 + 500, 100, 512 * 100 + 50, 20]


class TestPIEBench:
    def mapping(self, folder: Path, **changes: object) -> Path:
        entry = {
            "image_path": "0_random_140/000000000000.jpg",
            "original_prompt": "a [red] car",
            "editing_prompt": "a [blue] car",
            "editing_instruction": "make it blue",
            "editing_type_id": "6",
            "blended_word": "car car",
            "mask": RUNS,
        } | changes
        folder.mkdir(exist_ok=True)
        (folder / "mapping_file.json").write_text(json.dumps({"000000000000": entry}))
        return folder

    def test_the_folder_layout(self, tmp_path: Path) -> None:
        self.mapping(tmp_path)
        picture(tmp_path / "annotation_images" / "0_random_140" / "000000000000.jpg", (64, 64))
        (case,) = read(PIEBench, tmp_path)
        assert (case.source_prompt, case.prompt, case.edit_type) == ("a red car", "a blue car", "change-colour")
        assert case.blend_words == ("car", "car")
        assert not case.missing
        assert case.picture((32, 32)).size == (32, 32)
        assert case.mask((512, 512))[100, 50:70].all()

    def test_a_missing_picture_is_counted_not_fatal(self, tmp_path: Path) -> None:
        (case,) = read(PIEBench, self.mapping(tmp_path))
        assert "000000000000.jpg" in case.missing
        assert case.real

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"mask": [1, 2, 3]}, "pairs of start and length"),
            ({"mask": [-1, 2]}, "pairs of start and length"),
            ({"mask": ["x", 2]}, "whole numbers"),
            ({"mask": None}, "mask cannot be read"),
            ({"editing_type_id": "10"}, "editing_type_id is 10"),
            ({"editing_prompt": ""}, "editing_prompt is empty"),
            ({"image_path": "../../etc/passwd"}, "leads out of the folder"),
            ({"image_path": "/etc/passwd"}, "leads out of the folder"),
        ],
    )
    def test_the_bad_entry_is_named(self, changes: dict, why: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=f"entry '000000000000'.*{why}"):
            read(PIEBench, self.mapping(tmp_path, **changes))

    def test_the_mask_is_decoded_as_the_benchmark_does(self) -> None:
        """Starts and lengths row by row, cut at the end, the outermost ring set."""
        flat = np.zeros(512 * 512)
        for start, length in zip(RUNS[::2], RUNS[1::2], strict=True):
            for i in range(start, min(start + length, 512 * 512)):
                flat[i] = 1
        expected = flat.reshape(512, 512).copy()
        assert (decode_mask(RUNS, frame=False) == (expected > 0)).all()
        expected[0], expected[-1], expected[:, 0], expected[:, -1] = 1, 1, 1, 1
        assert (decode_mask(RUNS) == (expected > 0)).all()
        assert decode_mask([]).sum() == 4 * 511

    def test_the_parquet_layout_gives_the_same_cases(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: parquet files cannot be read")
        parquet = pytest.importorskip("pyarrow.parquet", reason="this pyarrow cannot read parquet files")
        file = picture(tmp_path / "a.png", (64, 64))
        row = {
            "image": {"bytes": file.read_bytes(), "path": "a.png"}, "id": "000000000000",
            "source_prompt": "a [red] car", "target_prompt": "a [blue] car", "edit_action": "{}",
            "aspect_mapping": "{}", "blended_words": "car car", "mask": " ".join(map(str, RUNS)),
        }  # fmt: skip
        folder = tmp_path / "tables" / "6_change_attribute_color_40"
        folder.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "V1-00000-of-00001.parquet")
        (case,) = read(PIEBench, tmp_path / "tables")
        (other,) = read(PIEBench, self.mapping(tmp_path / "folder"))
        for name in ("id", "prompt", "source_prompt", "edit_type", "blend_words"):
            assert getattr(case, name) == getattr(other, name)
        assert (case.mask((512, 512)) == other.mask((512, 512))).all()
        assert np.array_equal(np.asarray(case.picture(None)), np.asarray(Image.open(file)))
        (folder / "V1-00000-of-00001.parquet").write_bytes(b"PAR1 nonsense")
        with pytest.raises(InputError, match="cannot read"):
            read(PIEBench, tmp_path / "tables")

    @pytest.mark.parametrize("kind", ["exif", "alpha", "16-bit", "GIF", "BMP", "TIFF", "WEBP", "wide"])
    def test_parquet_pictures_are_decoded_as_those_of_the_folder(self, kind: str, tmp_path: Path) -> None:
        """Byte for byte, at their own size and at another."""
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: parquet files cannot be read")
        parquet = pytest.importorskip("pyarrow.parquet", reason="this pyarrow cannot read parquet files")
        levels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        image, form, more = Image.fromarray(levels[:, :40] if kind == "wide" else levels), "PNG", {}
        if kind == "exif":
            more["exif"] = exif = Image.Exif()
            exif[0x0112] = 6
            form = "JPEG"
        elif kind == "alpha":
            image.putalpha(Image.fromarray(levels[..., 0]))
        elif kind == "16-bit":
            image = Image.fromarray(levels[..., 0].astype(np.uint16) * 200)
        elif kind != "wide":
            form = kind
        file = tmp_path / "folder" / "annotation_images" / "0_random_140" / "000000000000.jpg"
        file.parent.mkdir(parents=True)
        image.save(file, form, **more)
        row = {
            "image": {"bytes": file.read_bytes(), "path": "a"}, "id": "000000000000", "source_prompt": "a",
            "target_prompt": "b", "blended_words": "", "mask": RUNS,
        }  # fmt: skip
        folder = tmp_path / "tables" / "0_random_140"
        folder.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "V1-00000-of-00001.parquet")
        (case,) = read(PIEBench, tmp_path / "tables")
        (other,) = read(PIEBench, self.mapping(tmp_path / "folder"))
        for size in (None, (64, 64), (24, 40)):
            assert np.array_equal(np.asarray(case.picture(size)), np.asarray(other.picture(size)))
        assert case.digests() == other.digests()

    def test_a_damaged_picture_in_parquet_says_its_row(self, tmp_path: Path) -> None:
        picture = InnerPicture(b"no picture", "'x.parquet', row 3")
        with pytest.raises(InputError, match=r"'x\.parquet', row 3 is not a picture"):
            picture((8, 8))

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"neither mapping_file\.json nor parquet"):
            read(PIEBench, tmp_path)


class TestTI2I:
    def test_one_case_for_each_target(self, tmp_path: Path) -> None:
        picture(tmp_path / "data" / "a.png")
        (tmp_path / "x.yaml").write_text(
            "- init_img: data/a.png\n  target_prompts:\n    - a cat\n    - a dog\n"
            "- source_prompt: a horse\n  seed: 7\n  target_prompts: a zebra\n"
            "- input_img: data/b.png\n  source_prompt: a hat\n  target_prompt: a cap\n"
        )
        made = read(TI2I, tmp_path / "x.yaml")
        assert [(c.source_prompt, c.prompt, c.real, bool(c.missing), c.seed) for c in made] == [
            (None, "a cat", True, False, None),
            (None, "a dog", True, False, None),
            ("a horse", "a zebra", False, False, 7),
            ("a hat", "a cap", True, True, None),
        ]
        assert len({c.id for c in made}) == 4

    def test_aliases_are_read_and_bombs_of_them_are_not(self, tmp_path: Path) -> None:
        file = tmp_path / "x.yaml"
        file.write_text("- {source_prompt: a, target_prompts: &t [b, c]}\n- {source_prompt: d, target_prompts: *t}\n")
        assert [c.prompt for c in read(TI2I, file)] == ["b", "c", "b", "c"]
        bomb = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
        bomb += [f"- &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 12)]
        for text in ("\n".join([*bomb, "- {source_prompt: a, target_prompts: b, seed: *a11}"]), "- &a [*a]"):
            file.write_text(text)
            with pytest.raises(InputError, match="stands for"):
                read(TI2I, file)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("[" * 20_000, "nested more than 64 deep"),
            ("- init_img: " + "9" * 5000, "no YAML"),
            ("- init_img: 2001-99-99", "no YAML"),
            ("- ? [a]\n  : b", "line 1|no YAML"),
            ("- init_img: [", "line 2"),
            ("a: 1", "holds no list"),
            ("- init_img: a.png", "entry 1 has no target_prompts"),
            ("- target_prompts: [a]", "entry 1 has neither"),
            ("- init_img: a.png\n  target_prompts: [1]", "entry 1: target_prompts is a int"),
            ("- source_prompt: a\n  target_prompts: [b]\n  seed: x", "seed is 'x'"),
            ("!!python/object/apply:os.system ['echo']", "x.yaml"),
        ],
    )
    def test_the_bad_entry_is_named(self, text: str, why: str, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text(text + "\n")
        with pytest.raises(InputError, match=why):
            read(TI2I, tmp_path / "x.yaml")


class TestFolder:
    def test_csv_and_jsonl_say_the_same(self, tmp_path: Path) -> None:
        picture(tmp_path / "car.png")
        Image.fromarray(np.arange(40, dtype=np.uint8)[None].repeat(20, 0) // 20).save(tmp_path / "mask.png")
        rows = [
            {"image": "car.png", "prompt": 'a "blue" car, shiny', "source_prompt": "a car", "mask": "mask.png",
             "seed": "3"},
            {"prompt": "ein grüner Käfer", "source_prompt": "a beetle", "edit_type": "change-colour"},
            {"image": "gone.png", "prompt": "a hat", "id": "my-hat"},
        ]  # fmt: skip
        head = ["image", "prompt", "source_prompt", "mask", "seed", "edit_type", "id"]
        quoted = [",".join('"' + r.get(h, "").replace('"', '""') + '"' for h in head) for r in rows]
        (tmp_path / "edits.csv").write_text("\ufeff" + "\n".join([",".join(head), *quoted]) + "\n", encoding="utf-8")
        (tmp_path / "e.jsonl").write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
        made = read(Folder, tmp_path)
        assert [c.as_dict() for c in made] == [c.as_dict() for c in read(Folder, tmp_path / "e.jsonl")]
        assert made[0].prompt == 'a "blue" car, shiny'
        assert made[0].mask((20, 40))[:, 20:].all()
        assert not made[0].mask((20, 40))[:, :20].any()
        assert made[0].seed == 3
        assert made[1].prompt == "ein grüner Käfer"
        assert made[2].id == "my-hat"
        assert Counter(bool(c.missing) for c in made) == {False: 2, True: 1}

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("image,promt\na.png,x", "line 2: unknown column 'promt'"),
            ("image,prompt\na.png", "line 2 has 1 cells, expected 2"),
            ("image,prompt\n\na.png,", "line 3 has no prompt"),
            ("prompt\nx", "neither image nor source_prompt"),
            ('image,prompt\n"a.png,x', "line 2"),
            ("image,prompt,mask\na.png,x,m.png", "the mask cannot be used: there is no picture"),
            ("image,prompt,seed\na.png,x,-1", "seed is '-1'"),
            ("image,prompt,id\na.png,x,a\na.png,y,A", "'A' is there twice"),
            ("image,prompt,id\na.png,x,../a", "cannot name a file"),
            ("image,prompt", "holds no rows"),
        ],
    )
    def test_the_bad_line_is_named(self, text: str, why: str, tmp_path: Path) -> None:
        (tmp_path / "edits.csv").write_text(text)
        with pytest.raises(InputError, match=why):
            read(Folder, tmp_path)

    @pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
    def test_odd_separators_end_no_line(self, odd: str, tmp_path: Path) -> None:
        """JSONL ends lines at line feeds, CSV at line ends outside of quotes: what else Unicode knows is text."""
        rows = [
            {"source_prompt": "a", "prompt": f"one{odd}two", "id": "x"},
            {"source_prompt": "b", "prompt": "c", "id": "y"},
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
        (tmp_path / "e.jsonl").write_bytes(text.encode())
        made = read(Folder, tmp_path / "e.jsonl")
        assert [c.prompt for c in made] == [f"one{odd}two", "c"]
        (tmp_path / "edits.csv").write_bytes(f"id,source_prompt,prompt\nx,a,one{odd}two\r\ny,b,c\n".encode())
        assert [c.prompt for c in read(Folder, tmp_path)] == [f"one{odd}two", "c"]
        (tmp_path / "edits.csv").write_bytes(f"id,source_prompt,prompt\nx,a,one{odd}two\ny,b\n".encode())
        with pytest.raises(InputError, match="line 3 has 2 cells"):
            read(Folder, tmp_path)

    def test_names_that_differ_in_capitals_are_hinted_at(self, tmp_path: Path) -> None:
        picture(tmp_path / "Car.PNG")
        (tmp_path / "edits.csv").write_text("image,prompt\ncar.png,x\n")
        (case,) = read(Folder, tmp_path)
        assert "but 'Car.PNG': capitals count" in case.missing

    def test_a_fingerprint_covers_the_files(self, tmp_path: Path) -> None:
        picture(tmp_path / "car.png")
        (tmp_path / "edits.csv").write_text("image,prompt\ncar.png,x\n")

        def fingerprint() -> str:
            return Folder(Folder.Config(path=str(tmp_path))).fingerprint()

        before = fingerprint()
        assert fingerprint() == before
        picture(tmp_path / "car.png", (41, 20))
        assert fingerprint() != before

    def test_full_empty_and_ill_fitting_masks_are_refused(self, tmp_path: Path) -> None:
        picture(tmp_path / "car.png")
        (tmp_path / "edits.csv").write_text("image,prompt,mask\ncar.png,x,m.png\n")
        for level, why in ((255, "everything"), (0, "nothing")):
            Image.new("L", (40, 20), level).save(tmp_path / "m.png")
            (case,) = read(Folder, tmp_path)
            with pytest.raises(InputError, match=f"lets {why} change"):
                case.mask((20, 20))
        Image.fromarray(np.eye(20, dtype=np.uint8)).save(tmp_path / "m.png")
        with pytest.raises(InputError, match="is 20 x 20, its picture 40 x 20"):
            case.mask((20, 20))

    def test_tables_that_are_no_files_are_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "e.jsonl")
        with pytest.raises(InputError, match="it is a pipe"):
            read(Folder, tmp_path / "e.jsonl")
        (tmp_path / "d.jsonl").write_text("[" * 200_000)
        with pytest.raises(InputError, match="line 1: values are nested"):
            read(Folder, tmp_path / "d.jsonl")

    def test_a_bad_line_of_jsonl_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_text('{"image": "a.png", "prompt": "x"}\n{"image": \n')
        with pytest.raises(InputError, match="line 2"):
            read(Folder, tmp_path / "x.jsonl")

    def test_masks_follow_their_pictures_into_a_square(self, tmp_path: Path) -> None:
        """A wide picture loses its sides, and so does its mask."""
        picture(tmp_path / "car.png")
        mask = np.zeros((20, 40), np.uint8)
        mask[:, :12] = 255
        Image.fromarray(mask).save(tmp_path / "mask.png")
        (tmp_path / "edits.csv").write_text("image,prompt,mask\ncar.png,x,mask.png\n")
        (case,) = read(Folder, tmp_path)
        fitted = case.mask((20, 20))
        assert fitted[:, :2].all()
        assert not fitted[:, 2:].any()
        levels = np.asarray(case.picture((20, 20)))[:, :, 0]
        whole = np.asarray(case.picture(None))[:, :, 0]
        assert np.abs(levels.astype(int) - whole[:, 10:30].astype(int)).max() <= 1

    @pytest.mark.parametrize("name", ["nothing", "edits.txt"])
    def test_a_place_without_a_table_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"neither|cannot read"):
            read(Folder, tmp_path / name)
        with pytest.raises(InputError, match=r"neither edits\.csv"):
            read(Folder, tmp_path)
