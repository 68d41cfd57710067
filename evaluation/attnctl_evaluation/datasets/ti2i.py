"""Lists of pictures and target prompts in YAML, as Plug-and-Play's TI2I benchmarks and their successors write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from attnctl.dataset import Case, Dataset
from attnctl.errors import InputError
from attnctl.files import MAX_DEPTH, read_text, reason, shown
from attnctl.hookspecs import hookimpl
from attnctl.method import MethodConfig
from attnctl.terminal import shorten
from attnctl_evaluation.datasets.tables import case_id, file_picture, inside, missing_picture, text_of

_NAMES: Mapping[str, tuple[str, ...]] = {
    "picture": ("init_img", "input_img", "image", "image_path"),
    "source": ("source_prompt", "src_prompt", "prompt"),
    "targets": ("target_prompts", "target_prompt", "tar_prompts", "tar_prompt"),
    "seed": ("seed",),
}
"""Spellings that files in use have, by what they mean; the first one is preferred."""


MAX_YAML_BYTES = 4 * 2**20
"""Bytes that a list may have; PyYAML reads about one MiB in ten seconds."""


MAX_YAML_VALUES = 1_000_000
"""Values that a list may hold, those counted again that an alias stands for."""


class TI2I(Dataset):
    """A YAML list; every entry has a picture or a source prompt, and one or more target prompts."""

    name = "ti2i"
    summary = (
        "A YAML list of pictures (init_img) or source prompts, each with target_prompts, as Plug-and-Play has them."
    )
    paper = "arXiv:2211.12572"
    needs_path = True

    class Config(MethodConfig):
        """Where the file and the pictures are."""

        path: str = Field("", description="The YAML file.")
        images: str = Field("", description="Folder that picture names start from; default: the file's own.")

    def cases(self) -> Sequence[Case]:
        """Read the file; an entry with n target prompts gives n cases.

        Raises:
            InputError: It is missing or malformed; the message names the line or the entry.
        """
        path = Path(self.config.path).expanduser()
        images = Path(self.config.images).expanduser() if self.config.images else path.parent
        entries = _parse(path)
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{shown(path)} holds no list", hint="write '- init_img: ...' entries")
        taken: set[str] = set()
        return [
            case
            for n, entry in enumerate(entries, 1)
            for case in _cases(f"{shown(path)}, entry {n}", entry, images, taken)
        ]


def _parse(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise InputError(
            "reading YAML needs PyYAML, which is not installed", hint="pip install 'attnctl[eval]'"
        ) from error
    hint = "mend the file"

    class Bounded(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses what is nested deep, and aliases that stand for far more than is written."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise InputError(f"{shown(path)}: values are nested more than {MAX_DEPTH} deep", hint=hint)
            sizes = self.__dict__.setdefault("sizes", {})
            alias = self.check_event(yaml.AliasEvent)
            node = super().compose_node(parent, index)
            self.depth -= 1
            if alias and id(node) not in sizes:
                raise InputError(f"{shown(path)}: an alias stands for a part that it is in", hint=hint)
            if not alias:
                parts = node.value if isinstance(node, yaml.CollectionNode) else []
                flat = [n for part in parts for n in (part if isinstance(part, tuple) else (part,))]
                sizes[id(node)] = 1 + sum(sizes[id(n)] for n in flat)
            if sizes[id(node)] > MAX_YAML_VALUES:
                raise InputError(f"{shown(path)}: it stands for more than {MAX_YAML_VALUES} values", hint=hint)
            return node

    text = read_text(path, limit=MAX_YAML_BYTES)
    try:
        return yaml.load(text, Loader=Bounded)  # noqa: S506  (a safe loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{shown(path)}{line}: {shorten(str(error.problem), 200)}", hint="mend that line") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError) as error:  # numbers, dates, keys
        raise InputError(f"{shown(path)} is no YAML: {shorten(reason(error), 200)}", hint=hint) from error


def _cases(where: str, entry: Any, images: Path, taken: set[str]) -> Iterator[Case]:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is no mapping", hint="write '- init_img: ...' and below it 'target_prompts:'")
    found = {kind: next((n for n in names if n in entry), None) for kind, names in _NAMES.items()}
    if found["targets"] is None:
        raise InputError(f"{where} has no target_prompts", hint="add the prompts to edit towards")
    if found["picture"] is None and found["source"] is None:
        raise InputError(f"{where} has neither init_img nor source_prompt", hint="one of them says what the source is")
    given = entry[found["targets"]]
    targets = given if isinstance(given, list) else [given]
    if not targets:
        raise InputError(f"{where}: {found['targets']} is empty", hint="add the prompts to edit towards")
    source = text_of(where, entry, found["source"]) if found["source"] else None
    file = inside(images, text_of(where, entry, found["picture"]), where) if found["picture"] else None
    seed = entry[found["seed"]] if found["seed"] else None
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise InputError(
            f"{where}: seed is {shorten(repr(seed))}, expected a whole number from 0 up", hint="mend that entry"
        )
    for target in targets:
        prompt = text_of(where, {found["targets"]: target}, found["targets"])
        yield Case(
            id=case_id(f"{file.stem if file else 'drawn'}-{prompt[:40]}", taken),
            prompt=prompt,
            source_prompt=source,
            edit_type="edit",
            picture=file_picture(file) if file else None,
            missing=missing_picture(file) if file else "",
            seed=seed,
        )


@hookimpl
def attnctl_datasets() -> list[type[Dataset]]:
    """Return the data set."""
    return [TI2I]
