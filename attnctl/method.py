"""Edit methods as plugins: settings that validate themselves, and one function that returns a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from attnctl.controller import Controller

if TYPE_CHECKING:
    from attnctl.inversion import InversionSpec
    from attnctl.request import PlanRequest
    from attnctl.sites import Site


class MethodConfig(BaseModel):
    """Base of a plugin's nested ``Config``: every field described and bounded; unknown keys are refused.

    The fields become ``--set name=value``, the validation and the documentation table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Preset:
    """Named settings with the place they come from.

    Attributes:
        settings: Values by field name.
        summary: What they reproduce.
    """

    settings: Mapping[str, Any]
    summary: str


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
    """

    prompt: str
    pin: Literal["none", "start", "end"] | None = None
    guidance: float | None = None
    negative_prompt: str | None = None


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
    """

    sites: tuple[Site, ...]
    latent_size: tuple[int, int]
    text_length: int
    tokenizer: Any
    device: str = "cpu"


class EditMethod(ABC):
    """A plugin that edits: one file, one class, nothing else mentions it.

    Attributes:
        name: Registered name.
        summary: One sentence for tables.
        paper: Where it comes from, for example ``arXiv:2403.03431``.
        bibtex: Citation entry, if there is one.
        needs_source_prompt: Whether a real picture needs a source prompt.
        presets: Named settings.
        no_op: Whether doing nothing is what it is for, so that coverage is not asked of it.
        uses_mask: Whether it heeds `PlanRequest.mask`.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""
    needs_source_prompt: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {}
    no_op: ClassVar[bool] = False
    uses_mask: ClassVar[bool] = False

    class Config(MethodConfig):
        """Settings; empty unless the method has some."""

    def __init__(self, config: MethodConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @abstractmethod
    def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
        """Say what to do for one edit lane; runs no model.

        Args:
            request: The lane's prompts and the run's settings.
            model: The model's structure.

        Raises:
            InputError: The request lacks what the method needs.
        """
