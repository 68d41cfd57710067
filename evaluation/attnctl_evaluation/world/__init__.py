"""A drawn world: scenes of simple objects, their exact pictures, captions and exact edits.

Every attribute of a picture is known, so an edit has a ground truth that photographs lack:
`edit` changes one attribute of a scene, `render` draws both scenes and `change_mask` says
which pixels differ. The embedded model ``micro`` is trained on this world.
"""

from attnctl_evaluation.world.captions import caption, plain_caption, vocabulary
from attnctl_evaluation.world.colours import COLOURS, NEIGHBOURS
from attnctl_evaluation.world.draw import change_mask, object_mask, render
from attnctl_evaluation.world.scene import (
    BACKGROUNDS,
    OBJECTS,
    PATTERNS,
    Scene,
    Thing,
    edit,
    is_held_out,
    random_scene,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "NEIGHBOURS",
    "OBJECTS",
    "PATTERNS",
    "Scene",
    "Thing",
    "caption",
    "change_mask",
    "edit",
    "is_held_out",
    "object_mask",
    "plain_caption",
    "random_scene",
    "render",
    "vocabulary",
]
