"""Trajectories on disk: what is kept, under which name, for how long."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from attnctl.cache import TrajectoryCache, cache_folder, trajectory_key
from attnctl.events import Inverted, Progress, Warned
from attnctl.families.betas import beta_schedule
from attnctl.inversion import Inversion, InversionCall, InversionSpec, Trajectory
from attnctl.loading import load_model
from attnctl.method import MethodConfig
from attnctl.model import Model
from attnctl.request import Edit, EditRequest
from attnctl.sampling import DDIMGrid
from attnctl.session import EditSession
from attnctl.testing import tiny_sd


class Example(Inversion):
    name = "example"

    class Config(MethodConfig):
        strength: float = 1.0

    def invert(self, call: InversionCall) -> Trajectory:
        raise NotImplementedError


FULL = Trajectory(
    torch.randn(3, 4, 2, 2),
    "a cat",
    ({"embeds": torch.randn(1, 5, 6), "pooled": torch.randn(1, 7)}, {"embeds": torch.randn(1, 5, 6)}),
    start=1,
    noises=torch.randn(2, 4, 2, 2),
    offsets=torch.randn(2, 4, 2, 2).to(torch.bfloat16),
    denoiser_rows=9,
    info={"losses": [[1.5, 0.25], []]},
)
KEY = "0" * 63


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(x, b[name]) for name, x in a.items())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_what_comes_back_is_what_was_kept_to_the_bit(tmp_path: Path) -> None:
    cache = TrajectoryCache(tmp_path / "not" / "there" / "yet")
    assert cache.get(KEY + "a") is None
    assert cache.entries() == []
    assert cache.put(KEY + "a", FULL, torch.ones(1, 4, 2, 2), Example()) == ""
    assert cache.put(KEY + "b", Trajectory(torch.zeros(2, 4, 2, 2), ""), None, Example()) == ""
    kept = cache.get(KEY + "a")
    for name in Trajectory.__dataclass_fields__:
        assert same(getattr(kept.trajectory, name), getattr(FULL, name)), name
    assert same(kept.reconstruction, torch.ones(1, 4, 2, 2))
    bare = cache.get(KEY + "b")
    assert (bare.trajectory.uncond, bare.trajectory.noises, bare.reconstruction) == ((), None, None)
    found = {e.key: (e.inversion, e.prompt, e.steps) for e in cache.entries()}
    assert found == {KEY + "a": ("example", "a cat", 2), KEY + "b": ("example", "", 1)}
    assert cache.clear() == 2
    assert cache.clear() == 0


def test_damaged_files_count_as_none_and_strangers_files_are_left_alone(tmp_path: Path) -> None:
    cache = TrajectoryCache(tmp_path)
    for last, content in (("a", b""), ("b", b"no safetensors"), ("c", None)):
        cache.put(KEY + last, FULL, None, Example())
        path = tmp_path / f"{KEY}{last}.safetensors"
        path.write_bytes(path.read_bytes()[:-10] if content is None else content)
        assert cache.get(KEY + last) is None
        assert not path.exists()
    (tmp_path / "model.safetensors").write_bytes(b"someone else's")
    (tmp_path / f"{KEY}d.safetensors").write_bytes(b"cut off")
    assert [(e.key, e.inversion) for e in cache.entries()] == [(KEY + "d", "")]
    assert cache.clear() == 1
    assert (tmp_path / "model.safetensors").exists()


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = TrajectoryCache(tmp_path)
    for n, last in enumerate("abc"):
        cache.put(KEY + last, FULL, None, Example())
        os.utime(tmp_path / f"{KEY}{last}.safetensors", (n, n))
    cache.get(KEY + "a")  # used again: now `b` is the oldest
    size = (tmp_path / f"{KEY}a.safetensors").stat().st_size
    cache.limit = 3 * size + 1
    cache.put(KEY + "d", FULL, None, Example())
    assert {e.key[-1] for e in cache.entries()} == {"a", "c", "d"}
    cache.limit = 1
    cache.put(KEY + "e", FULL, None, Example())
    assert {e.key[-1] for e in cache.entries()} == {"e"}  # the one just written stays


def test_a_folder_that_cannot_be_written_to_is_said_and_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = TrajectoryCache(tmp_path / "file")
    assert "file" in cache.put(KEY + "a", FULL, None, Example())
    assert cache.get(KEY + "a") is None


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCTL_CACHE", "/here")
    assert cache_folder() == Path("/here")
    monkeypatch.delenv("ATTNCTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert cache_folder() == Path("/there/attnctl/trajectories")


@pytest.fixture(scope="module")
def loaded(tiny_model_folder: Path) -> Model:
    return load_model(str(tiny_model_folder), dtype="float32", device="cpu")


def call(model: Model, **fields: Any) -> InversionCall:
    text = model.encode_text("a cat")
    given: dict[str, Any] = {
        "model": model,
        "grid": beta_schedule("ddim", model.pipe.scheduler, 5, 0),
        "x0": torch.ones(1, 4, 8, 8),
        "text": text,
        "source": text,
        "uncond": model.encode_text(""),
        "guidance": 7.5,
        "seed": 0,
    }
    return InversionCall(**{**given, **fields})


class Newer(Example):
    version: ClassVar[int] = 2


class OtherGrid(DDIMGrid):
    """The same schedule by other code: what it gives may differ."""


def test_the_name_follows_everything_that_the_numbers_depend_on(loaded: Model) -> None:
    dog = loaded.encode_text("a dog")
    grid = beta_schedule("ddim", loaded.pipe.scheduler, 6, 0)
    bumped = torch.ones(1, 4, 8, 8)
    bumped[0, 0, 0, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    base = trajectory_key(Example(), call(loaded))
    assert base is not None
    assert len(base) == 64
    assert trajectory_key(Example(), call(loaded)) == base
    others = [
        trajectory_key(Example(), call(loaded, **fields))
        for fields in (
            {"text": dog},
            {"source": dog},
            {"uncond": dog},
            {"guidance": 7.0},
            {"seed": 1},
            {"grid": grid},
            {"x0": bumped},
            {"x0": torch.ones(1, 4, 8, 8).double()},
        )
    ]
    others += [trajectory_key(Example(), call(loaded, grid=OtherGrid(grid.abar, 5, grid.prediction)))]
    others += [trajectory_key(Example(Example.Config(strength=2)), call(loaded)), trajectory_key(Newer(), call(loaded))]
    assert None not in others
    assert len({base, *others}) == 12


def test_other_weights_have_another_name_and_indescribable_ones_none(loaded: Model, shared_tiny_model: Model) -> None:
    base = trajectory_key(Example(), call(loaded))
    assert trajectory_key(Example(), call(shared_tiny_model)) == base  # the same numbers, from no file
    assert trajectory_key(Example(), call(replace(loaded, folder=None, name="elsewhere"))) == base
    try:
        loaded.unet.peft_config = {"adapter": object()}
        assert trajectory_key(Example(), call(loaded)) is None
    finally:
        del loaded.unet.peft_config
    hook = loaded.unet.conv_in.register_forward_hook(lambda module, given, out: out * 2)
    assert trajectory_key(Example(), call(loaded)) is None
    hook.remove()
    weight = loaded.unet.conv_in.weight
    kept = weight.data.clone()
    weight.data.mul_(1.01)
    assert trajectory_key(Example(), call(loaded)) not in {base, None}
    weight.data.copy_(kept)
    assert trajectory_key(Example(), call(loaded)) == base


CHANGES: dict[str, Any] = {
    "freeu": lambda m: m.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6),
    "weights in place": lambda m: [p.data.mul_(1.05) for p in m.unet.parameters()],
    "another unet": lambda m: setattr(m.pipe, "unet", tiny_sd(seed=7).unet),
    "fp8 storage": lambda m: m.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    ),
    "text encoder": lambda m: [p.data.mul_(1.5) for p in m.pipe.text_encoder.parameters()],
    "autoencoder": lambda m: [p.data.mul_(1.1) for p in m.pipe.vae.parameters()],
    "schedule": lambda m: setattr(
        m.pipe, "scheduler", type(m.pipe.scheduler).from_config(m.pipe.scheduler.config, beta_end=0.02)
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_changed_after_loading_is_inverted_anew(
    name: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = load_model(str(tiny_model_folder), dtype="float32", device="cpu")
    cache, settings = TrajectoryCache(tmp_path), {"inversion": "ddim", "inversion_settings": {}}
    run(EditSession(model, cache=cache), **settings)
    CHANGES[name](model)
    kept, stages, _ = run(EditSession(model, cache=cache), **settings)
    assert "inversion" in stages
    assert torch.equal(kept["edit[0]"].pixels, run(EditSession(model), **settings)[0]["edit[0]"].pixels)


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_one_flipped_bit_is_noticed(at: float, tmp_path: Path) -> None:
    cache = TrajectoryCache(tmp_path)
    cache.put(KEY + "a", FULL, torch.ones(1, 4, 2, 2), Example())
    path = tmp_path / f"{KEY}a.safetensors"
    data = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    data[head + int(at * (len(data) - head))] ^= 0x10
    path.write_bytes(data)
    assert cache.get(KEY + "a") is None
    assert not path.exists()


UNFIT: dict[str, dict[str, Any]] = {
    "too few": {"latents": torch.zeros(3, 4, 8, 8)},
    "another shape": {"latents": torch.zeros(6, 4, 8, 4)},
    "not a number": {"latents": torch.full((6, 4, 8, 8), float("nan"))},
    "start": {"start": 9},
    "noises": {"noises": torch.zeros(2, 4, 8, 8)},
    "texts": {"uncond": ({"embeds": torch.zeros(1, 3, 5)},)},
    "other texts": {"uncond": ({"pooled": torch.zeros(1, 3)},)},
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_can_be_read_and_does_not_fit_is_made_anew(name: str, loaded: Model, tmp_path: Path) -> None:
    cache = TrajectoryCache(tmp_path)
    good = Trajectory(torch.zeros(6, 4, 8, 8), "a cat")
    cache.put(KEY + "a", good, None, Example())
    assert cache.get(KEY + "a", call=call(loaded)) is not None
    cache.put(KEY + "b", replace(good, **UNFIT[name]), None, Example())
    assert cache.get(KEY + "b", call=call(loaded)) is None
    assert not (tmp_path / f"{KEY}b.safetensors").exists()


def test_headers_that_anyone_could_have_written_are_damage(tmp_path: Path) -> None:
    for last, header in (("a", "[" * 100_000), ("b", "[]"), ("c", "{}"), ("d", '{"layout": 3}'), ("e", "1e999")):
        save_file({"latents": torch.zeros(2, 4, 2, 2)}, tmp_path / f"{KEY}{last}.safetensors", {"attnctl": header})
    cache = TrajectoryCache(tmp_path)
    assert [e.inversion for e in cache.entries()] == [""] * 5
    assert [cache.get(KEY + last) for last in "abcde"] == [None] * 5
    assert cache.entries() == []


def test_without_a_home_folder_nothing_is_kept_and_nothing_ends(monkeypatch: pytest.MonkeyPatch, loaded: Model) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ATTNCTL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    cache = TrajectoryCache(cache_folder())
    assert (cache.entries(), cache.clear(), cache.get(KEY + "a")) == ([], 0, None)
    result, _, _ = run(EditSession(loaded, cache=cache), inversion="ddim", inversion_settings={})
    assert any("there is no home folder" in text for text in result.warnings)


def run(session: EditSession, **fields: Any) -> tuple[Any, set[str], list[Any]]:
    pixels = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(5)) * 2 - 1
    events: list[Any] = []
    given = {"pixels": pixels, "source_prompt": "a cat", "steps": 3, "inversion": "null-text"}
    given |= {"inversion_settings": {"inner_steps": 1}, **fields}
    result = session.run(EditRequest((Edit("a dog", "none"),), **given), events.append)
    stages = {e.stage for e in events if isinstance(e, Progress)}
    return result, stages, [e for e in events if isinstance(e, Inverted)]


def test_the_same_picture_is_inverted_once_and_edited_to_the_same_bytes(loaded: Model, tmp_path: Path) -> None:
    cache = TrajectoryCache(tmp_path)
    plain, _, _ = run(EditSession(loaded))
    first, stages, told = run(EditSession(loaded, cache=cache))
    assert {"inversion", "reconstruction"} <= stages
    assert [e.cached for e in told] == [False]
    again, stages, told = run(EditSession(loaded, cache=cache))
    assert not {"inversion", "reconstruction"} & stages
    assert [e.cached for e in told] == [True]
    for result in (first, again):
        assert torch.equal(result["edit[0]"].pixels, plain["edit[0]"].pixels)
        assert torch.equal(result.reconstructions["source"], plain.reconstructions["source"])
        assert result.inversions == plain.inversions
        assert result.rows == plain.rows  # what it takes, also where it was taken once and kept
    _, stages, _ = run(EditSession(loaded, cache=cache), inversion_settings={"inner_steps": 2})
    assert "inversion" in stages
    assert len(cache.entries()) == 2


def test_a_run_goes_on_where_nothing_can_be_kept(loaded: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    session = EditSession(loaded, cache=TrajectoryCache(tmp_path / "file"))
    result, _, _ = run(session, check_reconstruction=False, inversion="ddim", inversion_settings={})
    assert any("is not kept for another time" in text for text in result.warnings)


def test_a_picture_is_inverted_by_itself(loaded: Model, tmp_path: Path) -> None:
    session = EditSession(loaded, cache=TrajectoryCache(tmp_path))
    pixels = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(5)) * 2 - 1
    events: list[Any] = []
    spec = InversionSpec("direct", "a cat")
    found = session.invert(pixels, spec, steps=3, on_event=events.append)
    assert found.report.psnr == pytest.approx(found.report.vae_psnr)
    assert any(isinstance(e, Warned) for e in events)  # a random autoencoder: far below 20 dB
    assert session.invert(pixels, spec, steps=3).cached
    again, stages, _ = run(session, inversion="direct", inversion_settings={})
    assert "inversion" not in stages  # `run` takes what `invert` found
    assert torch.equal(again.source.latents, found.trajectory.latents[:1])


def test_what_invert_keeps_a_run_finds(tmp_path: Path) -> None:
    """On a model whose empty unconditional text is zeros: both must mean that text, or they are two inversions."""
    from attnctl.testing import tiny_sdxl

    tiny_sdxl(tmp_path / "xl")
    session = EditSession(load_model(str(tmp_path / "xl"), device="cpu"), cache=TrajectoryCache(tmp_path / "kept"))
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spec = InversionSpec("null-text", "a red cat", (("inner_steps", 1),))
    made = session.invert(pixels, spec, steps=2, guidance=4.0)
    assert not made.cached
    events: list[Any] = []
    request = EditRequest(
        (Edit("a blue cat", "none"),),
        source_prompt="a red cat",
        pixels=pixels,
        steps=2,
        guidance=4.0,
        inversion="null-text",
        inversion_settings={"inner_steps": 1},
        allow_no_op=True,
    )
    session.run(request, events.append)
    (found,) = [event for event in events if isinstance(event, Inverted)]
    assert found.cached
    assert found.report.psnr == pytest.approx(made.report.psnr)
