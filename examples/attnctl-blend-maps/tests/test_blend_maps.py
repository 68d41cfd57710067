"""What every method must obey, on a tiny real pipeline."""

from typing import ClassVar

from attnctl_blend_maps import BlendMaps

from attnctl.testing import MethodConformance


class TestBlendMaps(MethodConformance):
    """The laws, with half of the source's map."""

    method = BlendMaps
    off: ClassVar = {"until": 0.0}
