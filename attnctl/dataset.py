"""Data sets as plugins: cases to edit, with what is known of each."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl.errors import InputError
from attnctl.plugin import Plugin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

Size = tuple[int, int]
"""Height and width in pixels."""

PictureLoader = Callable[["Size | None"], "Image"]
"""Gives an RGB picture of that size, or of its own size for None."""

MaskLoader = Callable[["Size | None"], "NDArray[np.bool_]"]
"""Gives booleans (H, W), true where the picture is to change."""


@dataclass(frozen=True, eq=False)
class Case:
    """One edit to try.

    Attributes:
        id: Unique in its data set; letters, digits, ``-``, ``_`` and ``.``, so that it can name files.
        prompt: Target prompt.
        source_prompt: Source prompt; None where the data set has none.
        edit_type: What sort of edit it is, for tables; one word of the data set's.
        picture: Loads the source picture; None: the source is generated from `source_prompt`.
        missing: Why the source picture cannot be had, in a sentence; empty when it can. It is counted, not run.
        mask: Loads the mask; None: unknown.
        truth: Loads the exact edited picture; None: unknown, as for all photographs.
        blend_words: Words of (source, target) that the edit is about; empty strings where there is none.
        instruction: The edit as an instruction.
        seed: Seed of the source; None leaves it to the run.
        facts: What else is known, plain data; metrics may read it.
    """

    id: str
    prompt: str
    source_prompt: str | None = None
    edit_type: str = "edit"
    picture: PictureLoader | None = None
    missing: str = ""
    mask: MaskLoader | None = None
    truth: PictureLoader | None = None
    blend_words: tuple[str, str] = ("", "")
    instruction: str = ""
    seed: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def real(self) -> bool:
        """Whether the source is a given picture."""
        return self.picture is not None or bool(self.missing)

    def as_dict(self) -> dict[str, Any]:
        """Return what is plain data, for records and fingerprints."""
        return {
            "id": self.id,
            "edit_type": self.edit_type,
            "source_prompt": self.source_prompt,
            "prompt": self.prompt,
            "real": self.real,
            "missing": self.missing,
            "has_mask": self.mask is not None,
            "has_truth": self.truth is not None,
            "blend_words": list(self.blend_words),
            "instruction": self.instruction,
            "seed": self.seed,
            "facts": dict(self.facts),
        }

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of the files that its loaders read, by role: picture, mask, truth.

        A loader says its file's by a method ``digest``; one that has none, because it draws what the plain data say,
        is left out. A file that cannot be read has an empty one.
        """
        found = {}
        for role, loader in (("picture", self.picture), ("mask", self.mask), ("truth", self.truth)):
            if (digest := getattr(loader, "digest", None)) is not None and not (role == "picture" and self.missing):
                try:
                    found[role] = str(digest())
                except (OSError, ValueError):
                    found[role] = ""
        return found


class Dataset(Plugin):
    """A plugin that gives cases; presets are for example sizes, and ``NAME/PRESET`` asks for one.

    One that reads files has a setting ``path``.

    Attributes:
        default_preset: The preset that ``NAME`` alone means; empty: none.
        needs_path: Whether it reads files that the user has: ``NAME:PATH``.
    """

    default_preset: ClassVar[str] = ""
    needs_path: ClassVar[bool] = False

    @abstractmethod
    def cases(self) -> Sequence[Case]:
        """Return all cases, always in the same order; pictures are loaded later.

        Raises:
            InputError: A file is missing or damaged; the message names the line or entry.
        """

    def fingerprint(self) -> str:
        """Return a SHA-256 over the plain data of all cases and the content of their files.

        Two data sets are equal when theirs are, wherever they lie.
        """
        rows = []
        for case in self.cases():
            row = {k: v for k, v in case.as_dict().items() if k != "missing"}
            files = case.digests()
            rows.append({**row, "files": files} if files else row)
        text = json.dumps(rows, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class DatasetSpec:
    """What ``NAME[/PRESET][:PATH]`` asks for.

    Attributes:
        name: Registered name.
        preset: Named settings; None: the data set's own choice.
        path: Folder or file; None: none was given.
    """

    name: str
    preset: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> DatasetSpec:
        """Read ``cars``, ``cars/small``, ``photos:/data/photos`` and the like.

        Raises:
            InputError: There is no name.
        """
        head, colon, path = text.partition(":")
        name, slash, preset = head.partition("/")
        if not name or (slash and not preset) or (colon and not path):
            raise InputError(
                f"a data set is named NAME, NAME/PRESET or NAME:PATH, found {text!r}",
                hint="`attnctl datasets` lists them",
            )
        return cls(name, preset or None, path or None)

    def __str__(self) -> str:
        preset = f"/{self.preset}" if self.preset else ""
        return f"{self.name}{preset}" + (f":{self.path}" if self.path else "")
