"""The command line: `attnctl COMMAND`. Nothing here imports torch before a command needs it."""

from attnctl.cli.app import main
from attnctl.cli.parser import build_parser

__all__ = ["build_parser", "main"]
