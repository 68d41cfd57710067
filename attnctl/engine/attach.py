"""Install controllers on a denoiser for the duration of a run, and put everything back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from attnctl.branches import Branches
from attnctl.engine.operation import Bound, resolve_features
from attnctl.engine.processor import ControlledProcessor, FeatureTap, reject_unhookable
from attnctl.engine.resolving import resolve
from attnctl.families.compiled import reject_compiled
from attnctl.sites import Site
from attnctl.steps import Step


@dataclass
class Attachment:
    """The processors and taps of one run; the loop points them at what a step's call shall do.

    Attributes:
        processors: Per controlled attention site, its processor.
        taps: Per controlled feature site, its tap.
        bounds: Per site, the controllers bound to it, in plan order.
    """

    processors: dict[Site, ControlledProcessor] = field(default_factory=dict)
    taps: dict[Site, FeatureTap] = field(default_factory=dict)
    bounds: dict[Site, list[Bound]] = field(default_factory=dict)

    def aim(
        self,
        step: Step,
        branches: Branches,
        latent_size: tuple[int, int],
        text_length: int,
        device: torch.device,
    ) -> None:
        """Set every site's operation for the next denoiser call.

        Args:
            step: The step.
            branches: The rows of the call.
            latent_size: Latent (h, w).
            text_length: Number of text tokens M.
            device: Device of the activations.
        """
        for site, processor in self.processors.items():
            grid, keys = site.grid(latent_size), site.layout(latent_size, text_length).key_count
            processor.op = resolve(site, step, branches, self.bounds[site], grid, keys, device)
        for site, tap in self.taps.items():
            tap.actions = resolve_features(site, step, branches, self.bounds[site], site.grid(latent_size))

    def rest(self) -> None:
        """Clear every operation, so that a denoiser call runs uncontrolled."""
        for processor in self.processors.values():
            processor.op = None
        for tap in self.taps.values():
            tap.actions = []


@contextmanager
def attached(unet: nn.Module, bounds: Sequence[Bound]) -> Iterator[Attachment]:
    """Install one processor per controlled attention layer and one tap per controlled feature.

    Layers without a controller keep their own processor object. On leaving, also by an exception, every layer has the
    very processor object that it had before.

    Args:
        unet: The denoiser.
        bounds: Controllers with the sites they selected.

    Raises:
        ModelError: The denoiser is compiled, or a layer's attention cannot be hooked.
    """
    reject_compiled(unet)
    attachment = Attachment()
    for bound in bounds:
        for site in bound.sites:
            attachment.bounds.setdefault(site, []).append(bound)
    handles: list[Any] = []
    installed: list[tuple[Any, Any]] = []
    try:
        for site in attachment.bounds:
            module: Any = unet.get_submodule(site.path)
            if site.kind == "feature":
                tap = attachment.taps[site] = FeatureTap(site)
                handles.append(module.conv2.register_forward_hook(tap))
                continue
            original = module.processor
            reject_unhookable(module, site)
            processor = attachment.processors[site] = ControlledProcessor(original, site)
            installed.append((module, original))
            module.set_processor(processor)
        yield attachment
    finally:
        for handle in handles:
            handle.remove()
        for module, original in installed:
            module.set_processor(original)
