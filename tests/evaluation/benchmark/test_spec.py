"""What a comparison is asked to do: from files and options, and back."""

from __future__ import annotations

import tomllib

import pytest

from attnctl.errors import AttnctlError, InputError
from attnctl.registry import Registry
from attnctl_evaluation.benchmark.resolve import resolve, with_threads
from attnctl_evaluation.benchmark.spec import build_spec, differences, read_toml, toml_bytes

FILE = """
dataset = "microbench/tiny"
seeds = [0, 4]
size = [64, 96]
inversion = "direct"

[methods.none]

[methods.weak]
method = "fpe"
settings = { self_replace = 0.2 }

[methods.strong]
method = "fpe"
preset = "paper"
modifiers = ["proximal"]
inversion = "ddim"

[metric_settings.clip-score]
model = "micro"
"""


def test_a_file_may_name_one_method_twice(registry: Registry) -> None:
    spec = resolve(build_spec(tomllib.loads(FILE), "f"), registry)
    assert list(spec.methods) == ["none", "weak", "strong"]
    assert spec.methods["weak"].settings["self_replace"] == 0.2
    assert "min_downscale" in spec.methods["weak"].settings
    assert spec.methods["strong"].settings == {"self_replace": 0.8, "min_downscale": "none", "max_tokens": 1024}
    assert "quantile" in spec.methods["strong"].modifiers["proximal"]
    assert spec.baseline == "none"
    assert (spec.seeds, spec.size, spec.steps, spec.guidance) == ((0, 4), (64, 96), 30, 5.0)
    assert spec.metrics == ("micro/v1",)
    assert spec.dataset_settings["per_type"] == 1


def test_the_resolved_file_says_the_same_to_the_byte(registry: Registry) -> None:
    """Every method with every preset, and values that TOML has no word for."""
    methods = {}
    for name, kind in registry.methods.items():
        methods[name] = {"settings": {}}
        methods |= {f"{name} {preset}": {"method": name, "preset": preset} for preset in kind.presets}
    methods["undone"] = {"method": "fpe", "preset": "paper", "settings": {"max_tokens": "none"}}
    methods["words"] = {"method": "p2p", "settings": {"equalizer": '"quoted":2'}}
    data = {"dataset": "microbench", "methods": methods, "negative_prompt": 'ä "x"\n\\ # [a]', "title": "b"}
    first = resolve(build_spec(data, "f"), registry)
    text = toml_bytes(first.plain(), "a note")
    again = resolve(build_spec(tomllib.loads(text.decode()), "g"), registry)
    assert again == first
    assert toml_bytes(again.plain(), "a note") == text
    for label, given in methods.items():
        if "preset" not in given:  # to these, models may add settings that suit them
            continue
        entry = first.methods[label]
        wanted = registry.make_method(entry.method, given.get("settings", {}), given.get("preset")).config
        assert registry.make_method(entry.method, again.methods[label].settings, entry.preset).config == wanted


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"stepz": 3}, "unknown setting in f 'stepz': known are steps"),
        ({"methods": {"fpe": {"setings": {}}}}, "unknown setting of the method fpe in f 'setings': known are settings"),
        ({"methods": []}, "f names no methods"),
        ({"dataset": ""}, "f names no data set"),
        ({"methods": ["fpe", "fpe"]}, "f: methods: fpe is named twice"),
        ({"seeds": []}, "f: seeds: at least one seed"),
        ({"seeds": [1, 1]}, "f: seeds: a seed is named twice"),
        ({"seeds": [-1]}, "f: seeds: seeds must lie between"),
        ({"limit": 0}, "f: limit: input should be greater than"),
        ({"guidance": float("inf")}, "f: guidance must be a finite number of at least 1, found inf"),
        ({"scheduler": "dim"}, "f: unknown scheduler 'dim': known are ddim"),
        ({"size": [0, 4]}, "f: size (0, 4) is not allowed"),
        ({"baseline": "p2p"}, "f: the baseline 'p2p' is none of the methods fpe"),
        ({"methods": {"fpe": 3}}, "f: methods.fpe: "),
    ],
)
def test_what_cannot_be_used_is_named(change: dict, why: str) -> None:
    with pytest.raises(InputError) as caught:
        build_spec({"dataset": "microbench", "methods": ["fpe"], **change}, "f")
    assert caught.value.message.startswith(why)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dataset": "microbanch"}, "unknown dataset 'microbanch': known are microbench"),
        ({"dataset_settings": {"per_typ": 2}}, "unknown setting of microbench 'per_typ': known are per_type"),
        ({"methods": ["fpw"]}, "unknown method 'fpw': known are fpe"),
        ({"methods": {"fpe": {"preset": "papr"}}}, "unknown preset of fpe 'papr': known are paper"),
        ({"methods": {"fpe": {"settings": {"self_replac": 1}}}}, "unknown setting of fpe 'self_replac'"),
        ({"methods": {"fpe": {"settings": {"self_replace": 7}}}}, "fpe: self_replace=7 is not allowed"),
        ({"methods": {"fpe": {"modifiers": ["proximel"]}}}, "unknown modifier 'proximel': known are proximal"),
        ({"methods": {"fpe": {"mask": True}}}, "fpe makes no use of a mask"),
        ({"methods": {"fpe": {"inversion_settings": {"offsets": True}}}}, "the method fpe has settings for an inv"),
        ({"inversion": "dirct"}, "unknown inversion 'dirct': known are direct"),
        ({"inversion_settings": {"direct": {}}}, "there are settings for the inversion direct, which nothing"),
        ({"metrics": ["psnrr"]}, "unknown metric or protocol 'psnrr': known are psnr"),
        ({"metric_settings": {"lpisp": {}}}, "unknown metric 'lpisp': known are lpips"),
        ({"model": "micra"}, "unknown model 'micra'"),
        ({"dtype": "float15"}, "unknown dtype 'float15': known are float1"),
    ],
)
def test_names_are_checked_before_anything_is_loaded(change: dict, why: str, registry: Registry) -> None:
    spec = build_spec({"dataset": "microbench", "methods": ["fpe"], **change}, "f")
    with pytest.raises(AttnctlError) as caught:
        resolve(spec, registry)
    assert caught.value.message.startswith(why)
    assert caught.value.hint


def test_settings_of_a_shared_inversion_reach_the_entries_that_name_it(registry: Registry) -> None:
    methods = {"fpe": {"inversion": "direct"}, "p2p": {}, "pnp": {"inversion": "ddim"}}
    data = {"dataset": "microbench", "methods": methods, "inversion_settings": {"direct": {"offsets": "true"}}}
    spec = resolve(build_spec(data, "f"), registry)
    assert spec.methods["fpe"].inversion_settings == {"offsets": True}
    assert spec.methods["p2p"].inversion_settings == {}
    assert "offsets" not in spec.methods["pnp"].inversion_settings


def test_threads_are_what_is_asked_what_the_run_has_or_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnctl_evaluation.benchmark.resolve.cores", lambda: 8)
    spec = build_spec({"dataset": "microbench", "methods": ["fpe"]}, "f")
    assert [with_threads(spec, {}, n).threads for n in (1, 3, 100)] == [8, 2, 1]
    assert with_threads(spec, {"threads": 6}, 3).threads == 6
    assert with_threads(spec.model_copy(update={"threads": 5}), {"threads": 6}, 3).threads == 5


def test_files_that_are_no_toml_are_named_with_their_line(tmp_path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(InputError, match=r"cannot read .*no such file"):
        read_toml(path)
    path.write_text('dataset = "a"\nmethods = x')
    with pytest.raises(InputError, match=r"is not TOML: .*line 2"):
        read_toml(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_toml(path)


def test_differences_are_told_with_their_place() -> None:
    old, new = {"a": {"b": 1, "c": [1]}, "d": "x"}, {"a": {"b": 1.0, "c": [2]}, "e": None}
    assert differences(old, new) == ["a.c: [1], now [2]", 'd: "x", now not set']
