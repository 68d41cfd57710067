"""For authors of methods: tiny real pipelines, and a class of laws that every method's test inherits."""

from attnctl.testing.conformance import MethodConformance
from attnctl.testing.tiny import tiny_model, tiny_sd, tiny_sdxl
from attnctl.testing.tiny_transformers import tiny_flux, tiny_sd3

__all__ = ["MethodConformance", "tiny_flux", "tiny_model", "tiny_sd", "tiny_sd3", "tiny_sdxl"]
