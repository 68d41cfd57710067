"""What a model suggests to try with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnctl.errors import ModelError
from attnctl.example import Example
from attnctl.loading import load_model
from attnctl.model import Model
from attnctl.registry import Registry
from attnctl.request import GUIDANCE, STEPS


def test_a_loaded_model_suggests_what_its_name_does() -> None:
    found = Example.of("micro")
    assert Example.beside(load_model("micro", device="cpu")) == found
    assert (found.prompt, found.steps) == ("a photo of a blue car on a road", 30)
    assert found.suited("fpe") == {"min_downscale": 1}
    assert found.suited("none") == {}


def test_a_model_from_no_folder_suggests_the_papers_numbers(shared_tiny_model: Model) -> None:
    assert Example.beside(shared_tiny_model) == Example()
    assert (
        (Example.beside(shared_tiny_model).steps, Example.beside(shared_tiny_model).guidance)
        == (STEPS, GUIDANCE)
        == (50, 7.5)
    )


def test_a_user_s_setting_or_preset_wins() -> None:
    found, registry = Example(settings={"fpe": {"min_downscale": 1}}), Registry.load()
    for given, preset, expected in (
        ({}, None, {"min_downscale": 1}),
        ({"min_downscale": 4}, None, {"min_downscale": 4}),
        ({}, "paper", {}),
    ):
        settings = dict(given)
        added = found.suggest("fpe", settings, preset, registry)
        assert settings == expected
        assert added == (["fpe.min_downscale=1"] if settings != given else [])


@pytest.mark.parametrize("text", ["{", '{"steps": "many"}'])
def test_a_damaged_suggestion_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(ModelError, match=r"demo\.json cannot be read"):
        Example.read(tmp_path)
