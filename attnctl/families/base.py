"""What a model family is: everything that differs between one kind of diffusion model and the next, in one class.

The engine runs lanes, controllers and schedules; it asks the family of the loaded pipeline for the rest. A family is a
plugin of the kind ``family``, one file that nothing else mentions but its entry point in the group
``attnctl.families``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl.plugin import Described

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attnctl.families.latents import Latents
    from attnctl.guidance import Guidance
    from attnctl.sampling import Schedule
    from attnctl.sites import Site
    from attnctl.text import Text
    from attnctl.tokens import PromptTokens


class Family(Described):
    """One kind of diffusion model, around a loaded pipeline; its parts are used, its ``__call__`` never is.

    Parts of the pipeline are looked up anew at every call: people exchange them.

    Attributes:
        pipelines: Classes in ``model_index.json`` that are of the family, each with the class to load.
        parts: Folders that must hold a configuration and safetensors.
        tokenizers: Folders that must hold a vocabulary.
        optional: Folders of `parts` and `tokenizers` that may be missing; such a part is loaded as None.
        denoiser_part: The part that denoises.
        load_options: Further arguments of the pipeline class when it is loaded.
        schedules: What its models can be sampled with, the default first.
        inversion: The inversion that suits the family where a method does not care.
        steps: Number of steps that suits the family.
        scale: Guidance scale that suits the family.
        pipe: The pipeline.
    """

    pipelines: ClassVar[Mapping[str, str]]
    parts: ClassVar[tuple[str, ...]]
    tokenizers: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    denoiser_part: ClassVar[str]
    load_options: ClassVar[Mapping[str, Any]] = {}
    schedules: ClassVar[tuple[str, ...]]
    inversion: ClassVar[str]
    steps: ClassVar[int]
    scale: ClassVar[float]

    def __init__(self, pipe: Any, name: str = "the model") -> None:
        self.pipe = pipe
        self.name_of_model = name

    @classmethod
    @abstractmethod
    def claims(cls, tensors: Collection[str]) -> bool:
        """Whether a single file with tensors of these names holds a whole model of the family."""

    @classmethod
    @abstractmethod
    def suits(cls, pipe: Any) -> bool:
        """Whether a loaded pipeline is one of the family, told by its parts."""

    @abstractmethod
    def check(self) -> None:
        """Refuse a pipeline that the engine cannot run, before the first step.

        Raises:
            ModelError: Its denoiser takes inputs that are not given here, or its schedule is of another kind.
        """

    @property
    def denoiser(self) -> nn.Module:
        """The network that is controlled."""
        return getattr(self.pipe, self.denoiser_part)  # type: ignore[no-any-return]

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The text encoders that the pipeline has."""
        found = [getattr(self.pipe, part, None) for part in self.parts if part.startswith("text_encoder")]
        return tuple(part for part in found if part is not None)

    @property
    @abstractmethod
    def latents(self) -> Latents:
        """What its latents are, and how pictures become latents and back."""

    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """All hook points in execution order, told by the denoiser's structure alone."""

    @property
    @abstractmethod
    def text_length(self) -> int:
        """Number of text tokens M that attention sees."""

    @abstractmethod
    def encode(self, prompt: str, *, unconditional: bool = False) -> Text:
        """Encode one prompt alone, so that its numbers do not depend on what else is encoded.

        Args:
            prompt: The text.
            unconditional: Whether it is for the unconditional half.
        """

    def same_text(self, prompt: str, unconditional: str) -> bool:
        """Whether a prompt and an unconditional text are encoded alike, told without encoding them."""
        return prompt == unconditional

    def reads_alike(self, a: str, b: str) -> bool:
        """Whether two prompts are the same tokens to the model: many do not see capitals, or what is cut off."""
        return a == b

    @abstractmethod
    def tokens(self, prompt: str, *, published: bool = False) -> PromptTokens:
        """Cut a prompt into words and tokens, see `attnctl.tokens.read_prompt`."""

    @abstractmethod
    def cut_text(self, prompt: str) -> str:
        """Return the end of a prompt that does not fit into the model's tokens; empty when all fits."""

    @abstractmethod
    def guidance(self, scale: float) -> Guidance:
        """Return how a lane with this guidance scale is guided."""

    @abstractmethod
    def schedule(self, name: str, steps: int, latent_size: tuple[int, int], seed: int) -> Schedule:
        """Build a schedule for so many steps at a latent size (h, w).

        Raises:
            InputError: The name is unknown or the number of steps is out of range.
            ModelError: The checkpoint's own schedule is not of the family.
        """

    def schedule_note(self, name: str) -> str:
        """Say where a schedule differs from what the checkpoint's own file says; empty where it does not."""
        return ""

    @property
    def prediction(self) -> str:
        """What the denoiser predicts."""
        return str(self.pipe.scheduler.config.get("prediction_type", "epsilon"))

    @abstractmethod
    def predict(
        self, x: Tensor, told: Sequence[int | float], texts: Sequence[Text], guides: Sequence[float | None]
    ) -> Tensor:
        """Run the denoiser once.

        Args:
            x: Latents as the schedule scales them, (B, C, h, w).
            told: What the denoiser is told of the time, per row.
            texts: One encoded prompt per row.
            guides: Guidance number that a distilled denoiser is told, per row; None where it takes none.

        Returns:
            The denoiser's output, (B, C, h, w).
        """
