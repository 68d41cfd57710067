"""What a family is asked, on the tiny pipelines of those that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attnctl.errors import ModelError
from attnctl.families import finding
from attnctl.families.base import Family
from attnctl.families.sd import StableDiffusion
from attnctl.families.sdxl import StableDiffusionXL
from attnctl.loading import load_model, load_structure
from attnctl.model import Model, check_supported
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_sd, tiny_sdxl

TINY = {"sd": tiny_sd, "sdxl": tiny_sdxl}
PAIR = {"source_prompt": "a red cat on the grass", "steps": 3, "seed": 1}


@pytest.fixture(scope="module", params=sorted(TINY))
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family, saved."""
    place = tmp_path_factory.mktemp("families") / request.param
    TINY[request.param](place)
    return place


def test_the_families_come_by_entry_points() -> None:
    assert {"sd": StableDiffusion, "sdxl": StableDiffusionXL}.items() <= dict(finding.families()).items()
    listed = {provided: p for p in Registry.load().plugins for provided in p.provides}
    assert listed["family sdxl"].target == "attnctl.families.sdxl"


def test_a_plugin_file_may_bring_a_family(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from attnctl.families.sd import StableDiffusion\nfrom attnctl.hookspecs import hookimpl\n"
        "class Mine(StableDiffusion):\n    name = 'mine'\n    pipelines = {'MyPipeline': 'StableDiffusionPipeline'}\n"
        "    @classmethod\n    def suits(cls, pipe):\n        return False\n"
        "@hookimpl\ndef attnctl_families():\n    return [Mine]\n"
    )
    registry = Registry.load([path])
    assert finding.family_of_class("MyPipeline", "m") is registry.classes["family"]["mine"]


def test_unknown_families_are_refused_and_known_ones_listed() -> None:
    with pytest.raises(ModelError, match="a KandinskyPipeline, a family that is not supported") as caught:
        finding.family_of_class("KandinskyPipeline", "m")
    assert "StableDiffusionXLPipeline" in caught.value.hint
    with pytest.raises(ModelError, match="unknown family 'sdlx': known are sdxl, sd"):
        finding.family_named("sdlx")


def test_structure_is_that_of_the_loaded_model_and_reads_no_weight(folder: Path, monkeypatch: Any) -> None:
    model = load_model(str(folder), device="cpu")
    for part in folder.rglob("*.safetensors"):
        monkeypatch.setattr("safetensors.safe_open", None)
        assert part.stat().st_size > 0
    structure = load_structure(str(folder))
    assert structure.sites == model.sites
    assert structure.family == model.family
    assert structure.default_size == model.default_size
    assert structure.text_length == model.text_length
    assert all(p.is_meta for p in structure.denoiser.parameters())
    assert structure.schedule("ddim", 7).timesteps == model.schedule("ddim", 7).timesteps


def test_a_plan_by_structure_is_the_plan_of_the_loaded_model(folder: Path) -> None:
    """Rows, sites, steps and expressions; nothing of it needs a weight or an encoded prompt."""
    edits = (Edit("a blue cat on the grass", "fpe"), Edit("a blue dog on the grass", "p2p"))
    for more in ({}, {"negative_prompt": "a dog"}, {"guidance": 1.0}):
        request = EditRequest(edits, size=(64, 96), **PAIR, **more)
        sessions = [EditSession(load(str(folder))) for load in (load_model, load_structure)]
        plans = [session.plan(request) for session in sessions]
        assert [(b.label, b.sites, b.steps, b.expected) for b in plans[0].bounds] == [
            (b.label, b.sites, b.steps, b.expected) for b in plans[1].bounds
        ]
        rows = [session.edit_rows(request, plan) for session, plan in zip(sessions, plans, strict=True)]
        assert rows[0] == rows[1] == sessions[0].run(request).rows["edit"]


def test_a_plan_can_be_run_twice(folder: Path) -> None:
    """What acted and where latents are is no part of it."""
    session = EditSession(load_model(str(folder), device="cpu"))
    blended = Edit(
        "a blue cat on the grass", "p2p", {"blend_words": "cat", "start_blend": 0.0}, modifiers={"proximal": {}}
    )
    request = EditRequest((Edit("a blue cat on the grass", "fpe"), blended), **PAIR)
    plan = session.plan(request)
    results = [session.run(request, plan=plan) for _ in range(2)]
    for lane in session.run(request).lanes:
        assert all(torch.equal(result[lane.name].latents, lane.latents) for result in results)
    assert [row.acted for row in results[0].coverage] == [row.acted for row in results[1].coverage]
    assert not any(bound.acted or bound.differs for bound in plan.bounds)


def test_every_row_may_be_told_a_time_of_its_own(folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = [model.encode_text("a cat"), model.encode_text("a dog")]
    with torch.no_grad():
        together = model.predict(x, [901, 101], texts)
        alone = [model.predict(x[i : i + 1], t, [texts[i]]) for i, t in enumerate((901, 101))]
    for i in range(2):
        assert torch.allclose(together[i : i + 1], alone[i], atol=1e-5)
    assert not torch.allclose(together[1:], model.predict(x[1:], 901, [texts[1]]), atol=1e-2)


@pytest.mark.parametrize("make", TINY.values())
def test_one_text_or_two_is_told_without_encoding(make: Any) -> None:
    pipe = make()
    model = Model(pipe, "tiny", family=check_supported(pipe, "tiny"))
    for prompt, negative in (("", ""), ("a cat", "a cat"), ("a cat", ""), ("", "a dog")):
        encoded = model.encode_text(negative, unconditional=True).same_as(model.encode_text(prompt))
        assert model.same_text(prompt, negative) == encoded


def test_families_declare_what_loading_needs() -> None:
    for kind in (StableDiffusion, StableDiffusionXL):
        assert issubclass(kind, Family)
        assert kind.denoiser_part in kind.parts
        assert kind.schedules[0] == "ddim"
        assert set(kind.optional) <= {*kind.parts, *kind.tokenizers}
