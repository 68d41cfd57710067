"""What every data set promises, and how one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

import pytest
from pydantic import Field

from attnctl.dataset import Case, Dataset, DatasetSpec
from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.method import MethodConfig, Preset
from attnctl.registry import Registry


class Colours(Dataset):
    name, default_preset = "colours", "two"
    presets: ClassVar = {"two": Preset({"count": 2}, "two"), "three": Preset({"count": 3}, "three")}

    class Config(MethodConfig):
        count: int = Field(1, ge=1, le=3, description="How many.")

    def cases(self) -> Sequence[Case]:
        return [Case(c, f"a {c} car", "a car") for c in ("red", "blue", "green")[: self.config.count]]


class Files(Colours):
    name, needs_path, default_preset = "files", True, ""

    class Config(MethodConfig):
        path: str = Field("", description="Where.")
        count: int = Field(1, description="How many.")


@pytest.fixture
def registry() -> Registry:
    @hookimpl
    def attnctl_datasets() -> list[type[Dataset]]:
        return [Colours, Files]

    plugin = ModuleType("plugin")
    plugin.attnctl_datasets = attnctl_datasets
    registry = Registry()
    assert not registry.register(plugin, "test").error
    return registry


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a", DatasetSpec("a")),
        ("a/b", DatasetSpec("a", "b")),
        ("a:/x/y:z", DatasetSpec("a", None, "/x/y:z")),
        ("a/b:c", DatasetSpec("a", "b", "c")),
    ],
)
def test_names_presets_and_paths(text: str, spec: DatasetSpec) -> None:
    assert DatasetSpec.parse(text) == spec
    assert str(spec) == text


@pytest.mark.parametrize("text", ["", "/b", "a/", "a:", ":x"])
def test_half_a_name_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="NAME/PRESET"):
        DatasetSpec.parse(text)


def test_the_registry_builds_what_is_asked_for(registry: Registry) -> None:
    assert len(registry.make_dataset("colours").cases()) == 2
    assert len(registry.make_dataset("colours/three").cases()) == 3
    assert len(registry.make_dataset("colours/three", {"count": "1"}).cases()) == 1
    assert registry.make_dataset("files:/x").config.path == "/x"
    for wrong, why in (
        ("colour", "did you mean 'colours'|known are"),
        ("colours/four", "unknown preset"),
        ("colours:/x", "reads no files"),
        ("files", "none were named"),
    ):
        with pytest.raises(InputError, match=why):
            registry.make_dataset(wrong)


def test_equal_cases_have_equal_fingerprints(registry: Registry) -> None:
    two, three = registry.make_dataset("colours"), registry.make_dataset("colours/three")
    assert two.fingerprint() == registry.make_dataset("colours", {"count": 2}).fingerprint()
    assert two.fingerprint() != three.fingerprint()
