"""Numbers beyond the budget on the command line: one line, at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "100000x64"], ["--size", "99999999999x99999999999"], ["--size", "9" * 5000 + "x8"],
        ["--steps", "1000000000"],
        ["--steps", "9" * 5000], ["--max-rows", "9" * 5000], ["--seed", "9" * 5000], ["--guidance", "1e999"],
    ],
    ids=lambda words: f"{words[0]} {words[1][:12]}",
)  # fmt: skip
def test_the_command_line_refuses_at_once(words: list[str], call: Callable[..., Any]) -> None:
    began = time.monotonic()
    done = call("run", "--method", "none", *words)
    assert done.code == 2
    assert done.error
    assert time.monotonic() - began < 10
