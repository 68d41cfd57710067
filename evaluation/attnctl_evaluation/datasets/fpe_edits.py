"""The four prompt sets of the FPE paper (arXiv 2403.03431; alibaba/EasyNLP, diffusion/FreePromptEditing/datasets)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError
from attnctl.files import read_json, shown
from attnctl.hookspecs import hookimpl
from attnctl.method import MethodConfig
from attnctl_evaluation.datasets.tables import (
    case_id,
    check_columns,
    file_picture,
    inside,
    missing_picture,
    text_of,
)

_BIBTEX = """\
@inproceedings{liu2024towards,
  title = {Towards Understanding Cross and Self-Attention in Stable Diffusion for Text-Guided Image Editing},
  author = {Liu, Bingyan and Wang, Chengyu and Cao, Tingfeng and Jia, Kui and Huang, Jun},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2024}
}"""

SOURCE = "soure_prompt"
"""The key of the source prompt as the published files spell it; the right spelling is read as well."""


class CarFakeEdit(Dataset):
    """Every ordered pair of 28 colour words: "a red car" -> "a green car"."""

    name = "car-fake-edit"
    summary = "FPE's generated cars: 756 ordered pairs of 28 colour words, made by rule."
    paper, bibtex = "arXiv:2403.03431", _BIBTEX

    def cases(self) -> Sequence[Case]:
        """Return the 756 cases in the published order."""
        from attnctl_evaluation.world.colours import COLOURS

        return [
            Case(
                id=f"{before}-to-{after}",
                prompt=f"a {after} car",
                source_prompt=f"a {before} car",
                edit_type="change-colour",
                blend_words=("car", "car"),
                facts={"before": before, "after": after},
            )
            for before, after in permutations(COLOURS, 2)
        ]


class _FromFile(Dataset):
    """One of the published JSON files: a list of objects with a source and a target prompt, and maybe a picture."""

    paper, bibtex, needs_path = "arXiv:2403.03431", _BIBTEX, True
    file: ClassVar[str]
    with_pictures: ClassVar[bool]
    edit_type: ClassVar[str]

    class Config(MethodConfig):
        """Where the file and the pictures are."""

        path: str = Field("", description="The published JSON file, or the folder that it lies in.")
        images: str = Field("", description="Folder that the file's picture names start from; default: the file's own.")

    def cases(self) -> Sequence[Case]:
        """Read the file.

        Raises:
            InputError: It is missing or damaged, or an entry is; the message names the entry.
        """
        path = Path(self.config.path).expanduser()
        path = path / self.file if path.is_dir() else path
        entries = read_json(path)
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{shown(path)} holds no list of entries", hint=f"name the published {self.file}")
        images = Path(self.config.images).expanduser() if self.config.images else path.parent
        taken: set[str] = set()
        return [self._case(f"{shown(path)}, entry {n}", entry, images, taken) for n, entry in enumerate(entries, 1)]

    def _case(self, where: str, entry: Any, images: Path, taken: set[str]) -> Case:
        if not isinstance(entry, dict):
            raise InputError(f"{where} is no object", hint="mend that entry")
        row = {"source_prompt" if k == SOURCE else k: v for k, v in entry.items()}
        required = ("source_prompt", "edit_prompt", *(["image_name"] if self.with_pictures else []))
        check_columns(where, row, ("source_prompt", "edit_prompt", "image_name"), required)
        before, after = text_of(where, row, "source_prompt"), text_of(where, row, "edit_prompt")
        name = text_of(where, row, "image_name") if self.with_pictures else before
        file = inside(images, name, where) if self.with_pictures else None
        return Case(
            id=case_id(f"{Path(name).stem}-{after}" if file else f"{before}-to-{after}", taken),
            prompt=after,
            source_prompt=before,
            edit_type=self.edit_type,
            picture=file_picture(file) if file else None,
            missing=missing_picture(file) if file else "",
        )


class CarRealEdit(_FromFile):
    """Photographs of Stanford Cars, recoloured."""

    name = "car-real-edit"
    summary = "FPE's real cars: 4058 recolourings of 150 photographs of Stanford Cars."
    file, with_pictures, edit_type = "Car_real_edit.json", True, "change-colour"


class ImageNetFakeEdit(_FromFile):
    """Generated animals and things, turned into others."""

    name = "imagenet-fake-edit"
    summary = "FPE's generated ImageNet classes: 1182 changes of one class into another."
    file, with_pictures, edit_type = "ImageNet_fake_edit.json", False, "change-object"


class ImageNetRealEdit(_FromFile):
    """Photographs of ImageNet's validation set, turned into others."""

    name = "imagenet-real-edit"
    summary = "FPE's real ImageNet pictures: 1092 changes of one class into another."
    file, with_pictures, edit_type = "ImageNet_real_edit.json", True, "change-object"


@hookimpl
def attnctl_datasets() -> list[type[Dataset]]:
    """Return the paper's four sets."""
    return [CarFakeEdit, CarRealEdit, ImageNetFakeEdit, ImageNetRealEdit]
