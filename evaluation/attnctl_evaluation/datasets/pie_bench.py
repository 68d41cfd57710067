"""PIE-Bench (arXiv 2310.01506): 700 edits of pictures in ten types, with masks; the pictures are the user's to get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError
from attnctl.files import irregular, read_json, reason, shown
from attnctl.hookspecs import hookimpl
from attnctl.method import MethodConfig
from attnctl.terminal import shorten
from attnctl_evaluation.datasets.edit_types import EDIT_TYPES
from attnctl_evaluation.datasets.tables import (
    array_mask,
    bytes_picture,
    file_picture,
    inside,
    missing_picture,
    text_of,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 512
"""Width and height that the masks are drawn in."""

MAX_TABLE_BYTES = 8 * 2**30
"""Bytes that one parquet file may unpack to; the published ones stay below half of a gigabyte."""

_BIBTEX = """\
@inproceedings{ju2024pnp,
  title = {{PnP} Inversion: Boosting Diffusion-based Editing with 3 Lines of Code},
  author = {Ju, Xuan and Zeng, Ailing and Bian, Yuxuan and Liu, Shaoteng and Xu, Qiang},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}"""


def decode_mask(runs: Sequence[int], *, frame: bool = True) -> NDArray[np.bool_]:
    """Draw a mask from its run lengths as the benchmark's own evaluation does.

    Args:
        runs: Pairs of start and length, row by row in a picture of 512 x 512; runs over the end are cut there.
        frame: Whether the outermost ring of pixels counts as edited, as it does there ("to avoid annotation errors").

    Returns:
        Booleans (512, 512), true where the picture is edited.

    Raises:
        ValueError: The number of values is odd, or one is negative or not whole.
    """
    import numpy as np

    values = np.asarray(list(runs))
    if len(values) and not np.issubdtype(values.dtype, np.integer):
        raise ValueError("a mask's run lengths must be whole numbers")
    if len(values) % 2 or (values < 0).any():
        raise ValueError(f"a mask is pairs of start and length, found {len(values)} values")
    flat = np.zeros(SIDE * SIDE, dtype=bool)
    for start, length in values.reshape(-1, 2).tolist():
        flat[start : start + length] = True
    mask = flat.reshape(SIDE, SIDE)
    if frame:
        mask[0] = mask[-1] = True
        mask[:, 0] = mask[:, -1] = True
    return mask


def strip_brackets(prompt: str) -> str:
    """Take the brackets away that mark the words which change."""
    return prompt.replace("[", "").replace("]", "")


class PIEBench(Dataset):
    """The benchmark from its folder or from parquet files."""

    name = "pie-bench"
    summary = "PIE-Bench: 700 edits in ten types with masks, from its folder (mapping_file.json) or parquet files."
    paper, bibtex, needs_path = "arXiv:2310.01506", _BIBTEX, True

    class Config(MethodConfig):
        """Where the benchmark is."""

        path: str = Field("", description="Folder with mapping_file.json and annotation_images, or with parquet files.")
        frame: bool = Field(True, description="Count the outermost ring of pixels as edited, as the benchmark does.")

    def cases(self) -> Sequence[Case]:
        """Read the mapping, or all parquet files.

        Raises:
            InputError: Nothing is there, or an entry is malformed; the message names it.
        """
        folder = Path(self.config.path).expanduser()
        mapping = folder if folder.suffix == ".json" else folder / "mapping_file.json"
        if mapping.is_file():
            return list(self._from_mapping(mapping))
        tables = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
        if not tables:
            raise InputError(
                f"{shown(folder)} holds neither mapping_file.json nor parquet files",
                hint="name the benchmark's folder; its pictures are given out by its authors",
            )
        return list(self._from_parquet(folder, tables))

    def _from_mapping(self, path: Path) -> Iterator[Case]:
        entries = read_json(path)
        if not isinstance(entries, dict) or not entries:
            raise InputError(f"{shown(path)} holds no entries by name", hint="name the benchmark's mapping_file.json")
        for key, entry in entries.items():
            where = f"{shown(path)}, entry {shorten(repr(key))}"
            if not isinstance(entry, dict):
                raise InputError(f"{where} is no object", hint="mend that entry")
            file = inside(path.parent / "annotation_images", text_of(where, entry, "image_path"), where)
            number = str(entry.get("editing_type_id"))
            if number not in {str(n) for n in range(len(EDIT_TYPES))}:
                raise InputError(
                    f"{where}: editing_type_id is {shorten(number)}, expected 0 to 9", hint="mend that entry"
                )
            yield Case(
                id=_identifier(where, key),
                prompt=strip_brackets(text_of(where, entry, "editing_prompt")),
                source_prompt=strip_brackets(text_of(where, entry, "original_prompt")),
                edit_type=EDIT_TYPES[int(number)],
                picture=file_picture(file),
                missing=missing_picture(file),
                mask=self._mask(where, entry.get("mask")),
                blend_words=_blend(where, entry.get("blended_word", "")),
                instruction=text_of(where, entry, "editing_instruction", ""),
                facts={"image_path": text_of(where, entry, "image_path")},
            )

    def _from_parquet(self, folder: Path, tables: Sequence[Path]) -> Iterator[Case]:
        """Read the layout of the Hugging Face data set UB-CVML-Group/PIE_Bench_pp: one folder per edit type."""
        for path in tables:
            name = next((p for p in path.relative_to(folder).parts if p[:1].isdigit()), "")
            number = name.partition("_")[0]
            if number not in {str(n) for n in range(len(EDIT_TYPES))}:
                raise InputError(
                    f"the path of {shown(path)} names no edit type", hint="keep the folders 0_random_140 to 9_..."
                )
            for n, row in enumerate(_parquet_rows(path), 1):
                where = f"{shown(path)}, row {n}"
                picture = row["image"].get("bytes") if isinstance(row["image"], dict) else row["image"]
                picture = picture if isinstance(picture, bytes) else None
                yield Case(
                    id=_identifier(where, str(row["id"])),
                    prompt=strip_brackets(text_of(where, row, "target_prompt")),
                    source_prompt=strip_brackets(text_of(where, row, "source_prompt")),
                    edit_type=EDIT_TYPES[int(number)],
                    picture=bytes_picture(picture, where) if picture else None,
                    missing="" if picture else "the parquet file holds no picture here",
                    mask=self._mask(where, row["mask"]),
                    blend_words=_blend(where, row.get("blended_words") or ""),
                    facts={"table": path.relative_to(folder).as_posix()},
                )

    def _mask(self, where: str, given: Any) -> Any:
        """Check a mask now, so that a damaged one is told with its entry; draw it when it is asked for."""
        try:
            runs = [int(v) for v in given.split()] if isinstance(given, str) else list(given)
            decode_mask(runs, frame=self.config.frame)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{where}: the mask cannot be read: {reason(error)}", hint="mend that entry") from error
        frame = self.config.frame
        return array_mask(lambda: decode_mask(runs, frame=frame))


def _identifier(where: str, text: str) -> str:
    if not text or not all(c.isalnum() or c in "-_." for c in text) or text.startswith("."):
        raise InputError(
            f"{where}: {shorten(repr(text))} cannot name a file", hint="use letters, digits, '-', '_' and '.'"
        )
    return text


def _blend(where: str, value: Any) -> tuple[str, str]:
    """Split "source target"; the benchmark leaves it empty where a type has none."""
    if not isinstance(value, str):
        raise InputError(f"{where}: blended_word is a {type(value).__name__}, expected text", hint="mend that entry")
    words = value.split()
    return (words[0], words[1]) if len(words) == 2 else ("", "")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("parquet files need pyarrow, which is not installed", hint="pip install pyarrow") from error
    needed = ("image", "id", "source_prompt", "target_prompt", "mask")
    try:
        if kind := irregular(path.stat()):
            raise InputError(f"cannot read {shown(path)}: it is {kind}, not a regular file", hint="download it again")
        with pyarrow.parquet.ParquetFile(path) as table:
            stated = sum(table.metadata.row_group(n).total_byte_size for n in range(table.num_row_groups))
            if stated > MAX_TABLE_BYTES:
                raise InputError(
                    f"{shown(path)} holds {stated / 2**30:.1f} GiB, at most {MAX_TABLE_BYTES / 2**30:.0f} are read",
                    hint="split it into several files",
                )
            for name in needed:
                if name not in table.schema_arrow.names:
                    raise InputError(f"{shown(path)} has no column {name}", hint=f"needed are {', '.join(needed)}")
            for batch in table.iter_batches(64):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read {shown(path)}: {reason(error)}", hint="download it again") from error


@hookimpl
def attnctl_datasets() -> list[type[Dataset]]:
    """Return the data set."""
    return [PIEBench]
