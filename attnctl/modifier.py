"""Modifiers as plugins: additions to an edit that go with any method, as functions from plan to plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl.method import MethodConfig, Preset

if TYPE_CHECKING:
    from attnctl.method import EditPlan, ModelView
    from attnctl.request import PlanRequest


class Modifier(ABC):
    """A plugin that adds to what a method plans for an edit lane; independent of the method and of the inversion.

    Attributes:
        name: Registered name.
        summary: One sentence for tables.
        paper: Where it comes from.
        bibtex: Citation entry, if there is one.
        presets: Named settings; a setting called ``preset`` asks for one.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    bibtex: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {}

    class Config(MethodConfig):
        """Settings; empty unless the modifier has some."""

    def __init__(self, config: MethodConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @abstractmethod
    def modify(self, plan: EditPlan, request: PlanRequest, model: ModelView) -> EditPlan:
        """Return the plan with this modifier in it; runs no model.

        Controllers that are put before the method's act before them in every step.

        Args:
            plan: The method's plan, with the inversion, source and guidance that will be used.
            request: The lane's prompts and the run's settings.
            model: The model's structure.

        Raises:
            InputError: The plan or the request is one that it cannot work with.
        """
