"""What every plugin that takes settings is: a name, words about it, presets, and settings that validate themselves."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
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


class Described(ABC):
    """What every plugin says of itself.

    Attributes:
        name: Registered name.
        summary: One sentence for tables.
        paper: Where it comes from, for example ``arXiv:2403.03431``.
        bibtex: Citation entry, if there is one.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""


class Plugin(Described):
    """What methods, inversions, modifiers, metrics and data sets have in common: settings.

    Attributes:
        presets: Named settings.
        config: The settings of this instance.
        preset: The preset that they started from, for records; None: the defaults.
    """

    presets: ClassVar[Mapping[str, Preset]] = {}
    preset: str | None = None

    class Config(Settings):
        """Settings; empty unless the plugin has some."""

    def __init__(self, config: Settings | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def again(self) -> Self:
        """Return a fresh one with the same settings, which are not validated again.

        One that works on an edit may keep to itself what it found there, so edits do not share one.
        """
        made = type(self)(self.config)
        made.preset = self.preset
        return made
