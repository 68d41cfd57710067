"""attnctl: attention-control image editing on diffusion models, every method a plugin."""

__version__ = "0.1.0"
