"""Modifiers as plugins: additions to an edit that go with any method, as functions from plan to plan."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from attnctl.plugin import Plugin

if TYPE_CHECKING:
    from attnctl.method import EditPlan, ModelView
    from attnctl.request import PlanRequest


class Modifier(Plugin):
    """A plugin that adds to what a method plans for an edit lane; independent of the method and of the inversion.

    A setting called ``preset`` asks for one of its presets.
    """

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
