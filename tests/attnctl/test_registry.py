"""Finding plugins: one at a time, in the right order, and none of them can take the others down."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest

from attnctl.errors import InputError, PluginError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionSpec
from attnctl.registry import KINDS, Registry

GOOD = """
from attnctl.hookspecs import hookimpl
from attnctl.method import EditMethod, EditPlan, Source

class Mine(EditMethod):
    name = "{name}"
    summary = "A test."

    def plan(self, request, model):
        return EditPlan(Source("a"))

@hookimpl
def attnctl_methods():
    return [Mine]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(distribution, entry_point, source)``: a distribution of one module, as an installer leaves it."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def build(distribution: str, point: str, source: str, *, metadata: bool = True, target: str = "") -> None:
        module = f"{distribution.replace('-', '_')}_module"
        (tmp_path / f"{module}.py").write_text(dedent(source))
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(exist_ok=True)
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[attnctl]\n{point} = {target or module}\n")
        made.append(module)

    yield build
    for module in made:
        sys.modules.pop(module, None)


def test_built_in_plugins_come_by_the_same_door() -> None:
    registry = Registry.load()
    assert {"fpe", "none"} <= set(registry.methods)
    assert "ddim" in registry.inversions
    mine = {p.name: p for p in registry.plugins if p.owner == "attnctl"}
    assert mine["fpe"].provides == ("method fpe",)
    assert mine["fpe"].target == "attnctl_plugins.fpe"
    assert not [p for p in mine.values() if p.error]


def test_a_strangers_plugin_is_found(install: Install) -> None:
    install("stranger", "theirs", GOOD.format(name="mine"))
    registry = Registry.load()
    plugin = next(p for p in registry.plugins if p.owner == "stranger")
    assert (plugin.name, plugin.version, plugin.provides, plugin.error) == ("theirs", "1.2", ("method mine",), "")
    assert registry.method("mine").summary == "A test."
    assert registry.owners["method", "mine"] == "theirs"


BROKEN = {
    "broken import": ("import no_such_module_anywhere", "ModuleNotFoundError: No module named"),
    "syntax": ("def (:", "SyntaxError"),
    "exit": ("import sys; sys.exit('good bye')", "SystemExit: good bye"),
    "raises": ("raise ValueError('first line\\nsecond line')", "ValueError: first line"),
    "unknown hook": (
        GOOD.format(name="a") + "\n@hookimpl\ndef attnctl_painters():\n    return []\n",
        "unknown hook 'attnctl_painters'",
    ),
    "wrong arguments": (
        "from attnctl.hookspecs import hookimpl\n@hookimpl\ndef attnctl_methods(model):\n    return []\n",
        "declared in the hookimpl but can not be found in the hookspec",
    ),
    "nothing": ("x = 1", "it provides nothing"),
    "abstract": (
        "from attnctl.hookspecs import hookimpl\nfrom attnctl.method import EditMethod\n"
        "class Half(EditMethod):\n    name = 'half'\n"
        "@hookimpl\ndef attnctl_methods():\n    return [Half]\n",
        "its method 'half' does not implement plan",
    ),
    "no name": (GOOD.format(name=""), "its method Mine has no name"),
    "no class": (
        "from attnctl.hookspecs import hookimpl\n@hookimpl\ndef attnctl_methods():\n    return ['fpe']\n",
        "its method 'fpe' is not a subclass of EditMethod",
    ),
    "wrong kind": (GOOD.format(name="a").replace("attnctl_methods", "attnctl_inversions"), "subclass of Inversion"),
    "no list": (
        "from attnctl.hookspecs import hookimpl\n@hookimpl\ndef attnctl_methods():\n    return 5\n",
        "TypeError",
    ),
    "exit in a hook": (
        "from attnctl.hookspecs import hookimpl\n@hookimpl\ndef attnctl_methods():\n    raise SystemExit(3)\n",
        "SystemExit: 3",
    ),
    "two of one name": (GOOD.format(name="a").replace("[Mine]", "[Mine, Mine]"), "it provides two of the method 'a'"),
    "taken": (GOOD.format(name="fpe"), "its method 'fpe' has a name that plugin 'fpe' already uses"),
}


@pytest.mark.parametrize("fault", sorted(BROKEN))
def test_a_broken_plugin_is_listed_and_harms_nothing_else(fault: str, install: Install) -> None:
    """Neither those before it nor those after it."""
    source, message = BROKEN[fault]
    before = Registry.load()
    install("m-broken", "m-broken", source)
    install("z-after", "z-after", GOOD.format(name="after"))
    registry = Registry.load()
    (broken,) = registry.broken
    assert (broken.name, broken.owner, broken.provides) == ("m-broken", "m-broken", ())
    assert message in broken.error
    assert "\n" not in broken.error
    for kind in KINDS:
        assert set(before.classes[kind]) == set(registry.classes[kind]) - {"after"}
    assert "after" in registry.methods
    assert registry.methods["fpe"] is before.methods["fpe"]


def test_a_plugin_that_misses_its_module_is_listed(install: Install) -> None:
    install("ghost", "ghost", "", target="no_such_module_anywhere:thing")
    (broken,) = Registry.load().broken
    assert (broken.name, broken.target) == ("ghost", "no_such_module_anywhere:thing")


def test_damaged_metadata_harms_nothing(install: Install) -> None:
    install("nameless", "nameless", GOOD.format(name="lost"), metadata=False)
    registry = Registry.load()
    assert {"fpe", "lost"} <= set(registry.methods)


def test_attnctls_own_plugins_win_a_name(install: Install) -> None:
    """Also against a distribution that sorts before attnctl."""
    install("aaa", "aaa", GOOD.format(name="none"))
    registry = Registry.load()
    assert registry.methods["none"].__module__ == "attnctl_plugins.none"
    assert [p.owner for p in registry.broken] == ["aaa"]


def test_an_entry_point_of_a_taken_name_is_listed_as_broken(install: Install) -> None:
    install("other", "fpe", GOOD.format(name="other"))
    (broken,) = Registry.load().broken
    assert (broken.name, broken.owner) == ("fpe", "other")


@pytest.mark.parametrize(
    ("value", "methods"), [("fpe", {"fpe"}), (" none , fpe ", {"fpe", "none"}), ("", set()), ("nothing-like-it", set())]
)
def test_the_environment_restricts_what_is_loaded(
    value: str, methods: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNCTL_LOAD_PLUGINS", value)
    registry = Registry.load()
    assert set(registry.methods) == methods
    assert set(registry.inversions) == set()
    families = {"sd", "sdxl"}  # without them no model can be loaded
    assert {p.name for p in registry.plugins} == methods | families


def test_a_file_is_a_plugin_too(tmp_path: Path) -> None:
    path = tmp_path / "my plugin.py"
    path.write_text(GOOD.format(name="filed"))
    registry = Registry.load([path])
    assert registry.method("filed").name == "filed"
    assert registry.plugins[-1].owner == "file"
    assert registry.plugins[-1].target == str(path)


@pytest.mark.parametrize("fault", ["broken import", "exit", "exit in a hook", "abstract", "taken", "unknown hook"])
def test_a_broken_file_that_the_user_named_is_an_error(fault: str, tmp_path: Path) -> None:
    source, message = BROKEN[fault]
    path = tmp_path / "plugin.py"
    path.write_text(source)
    with pytest.raises(PluginError) as caught:
        Registry.load([path])
    assert str(path) in str(caught.value)
    assert message.partition(": ")[0] in str(caught.value)


def test_files_that_are_not_there_or_not_python_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no plugin file"):
        Registry.load([tmp_path / "nothing.py"])
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(PluginError, match="not a Python file"):
        Registry.load([text])


def test_unknown_names_list_the_known_ones_nearest_first() -> None:
    registry = Registry.load()
    with pytest.raises(InputError, match="unknown method 'fpee': known are fpe, ") as caught:
        registry.method("fpee")
    assert caught.value.hint == "did you mean 'fpe'?"
    with pytest.raises(InputError, match="unknown inversion 'dddim': known are ddim"):
        registry.inversion("dddim")
    with pytest.raises(InputError, match="unknown preset of fpe 'papr': known are paper, layers-4-14"):
        registry.make_method("fpe", {}, "papr")


def test_a_name_whose_plugin_is_broken_says_so(install: Install) -> None:
    install("mine", "mine", "raise OSError('disk on fire')")
    with pytest.raises(InputError) as caught:
        Registry.load().method("mine")
    assert caught.value.hint == "the plugin 'mine' is installed but broken: OSError: disk on fire"


def test_an_empty_registry_says_that_there_is_nothing() -> None:
    with pytest.raises(InputError, match="unknown method 'fpe': there are none"):
        Registry().method("fpe")


def test_settings_override_presets() -> None:
    registry = Registry.load()
    assert registry.make_method("fpe", {}, "paper").config.max_tokens == 1024
    made = registry.make_method("fpe", {"max_tokens": "256"}, "paper").config
    assert (made.max_tokens, made.min_downscale, made.self_replace) == (256, None, 0.8)


def test_inversions_are_built_with_validated_settings() -> None:
    registry = Registry.load()
    assert registry.make_inversion(InversionSpec("ddim")).name == "ddim"
    with pytest.raises(InputError, match="unknown setting of ddim 'speed'"):
        registry.make_inversion(InversionSpec("ddim", options=(("speed", 1),)))


def test_a_namespace_of_hooks_is_a_plugin_too() -> None:
    @hookimpl
    def attnctl_inversions() -> list[type[Inversion]]:
        return [type("Mine", (Inversion,), {"name": "mine", "invert": lambda self, call: None})]

    registry = Registry.load()
    for name in ("one", "other"):
        listed = registry.register(SimpleNamespace(attnctl_inversions=attnctl_inversions), name)
        assert listed.error == (
            "" if name == "one" else "its inversion 'mine' has a name that plugin 'one' already uses"
        )
    assert registry.inversion("mine").name == "mine"
