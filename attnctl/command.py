"""Commands as plugins: what `attnctl COMMAND` can do beyond what the core brings.

Entry points of the group ``attnctl.commands`` are loaded for `attnctl --help` too, and apart from all other plugins,
so that help stays quick. A module there imports what is heavy inside `Command.run`.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from attnctl import hookspecs
from attnctl.entrypoints import first_line, owner_of, points_of
from attnctl.errors import PluginError
from attnctl.hookspecs import hookspec

if TYPE_CHECKING:
    from attnctl.arguments import Parser

GROUP = "attnctl.commands"
"""Group of entry points whose modules implement ``attnctl_commands``."""

CORE_COMMANDS = (
    "run",
    "methods",
    "inversions",
    "modifiers",
    "explain",
    "invert",
    "cache",
    "sites",
    "tokens",
    "plugins",
    "doctor",
)
"""Commands of the core; no plugin may take their names."""


class Command(ABC):
    """One command of the command line.

    Attributes:
        name: The word after ``attnctl``.
        help: A few words for the list of commands.
        description: A paragraph for the command's own help; `help` where it is empty.
        examples: What the help ends with: lines such as ``attnctl NAME --option``, indented by two spaces.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    description: ClassVar[str] = ""
    examples: ClassVar[str] = ""

    def add_arguments(self, parser: Parser) -> None:  # noqa: B027  (a command without arguments has none to add)
        """Add arguments to the command's own parser; imports nothing heavy. Without any, leave it out."""

    @abstractmethod
    def run(self, arguments: Namespace) -> int:
        """Do it.

        Args:
            arguments: What `add_arguments` asked for.

        Returns:
            The exit code: 0 for success.

        Raises:
            AttnctlError: Something that the user can mend; it becomes one line and exit code 2.
        """


@hookspec
def attnctl_commands() -> list[type[Command]]:  # type: ignore[empty-body]
    """Return commands; heard in modules of the entry point group ``attnctl.commands`` alone."""


@dataclass
class Commands:
    """What the entry points of commands provide.

    Attributes:
        classes: Commands by name.
        owners: Per command, the entry point that provides it.
        origins: Per entry point, its distribution, that one's version and what the entry point points to.
        broken: Per entry point that could not be used, the reason.
    """

    classes: dict[str, type[Command]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    origins: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Commands:
        """Load every entry point alone, attnctl's own first; one that is broken harms no other."""
        found = cls()
        for point in points_of(GROUP):
            found.origins[point.name] = (*owner_of(point), point.value)
            try:
                found.register(point.load(), point.name)
            except BaseException as fault:  # a stranger's module may raise anything, and even call sys.exit()
                if isinstance(fault, KeyboardInterrupt):
                    raise
                found.broken[point.name] = first_line(fault)
        return found

    def register(self, plugin: object, owner: str) -> None:
        """Take the commands of a module, or of any object with hook implementations.

        Raises:
            PluginError: It provides no command, or one that cannot be used; none of its commands is taken then.
        """
        import pluggy

        manager = pluggy.PluginManager("attnctl")
        manager.add_hookspecs(hookspecs)
        manager.add_hookspecs(sys.modules[__name__])
        manager.register(plugin, owner)
        manager.check_pending()
        given: list[Any] = [item for classes in manager.hook.attnctl_commands() for item in classes]
        self._check(given)
        for item in given:
            self.classes[item.name] = item
            self.owners[item.name] = owner

    def _check(self, given: Sequence[Any]) -> None:
        if not given:
            raise PluginError("it provides no command", hint="implement attnctl_commands")
        for item in given:
            if not inspect.isclass(item) or not issubclass(item, Command):
                raise PluginError(f"its command {item!r} is not a subclass of Command")
            missing = [name for name in ("name", "help") if not getattr(item, name, "")]
            missing += sorted(item.__abstractmethods__)
            if missing:
                raise PluginError(f"its command {item.__name__} lacks {', '.join(missing)}")
            if item.name in CORE_COMMANDS or item.name in self.classes:
                owner = self.owners.get(item.name, "attnctl itself")
                raise PluginError(f"its command {item.name!r} has a name that {owner} already uses")
            if item.name.startswith("-") or item.name.split() != [item.name]:
                raise PluginError(f"its command {item.name!r} is not one word")
