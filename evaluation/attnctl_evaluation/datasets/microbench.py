"""Edits of the drawn world in the ten edit types of PIE-Bench, with exact masks and exact edited pictures."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from attnctl.dataset import Case, Dataset, MaskLoader, PictureLoader, Size
from attnctl.hookspecs import hookimpl
from attnctl.method import MethodConfig, Preset
from attnctl_evaluation.datasets.edit_types import EDIT_TYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from attnctl_evaluation.datasets.micro_edits import WorldEdit
    from attnctl_evaluation.world import Scene

SIDE = 128
"""Width and height of a picture where nobody asks for another size."""


class Microbench(Dataset):
    """Scenes and exact edits of them, made from a seed; nothing is stored."""

    name = "microbench"
    summary = "Edits of the embedded model's drawn world in PIE-Bench's ten types, with exact masks and ground truth."
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": Preset({"per_type": 1}, "20 cases: for each type one rendered and one generated source"),
        "full": Preset({"per_type": 10}, "200 cases: for each type ten rendered and ten generated sources"),
    }
    default_preset = "tiny"

    class Config(MethodConfig):
        """How many cases of which kind."""

        per_type: int = Field(1, ge=1, le=1000, description="Cases of each edit type and kind of source.")
        sources: Literal["both", "rendered", "generated"] = Field(
            "both", description="Sources that are drawn exactly, that the model generates from a prompt, or both."
        )
        held_out: bool = Field(
            True,
            description="Take source scenes that the embedded model, its CLIP and its judge never saw in training.",
        )
        seed: int = Field(0, ge=0, description="Seed of the scenes.")

    def cases(self) -> Sequence[Case]:
        """Return the cases, by type, rendered sources before generated ones; a larger set begins like a smaller one."""
        from attnctl_evaluation.datasets.micro_edits import MAKERS

        kinds = ("rendered", "generated") if self.config.sources == "both" else (self.config.sources,)
        found = []
        for number, edit_type in enumerate(EDIT_TYPES):
            for kind in kinds:
                for n in range(self.config.per_type):
                    rng = random.Random(f"microbench/{self.config.seed}/{edit_type}/{kind}/{n}")
                    made = MAKERS[edit_type](rng, self.config.held_out)
                    found.append(_case(f"{number}-{edit_type}-{kind}-{n:03d}", edit_type, kind == "rendered", n, made))
        return found


def _case(name: str, edit_type: str, rendered: bool, n: int, made: WorldEdit) -> Case:
    return Case(
        id=name,
        prompt=made.prompt,
        source_prompt=made.source_prompt,
        edit_type=edit_type,
        picture=_picture(made.before) if rendered else None,
        mask=_mask(made.before, made.after) if rendered else None,
        truth=_picture(made.after) if rendered else None,
        blend_words=made.words,
        instruction=made.instruction,
        seed=n,
        facts={
            "world": "micro",
            "before": dataclasses.asdict(made.before),
            "after": dataclasses.asdict(made.after),
            "edited": list(made.edited),
            "things": [list(pair) for pair in made.things],
        },
    )


def scene_of(facts: Mapping[str, Any]) -> Scene:
    """Build a scene from the plain data in a case's facts (``before`` or ``after``).

    Raises:
        ValueError: The data describe no scene.
    """
    from attnctl_evaluation.world import Scene, Thing

    try:
        things = tuple(Thing(**thing) for thing in facts["things"])
        return Scene(facts["background"], things, facts["horizon"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"these facts describe no scene: {error}") from error


def _picture(scene: Scene) -> PictureLoader:
    def load(size: Size | None) -> Image:
        from PIL import Image as Pillow

        from attnctl_evaluation.world import render

        height, width = size or (SIDE, SIDE)
        picture = render(scene, max(height, width))
        return picture if height == width else picture.resize((width, height), Pillow.Resampling.LANCZOS)

    return load


def _mask(before: Scene, after: Scene) -> MaskLoader:
    def load(size: Size | None) -> NDArray[np.bool_]:
        import numpy as np

        first, second = (np.asarray(_picture(scene)(size)) for scene in (before, after))
        return np.asarray((first != second).any(axis=-1))

    return load


@hookimpl
def attnctl_datasets() -> list[type[Dataset]]:
    """Return the data set."""
    return [Microbench]
