"""Settings that go by word: how they are written, and the tables over tokens that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attnctl.tokens import PromptTokens, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Bounds = float | tuple[float, float]
"""A window of the schedule in fractions: (start, stop), or stop alone."""

DEFAULT = "default_"
"""The key of a per-word schedule that stands for all words without an entry."""


def window(bounds: Bounds) -> tuple[float, float]:
    """Return (start, stop) of a window.

    Raises:
        ValueError: The window does not satisfy 0 <= start <= stop <= 1.
    """
    start, stop = bounds if isinstance(bounds, tuple) else (0.0, float(bounds))
    if not 0 <= start <= stop <= 1:
        raise ValueError(f"a window must satisfy 0 <= start <= stop <= 1, found {start:g} to {stop:g}")
    return start, stop


def read_by_word(text: str) -> dict[str, Any] | str:
    """Read ``lion:0.4 burger:0.2,0.6`` as {"lion": 0.4, "burger": (0.2, 0.6)}; anything else comes back as it is."""
    found: dict[str, Any] = {}
    for piece in text.split():
        word, colon, value = piece.rpartition(":")
        try:
            numbers = [float(v) for v in value.split(",")]
        except ValueError:
            return text
        if not (colon and word) or len(numbers) > 2:
            return text
        found[word] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    return found or text


def read_word_pair(value: Any) -> Any:
    """Read ``cat > tiger`` as (("cat",), ("tiger",)) and ``grass`` as the same word in both prompts."""
    if not isinstance(value, str):
        return value
    source, arrow, target = value.partition(" > ")
    return tuple(source.split()), tuple((target if arrow else source).split())


def tokens_of(words: Iterable[Word], prompt: PromptTokens, skipped: list[str] | None = None) -> tuple[int, ...]:
    """Return the token positions of words, ascending.

    Args:
        words: Words, or their positions.
        prompt: The prompt that they stand in.
        skipped: Collects words that the prompt does not have; None makes those an error.

    Raises:
        InputError: A word is not in the prompt; the message lists those that are.
    """
    found: set[int] = set()
    for word in words:
        positions = prompt.find(word) if skipped is not None else prompt.require(word)
        found.update(positions)
        if skipped is not None and not positions:
            skipped.append(str(word))
    return tuple(sorted(found))


def token_windows(
    schedule: Bounds | Mapping[Word, Bounds], target: PromptTokens, skipped: list[str] | None = None
) -> NDArray[np.float64]:
    """Return the window of every token of the target prompt, (M, 2): the default's, then per word in order.

    Without a default entry, words that are not named take the whole schedule. Other arguments and errors are those of
    `tokens_of`.
    """
    import numpy as np

    by_word = dict(schedule) if isinstance(schedule, Mapping) else {DEFAULT: schedule}
    table = np.tile(np.array(window(by_word.pop(DEFAULT, 1.0))), (target.length, 1))
    for word, bounds in by_word.items():
        table[list(tokens_of([word], target, skipped))] = window(bounds)
    return table


def alpha_table(windows: NDArray[np.float64], steps: int) -> NDArray[np.float32]:
    """Return alpha, (T+1, M): 1 where a token takes the edited map.

    The published table has a row more than there are steps, and rounds by it: row i is 1 for
    int(start (T+1)) <= i < int(stop (T+1)).
    """
    import numpy as np

    rows = (windows * (steps + 1)).astype(np.int64)
    i = np.arange(steps + 1)[:, None]
    return ((rows[:, 0] <= i) & (i < rows[:, 1])).astype(np.float32)


def equalizer(
    factors: Mapping[Word, float], target: PromptTokens, skipped: list[str] | None = None
) -> NDArray[np.float32]:
    """Return c, (M,): the factors of the named words' tokens, 1 elsewhere. See `tokens_of` for the rest."""
    import numpy as np

    table = np.ones(target.length, np.float32)
    for word, factor in factors.items():
        table[list(tokens_of([word], target, skipped))] = factor
    return table
