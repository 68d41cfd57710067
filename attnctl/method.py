"""Edit methods as plugins: settings that validate themselves, and one function that returns a plan."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attnctl.controller import Controller
from attnctl.plugin import Plugin, Preset, Settings
from attnctl.tokens import read_prompt

__all__ = ["EditMethod", "EditPlan", "MethodConfig", "ModelView", "Preset", "Source"]

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnctl.inversion import InversionSpec
    from attnctl.request import PlanRequest
    from attnctl.sites import Site
    from attnctl.tokens import PromptTokens


MethodConfig = Settings
"""What methods call `attnctl.plugin.Settings`."""


@dataclass(frozen=True)
class Source:
    """The source lane that a plan wants; lanes that want the same one share it.

    Attributes:
        prompt: Its text.
        pin: Whether its latents follow the inversion's trajectory: ``none`` lets it run free, ``start`` overwrites
            them before the denoiser's call of every step, ``end`` after the scheduler's. A pinned source is run
            only where a controller reads it. None leaves it to the inversion.
        guidance: Its own guidance scale; None means the request's.
        negative_prompt: Its own unconditional text; None means the request's.
        pin_plain: `pin` where the inversion is a plain climb and `pin` is None.
    """

    prompt: str
    pin: Literal["none", "start", "end"] | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    pin_plain: Literal["start", "end"] | None = None


@dataclass(frozen=True)
class EditPlan:
    """What a method will do to one lane; pure data.

    Attributes:
        source: The source lane that ``"source"`` refers to.
        controllers: What happens where and when.
        inversion: The inversion that a real picture needs; None for generated ones.
        negative_prompt: The lane's own unconditional text; None means the request's.
        guidance: The lane's own guidance scale; None means the request's.
        text: The lane's conditional text as a weighted sum of prompts' embeddings; empty means its prompt.
        notes: Sentences for the user: what could not be shared, what differs from a paper.
    """

    source: Source
    controllers: tuple[Controller, ...] = ()
    inversion: InversionSpec | None = None
    negative_prompt: str | None = None
    guidance: float | None = None
    text: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelView:
    """What a method may know of the model when it plans: structure, no weights.

    Attributes:
        sites: All hook points in execution order.
        latent_size: Latent (h, w) of this run.
        text_length: Number of text tokens M.
        tokenizer: The model's tokenizer.
        device: Where the model runs, for tensors that a plan carries.
        cutter: How the model's family cuts a prompt into words and tokens; None: by the tokenizer alone.
        family: Name of the model's family.
        inversion: Name of the inversion that suits the family, for methods that do not care.
    """

    sites: tuple[Site, ...]
    latent_size: tuple[int, int]
    text_length: int
    tokenizer: Any
    device: str = "cpu"
    cutter: Callable[..., PromptTokens] | None = None
    family: str = ""
    inversion: str = "ddim"

    def tokens(self, prompt: str, *, published: bool = False) -> PromptTokens:
        """Cut a prompt into words and tokens; `published` deals tokens out as Prompt-to-Prompt's code does."""
        if self.cutter is not None:
            return self.cutter(prompt, published=published)
        return read_prompt(prompt, self.tokenizer, self.text_length, published=published)


class EditMethod(Plugin):
    """A plugin that edits: one file, one class, nothing else mentions it.

    Attributes:
        needs_source_prompt: Whether a real picture needs a source prompt.
        no_op: Whether doing nothing is what it is for, so that coverage is not asked of it.
        uses_mask: Whether it heeds `PlanRequest.mask`.
    """

    needs_source_prompt: ClassVar[bool] = False
    no_op: ClassVar[bool] = False
    uses_mask: ClassVar[bool] = False

    @abstractmethod
    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Say what to do for one edit lane; runs no model.

        Args:
            request: The lane's prompts and the run's settings.
            model: The model's structure.

        Raises:
            InputError: The request lacks what the method needs.
        """
