"""Running controllers without writing a plugin for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from attnctl.controller import Controller
from attnctl.inversion import InversionSpec
from attnctl.method import EditMethod, EditPlan, Source
from attnctl.model import Model
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession

SOURCE, TARGET, OTHER = "a red cat on the grass", "a blue dog on the grass", "a red cat on the snow"


def method_of(controllers: Sequence[Controller], key: str, pin: Any, **plan: Any) -> type[EditMethod]:
    class Custom(EditMethod):
        name = key
        no_op = not controllers

        def plan(self, request: Any, model: Any) -> EditPlan:
            source = Source(request.source_prompt or "", pin)
            if request.real:
                return EditPlan(source, tuple(controllers), InversionSpec("ddim", source.prompt), **plan)
            return EditPlan(source, tuple(controllers), **plan)

    return Custom


@pytest.fixture
def session_with(shared_tiny_model: Model) -> Callable[..., EditSession]:
    """``session_with(controllers, ...)``: a session whose methods ``m0``, ``m1``, ... are those controllers."""

    def build(*methods: Sequence[Controller], model: Model | None = None, pin: Any = "start", **plan: Any) -> Any:
        session = EditSession(model or shared_tiny_model)
        for i, controllers in enumerate(methods):
            kind = method_of(controllers, f"m{i}", pin, **plan)
            session.registry.classes["method"][kind.name] = kind
        return session

    return build


@pytest.fixture
def run_with(session_with: Callable[..., EditSession]) -> Callable[..., Any]:
    """``run_with([controller, ...], **request)``: one edit by these controllers; the recorded result."""

    def run(*methods: Sequence[Controller], model: Any = None, pin: Any = "start", on_event: Any = None, **fields: Any):
        session = session_with(*methods, model=model, pin=pin)
        edits = tuple(Edit((TARGET, OTHER)[i % 2], f"m{i}") for i in range(len(methods)))
        defaults: dict[str, Any] = {"steps": 4, "edits": edits}
        if "x0" not in fields and "pixels" not in fields:
            defaults["source_prompt"] = SOURCE
        return session.run(EditRequest(**{**defaults, **fields}), on_event or (lambda event: None), record=True)

    return run
