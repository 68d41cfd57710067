"""What changes from a source prompt to a target prompt, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal

Part = tuple[Literal["same", "gone", "new"], str]

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]|\s+")
"""Words, single signs, and single characters of scripts without spaces."""

_MAX_WORDS = 600
"""Prompts with more words are compared as a whole: the time grows with the product of their lengths."""


def difference(source: str | None, target: str) -> tuple[list[Part] | None, list[Part]]:
    """Split two prompts into what both have and what only one has.

    Args:
        source: Source prompt; None where there is none.
        target: Target prompt.

    Returns:
        The parts of the source prompt, ``same`` or ``gone``, or None; the parts of the target, ``same`` or ``new``.
        Joined, the parts give the prompts back.
    """
    if source is None:
        return None, [("same", target)]
    if source == target:
        return [("same", source)], [("same", target)]
    a, b = _WORDS.findall(source), _WORDS.findall(target)
    if len(a) > _MAX_WORDS or len(b) > _MAX_WORDS:
        return [("gone", source)], [("new", target)]
    before: list[Part] = []
    after: list[Part] = []
    steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    for place, (what, i, j, k, m) in enumerate(steps):
        # A space between two changed words has changed with them: the eye sees one phrase.
        space = 0 < place < len(steps) - 1 and not "".join(a[i:j]).strip()
        same = what == "equal" and not space
        _add(before, "same" if same else "gone", "".join(a[i:j]))
        _add(after, "same" if same else "new", "".join(b[k:m]))
    return before, after


def _add(parts: list[Part], kind: Literal["same", "gone", "new"], text: str) -> None:
    if text and parts and parts[-1][0] == kind:
        parts[-1] = (kind, parts[-1][1] + text)
    elif text:
        parts.append((kind, text))
