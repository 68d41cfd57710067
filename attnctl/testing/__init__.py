"""For authors of methods: tiny real pipelines, and a class of laws that every method's test inherits."""

from attnctl.testing.conformance import MethodConformance
from attnctl.testing.tiny import tiny_model, tiny_sd, tiny_sdxl

__all__ = ["MethodConformance", "tiny_model", "tiny_sd", "tiny_sdxl"]
