"""What a model suggests to try with it: prompts, steps, guidance and settings of methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attnctl.errors import InputError, ModelError
from attnctl.files import read_json
from attnctl.loading import locate
from attnctl.request import GUIDANCE, STEPS, Sampling

if TYPE_CHECKING:
    from attnctl.model import Model
    from attnctl.registry import Registry

SamplingT = TypeVar("SamplingT", bound=Sampling)

_KINDS: Mapping[str, type] = {
    "source_prompt": str, "prompt": str, "seed": int, "steps": int, "guidance": float, "settings": dict,
}  # fmt: skip
"""What a ``demo.json`` may hold; anything else there is for people."""


@dataclass(frozen=True)
class Example:
    """What a model folder's ``demo.json`` suggests; empty for most models.

    Attributes:
        source_prompt: Text of the source.
        prompt: Text of the edit.
        seed: Seed for these two prompts.
        steps: Number of steps that suits the model.
        guidance: Guidance scale that suits the model.
        settings: Settings that suit the model, by method: a model with few latents wants other layers than a large one.
    """

    source_prompt: str = ""
    prompt: str = ""
    seed: int = 0
    steps: int = STEPS
    guidance: float = GUIDANCE
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str) -> Example:
        """Read the example of a model by its name; a hub model or a single file has none.

        Raises:
            AttnctlError: There is no such model, or its example is damaged.
        """
        location, single_file = locate(model)
        return cls() if location is None or single_file else cls.read(location)

    @classmethod
    def beside(cls, model: Model) -> Example:
        """Read the example of a loaded model, in its folder; an empty one where it has none.

        Raises:
            ModelError: Its example is damaged.
        """
        return cls.read(model.folder) if model.folder else cls()

    @classmethod
    def read(cls, folder: Path) -> Example:
        """Read the example in a model folder; an empty one when it holds none.

        Raises:
            ModelError: Its example is damaged.
        """
        path = folder / "demo.json"
        if not path.is_file():
            return cls()
        try:
            found = read_json(path, limit=2**20)
            made = cls(**{name: kind(found[name]) for name, kind in _KINDS.items() if name in found})
            if not all(isinstance(settings, dict) for settings in made.settings.values()):
                raise TypeError("settings must be given by method")
        except (InputError, ValueError, TypeError, OverflowError) as error:
            raise ModelError(f"{path} cannot be read: {error}", hint="mend it, or take it away") from error
        return made

    def fill(self, wanted: SamplingT) -> SamplingT:
        """Return settings of sampling, or a whole request, with what suits the model where nobody chose.

        The prompts' seed is no part of that: it suits these prompts alone.
        """
        suits: dict[str, Any] = {"steps": int(self.steps), "guidance": float(self.guidance)}
        return replace(wanted, **{name: value for name, value in suits.items() if name in wanted.open})

    def suited(self, method: str) -> dict[str, Any]:
        """Return the settings of a method that suit the model; empty where its defaults do."""
        return dict(self.settings.get(method, {}))

    def suggest(self, method: str, settings: dict[str, Any], preset: str | None, registry: Registry) -> list[str]:
        """Add what suits the model to a method's settings, where the user gave neither the setting nor a preset.

        Args:
            method: The method's name.
            settings: What the user gave; added to in place.
            preset: The preset that the user asked for.
            registry: Where methods are looked up.

        Returns:
            What was added, as ``method.setting=value``.
        """
        known = registry.method(method).Config.model_fields
        added = []
        for name, value in self.suited(method).items():
            if preset is None and name in known and name not in settings:
                settings[name] = value
                added.append(f"{method}.{name}={value}")
        return added
