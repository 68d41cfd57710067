"""From pictures to scores: what the metrics are shown is what lies on disk, so that scores can be made again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnctl.dataset import Case
from attnctl.metric import Sample
from attnctl_evaluation.rows import RowScore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from attnctl_evaluation.metrics.protocols import Panel


@dataclass(frozen=True, eq=False)
class Reference:
    """What an edited picture is measured against; all of one size.

    Attributes:
        source: The picture that the edit started from; None: unknown.
        truth: The exact edited picture; None: unknown.
        mask: Where the picture was to change, bool (H, W); None: unknown.
    """

    source: Image | None = None
    truth: Image | None = None
    mask: NDArray[np.bool_] | None = None


def read_reference(case: Case, size: tuple[int, int], source: Image | None) -> Reference:
    """Load what a data set knows of a case beside its source.

    Args:
        case: The case.
        size: (height, width) of the edited pictures.
        source: The source picture at that size.
    """
    truth = None if case.truth is None else case.truth(size)
    return Reference(source, truth, None if case.mask is None else case.mask(size))


def score(panel: Panel, case: Case, edited: Image, reference: Reference) -> dict[str, RowScore]:
    """Measure every column of one edited picture."""
    import torch

    sample = Sample(
        edited=_tensor(edited),
        prompt=case.prompt,
        source=None if reference.source is None else _tensor(reference.source),
        source_prompt=case.source_prompt,
        mask=None if reference.mask is None else torch.from_numpy(reference.mask.copy()),
        truth=None if reference.truth is None else _tensor(reference.truth),
        facts=case.facts,
    )
    found = panel.score(sample)
    return {label: RowScore(value=one.value, reason=one.reason) for label, one in found.items()}


def _tensor(picture: Image) -> Tensor:
    import numpy as np
    import torch

    levels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(levels.copy()).permute(2, 0, 1) / 255


def mask_warnings(reference: Reference) -> list[str]:
    """Say where a mask leaves nothing to measure on one of its sides."""
    if reference.mask is None or (reference.mask.any() and not reference.mask.all()):
        return []
    return [f"the mask is {'full' if reference.mask.all() else 'empty'}: what it splits has no value on one side"]


def mask_picture(mask: NDArray[np.bool_]) -> Image:
    """Return a mask as a picture, white where the source was to change."""
    import numpy as np
    from PIL import Image as Pillow

    return Pillow.fromarray(mask.astype(np.uint8) * 255)
