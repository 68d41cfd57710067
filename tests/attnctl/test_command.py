"""Commands that plugins bring."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import ClassVar

import pytest

from attnctl.cli.parser import build_parser
from attnctl.command import CORE_COMMANDS, GROUP, Command, Commands
from attnctl.errors import InputError, PluginError
from attnctl.hookspecs import hookimpl


class Greet(Command):
    name = "greet"
    help = "say hello"
    examples = "  attnctl greet --name World"
    said: ClassVar[list[str]] = []

    def add_arguments(self, parser) -> None:
        parser.add_argument("--name", default="you")

    def run(self, arguments: Namespace) -> int:
        self.said.append(arguments.name)
        return 3


def providing(*classes: object) -> SimpleNamespace:
    @hookimpl
    def attnctl_commands() -> list[object]:
        return list(classes)

    return SimpleNamespace(attnctl_commands=attnctl_commands)


def test_a_command_is_parsed_and_run() -> None:
    parser = build_parser({"greet": Greet})
    arguments = parser.parse_args(["greet", "--name", "World"])
    assert arguments.execute(arguments) == 3
    assert Greet.said == ["World"]
    assert "say hello" in parser.format_help()
    with pytest.raises(InputError, match="no option"):
        parser.parse_args(["greet", "--nmae", "World"])


def test_the_names_of_the_core_are_those_that_it_parses() -> None:
    for name in CORE_COMMANDS:
        assert name in build_parser({}).format_help()
    with pytest.raises(InputError, match=f"known are.*{CORE_COMMANDS[0]}"):
        build_parser({}).parse_args(["greet"])


class Nameless(Command):
    def run(self, arguments: Namespace) -> int:
        return 0


class Taken(Greet):
    name = "run"


class TwoWords(Greet):
    name = "say hello"


class Half(Command):
    name, help = "half", "half"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ((), "provides no command"),
        ((int,), "not a subclass of Command"),
        ((Nameless,), "lacks name, help"),
        ((Half,), "lacks run"),
        ((Taken,), "already uses"),
        ((TwoWords,), "not one word"),
        ((Greet, Taken), "already uses"),
    ],
)
def test_a_broken_plugin_gives_nothing(given: tuple, why: str) -> None:
    commands = Commands()
    with pytest.raises(PluginError, match=why):
        commands.register(providing(*given), "test")
    assert not commands.classes


def test_a_name_is_taken_once() -> None:
    commands = Commands()
    commands.register(providing(Greet), "first")
    with pytest.raises(PluginError, match="first already uses"):
        commands.register(providing(Greet), "second")
    assert commands.owners == {"greet": "first"}


def test_broken_entry_points_are_listed_and_harm_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def point(name: str, loaded: object) -> SimpleNamespace:
        def load() -> object:
            if isinstance(loaded, BaseException):
                raise loaded
            return loaded

        return SimpleNamespace(name=name, value=f"{name}.module", dist=None, load=load)

    points = [point("bad", SystemExit("bye")), point("good", providing(Greet)), point("worse", ImportError("no x\nat"))]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == GROUP else [])
    commands = Commands.load()
    assert list(commands.classes) == ["greet"]
    assert commands.broken == {"bad": "SystemExit: bye", "worse": "ImportError: no x"}
    assert commands.origins["good"] == ("unknown", "", "good.module")


class Explosive(Greet):
    name = "explosive"

    def add_arguments(self, parser) -> None:
        raise RuntimeError("boom")


def test_a_command_whose_arguments_are_broken_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser({"explosive": Explosive, "greet": Greet})
    assert "the command explosive is left out: RuntimeError: boom" in capsys.readouterr().err
    assert parser.parse_args(["greet"]).command == "greet"
    assert "explosive" not in parser.format_help()
