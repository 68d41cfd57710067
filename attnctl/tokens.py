"""Words and tokens of prompts: which tokens a word has, and how two prompts line up. NumPy alone, no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnctl.errors import InputError, nearest_first

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Word = str | int
"""A word of a prompt, or its position among the words, counted from 0."""

FUNCTION_WORDS = frozenset(
    ["a", "an", "the", "of", "on", "in", "at", "to", "with", "and", "or", "by", "for", "from", "next", "is", "are"]
)
"""Words that hardly ever have a place of their own in a picture, so that they are not proposed for masks."""


SPACELESS = (
    r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]",  # Chinese characters: each alone
    r"[\u3041-\u309f]+",  # Hiragana
    r"[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f]+",  # Katakana
    r"[\u0e01-\u0e5b]+",  # Thai
    r"[\u0e81-\u0edf]+",  # Lao
    r"[\u1000-\u109f]+",  # Burmese
    r"[\u1780-\u17ff]+",  # Khmer
    r"[\u3000-\u3040\u30fb\uff00-\uff0f\uff1a-\uff20\uff5f-\uff65]+",  # their punctuation
)
"""Scripts that put no spaces between words, as regular expressions of what counts as one word."""

_RUNS = re.compile(f"({'|'.join(SPACELESS)})")


@dataclass(frozen=True)
class PromptTokens:
    """A prompt cut into words and tokens.

    Attributes:
        text: The prompt.
        ids: Token ids with the start and end tokens that the model has, at most `length`, without padding.
        pieces: One printable piece of text per id.
        words: The words: what stands between spaces, punctuation included; of scripts without spaces see `split_words`.
        positions: Per word the positions of its tokens among `ids`; those that are cut off are left out.
        length: Number of tokens M that the model sees, padding included.
    """

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    words: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    length: int

    def find(self, word: Word) -> tuple[int, ...]:
        """Return the token positions of every occurrence of a word, exactly as written; () when there is none.

        Digits that are no word of the prompt count as a word's position. A word of a script without spaces may be
        made of several of `words`.
        """
        at = self._position(word)
        if at is not None:
            return self.positions[at] if 0 <= at < len(self.words) else ()
        if word not in self.words and isinstance(word, str) and _RUNS.search(word):
            return tuple(dict.fromkeys(p for k in self._spans(word) for p in self.positions[k]))
        return tuple(p for w, found in zip(self.words, self.positions, strict=True) if w == word for p in found)

    def require(self, word: Word) -> tuple[int, ...]:
        """Return the token positions of a word.

        Raises:
            InputError: The prompt has no such word (the message lists those that it has, the nearest first), or the
                word lies behind the end of the model's text.
        """
        found = self.find(word)
        if found:
            return found
        at = self._position(word)
        if word in self.words or (at is not None and 0 <= at < len(self.words)):
            raise InputError(
                f"the word {word!r} of {self.text!r} has no token among the {self.length} that the model sees",
                hint="shorten the prompt, or put the word further to the front",
            )
        if at is not None:
            raise InputError(
                f"{self.text!r} has {len(self.words)} words, so there is no word {at}", hint="words count from 0"
            )
        ordered = nearest_first(str(word), dict.fromkeys(self.words))
        raise InputError(
            f"{self.text!r} has no word {word!r}: its words are {', '.join(ordered) or 'none'}",
            hint=f"did you mean {ordered[0]!r}? words are written as in the prompt, with capitals and punctuation"
            if ordered
            else "give a prompt with words",
        )

    def _spans(self, word: str) -> list[int]:
        """Return the indices of words that together spell a word without spaces in it, of every occurrence."""
        parts = split_words(word)
        starts = [k for k in range(len(self.words)) if list(self.words[k : k + len(parts)]) == parts]
        return [k for start in starts for k in range(start, start + len(parts))] if word in self.text else []

    def _position(self, word: Word) -> int | None:
        if isinstance(word, str) and (word in self.words or not word.isdecimal()):
            return None
        return int(word)

    def word_at(self, position: int) -> str:
        """Return the word that a token belongs to; empty for start, end and padding."""
        return next((w for w, found in zip(self.words, self.positions, strict=True) if position in found), "")


def split_words(text: str) -> list[str]:
    """Cut a text into words: at spaces, and inside what stands between them where a script has no spaces.

    A Chinese character is a word of its own, as are runs of Hiragana, Katakana, Thai, Lao, Burmese and Khmer letters
    and of these scripts' punctuation. That is no dictionary: a word of several characters is named by writing it whole
    (`PromptTokens.find`). Everything else stays together, so that texts of other scripts are cut at spaces alone.
    """
    return [part for word in text.split() for part in _RUNS.split(word) if part]


def read_prompt(text: str, tokenizer: Any, length: int, *, published: bool = False) -> PromptTokens:
    """Cut a prompt into words and tokens.

    A token belongs to the word that it stands in, by the tokenizer's own account of where each token comes from; so it
    does not matter whether texts have a start token. A placeholder of several learned vectors (textual inversion) is
    one word that owns all of them. Where the tokenizer gives no account, and when `published` is set, tokens are dealt
    out by the published rule instead.

    Args:
        text: The prompt.
        tokenizer: A Hugging Face tokenizer.
        length: Number of tokens M that the model sees.
        published: Use Prompt-to-Prompt's rule: words are what stands between single spaces, and tokens, decoded one
            by one, belong to a word until their letters fill it. A double space shifts everything behind it.
    """
    vectors = learned_vectors(tokenizer)
    folded = fold(text, vectors)
    words = folded.split(" ") if published else _split_around(folded, vectors)
    spelt = spell(text, vectors)
    fast = bool(getattr(tokenizer, "is_fast", False))
    more = {"return_offsets_mapping": True} if fast else {}
    read = tokenizer(spelt, truncation=False, padding=False, verbose=False, return_special_tokens_mask=True, **more)
    raw, special = list(read.input_ids), list(read.special_tokens_mask)
    head, tail = _leading(special), _leading(special[::-1])
    ids = raw if len(raw) <= length else [*raw[: length - tail], *raw[len(raw) - tail :]]
    pieces = [str(tokenizer.decode([i])).strip() for i in ids]
    if published or not fast:
        letters = [str(tokenizer.decode([i])).strip("# ") for i in raw[head : len(raw) - tail]]
        positions = _by_letters([spell(word, vectors) for word in words], letters, head)
    else:
        positions = _by_place(_places(words, spelt, vectors), read.offset_mapping, special)
    kept = tuple(tuple(p for p in found if p < min(len(ids), length) - tail) for found in positions)
    return PromptTokens(text, tuple(ids), tuple(pieces), tuple(words), kept, length)


def _split_around(text: str, vectors: Mapping[str, str]) -> list[str]:
    """Cut into words, but never inside a placeholder's name."""
    found = []
    for word in text.split():
        found += [word] if any(token in word for token in vectors) else split_words(word)
    return found


def learned_vectors(tokenizer: Any) -> dict[str, str]:
    """Return the placeholders that stand for several learned vectors, and how each is written out for the model."""
    added = getattr(tokenizer, "added_tokens_encoder", {})
    found = {}
    for token in added:
        count = next(i for i in range(1, len(added) + 2) if f"{token}_{i}" not in added)
        if count > 1:
            found[token] = " ".join([token, *(f"{token}_{i}" for i in range(1, count))])
    return found


def fold(text: str, vectors: Mapping[str, str]) -> str:
    """Write every placeholder once, also where its vectors were written out."""
    for token, spelt in vectors.items():
        text = text.replace(spelt, token)
    return text


def spell(text: str, vectors: Mapping[str, str]) -> str:
    """Write out every placeholder as the model sees it."""
    text = fold(text, vectors)
    for token, spelt in vectors.items():
        text = re.sub(re.escape(token) + r"(?!_[0-9])", lambda _, spelt=spelt: spelt, text)  # type: ignore[misc]
    return text


def _leading(special: Sequence[int]) -> int:
    """Return how many tokens at the front are no part of the text."""
    return next((i for i, mark in enumerate(special) if not mark), len(special))


def _places(words: Sequence[str], text: str, vectors: Mapping[str, str]) -> list[tuple[int, int]]:
    """Return where each word stands in the text that the tokenizer reads."""
    places, at = [], 0
    for word in words:
        spelt = spell(word, vectors)
        start = text.index(spelt, at)
        at = start + len(spelt)
        places.append((start, at))
    return places


def _by_place(
    places: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> list[list[int]]:
    """Give every token to the word that its characters stand in; one that stands in two belongs to both."""
    positions: list[list[int]] = [[] for _ in places]
    for i, ((start, stop), mark) in enumerate(zip(offsets, special, strict=True)):
        for k, (a, b) in enumerate(places):
            if not mark and start < b and stop > a:
                positions[k].append(i)
    return positions


def _by_letters(words: Sequence[str], pieces: Sequence[str], head: int) -> list[list[int]]:
    """Deal tokens out to words by accumulated length, as google/prompt-to-prompt does; `head` tokens stand before."""
    positions: list[list[int]] = [[] for _ in words]
    at = filled = 0
    for i, piece in enumerate(pieces):
        if at >= len(words):
            break
        positions[at].append(i + head)
        filled += len(piece)
        if filled >= len(words[at]):
            at, filled = at + 1, 0
    return positions


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a target prompt's attention columns are made of a source's and of its own: A' = A_src W + A_own diag(own).

    Attributes:
        source: The source prompt.
        target: The target prompt.
        matrix: W, (M, M) float32, source token by target token.
        own: (M,) float32, the share of the target's own column: 1 for tokens without counterpart.
    """

    source: PromptTokens
    target: PromptTokens
    matrix: NDArray[np.float32]
    own: NDArray[np.float32]


def align_ids(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """Align two id sequences globally: gap 0, match +1, mismatch -1 (Needleman & Wunsch, 1970).

    On ties a token is inserted in the target, else deleted from the source, else matched, as google/prompt-to-prompt
    does; so unequal tokens are never paired.

    Returns:
        Per target token the position of its source token, -1 where it has none.
    """
    n, m = len(source), len(target)
    score = [[0] * (m + 1) for _ in range(n + 1)]
    move = [["left"] * (m + 1), *(["up"] + [""] * m for _ in range(n))]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            left, up = score[i][j - 1], score[i - 1][j]
            diagonal = score[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            best = max(left, up, diagonal)
            score[i][j] = best
            move[i][j] = "left" if best == left else "up" if best == up else "both"
    found = [-1] * m
    i, j = n, m
    while i > 0 or j > 0:
        step = move[i][j]
        if step == "both":
            found[j - 1] = i - 1
        i -= step != "left"
        j -= step != "up"
    return found


def align_tokens(source: PromptTokens, target: PromptTokens, *, published: bool = False) -> Alignment:
    """Match equal tokens of two prompts in order; new tokens keep their own attention.

    Padding reads the source's padding. The published code lets it read the source column of the same index, which is
    a word's wherever the source is longer than the target; `published` does so too.
    """
    import numpy as np

    length = target.length
    mapper = [*align_ids(source.ids, target.ids), *range(len(target.ids), length)][:length]
    if not published:
        excess = max(0, len(source.ids) - len(target.ids))
        for j in range(len(target.ids), length):
            mapper[j] = j + excess if j + excess < length else -1
    matrix = np.zeros((length, length), np.float32)
    own = np.zeros(length, np.float32)
    for j, i in enumerate(mapper):
        if i < 0:
            own[j] = 1
        else:
            matrix[i, j] = 1
    return Alignment(source, target, matrix, own)


def align_words(source: PromptTokens, target: PromptTokens, *, published: bool = False) -> Alignment:
    """Match two prompts word for word; a replaced word's attention is spread over the words that replace it.

    Behind the last replaced word the published code goes on with equal INDICES, so that after a change of length every
    word reads its neighbour's attention; `published` does so too. Otherwise words go on reading themselves, and every
    row of the matrix sums to 1.

    Raises:
        InputError: The prompts have different numbers of words.
    """
    import numpy as np

    if len(source.words) != len(target.words):
        raise InputError(
            f"word for word needs as many words in both prompts, found {len(source.words)} in {source.text!r} and "
            f"{len(target.words)} in {target.text!r}",
            hint="align by tokens instead, or reword a prompt",
        )
    pairs = [
        (s, t)
        for a, b, s, t in zip(source.words, target.words, source.positions, target.positions, strict=True)
        if a != b and s and t
    ]
    length = target.length
    matrix = np.zeros((length, length), np.float32)
    i = j = at = 0
    while i < length and j < length:
        if at < len(pairs) and pairs[at][0][0] == i:
            s, t = pairs[at]
            if len(s) == len(t):
                matrix[s, t] = 1
            else:
                matrix[np.ix_(s, t)] = 1 / len(t)
            i, j, at = i + len(s), j + len(t), at + 1
            continue
        matrix[j if published and at == len(pairs) else i, j] = 1
        i, j = i + 1, j + 1
    if not published:
        matrix[i:, length - 1] = 1  # padding that the target has no room for
    return Alignment(source, target, matrix, np.zeros(length, np.float32))


def identity(source: PromptTokens, target: PromptTokens) -> Alignment:
    """Match tokens by their index, whatever they are."""
    import numpy as np

    length = target.length
    return Alignment(source, target, np.eye(length, dtype=np.float32), np.zeros(length, np.float32))


def differing_words(source: PromptTokens, target: PromptTokens) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Propose, for each prompt, the words whose place in the picture the change of words will change.

    Words that were replaced stand for themselves. Where words were only added or only removed, the word that follows
    them (at the end of the prompt: that goes before) joins in, because that is what they describe. Words that are the
    same tokens, such as those that differ in capitals to a model that sees none, are the same.
    """
    seen = {_tokens(source, k): word for k, word in reversed(list(enumerate(source.words)))}
    a = source.words
    b = tuple(seen.get(_tokens(target, k), word) for k, word in enumerate(target.words))
    found: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for kind, i0, i1, j0, j1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        spans = [list(a[i0:i1]), list(b[j0:j1])]
        if not any(_content(span) for span in spans):
            continue
        described = j0 > 0 and b[j0 - 1] in found[1]  # of "silver cat sculpture", "sculpture" joins the cat before it
        if not all(_content(span) for span in spans) and not described:
            after = next((w for w in _content(a[i1:]) if w in b[j1:]), None)
            before = next((w for w in reversed(_content(a[:i0])) if w in b[:j0]), None)
            anchor = after if after is not None else before
            spans = [[*span, anchor] for span in spans] if anchor is not None else spans
        for words, span in zip(found, spans, strict=True):
            words.update(dict.fromkeys(_content(span)))
    named = dict(zip(reversed(b), reversed(target.words), strict=True))
    return tuple(found[0]), tuple(named.get(word, word) for word in found[1])


def _tokens(prompt: PromptTokens, word: int) -> tuple[int, ...] | str:
    """What the model sees of a word; the word itself where it sees nothing."""
    return tuple(prompt.ids[p] for p in prompt.positions[word] if p < len(prompt.ids)) or prompt.words[word]


def _content(words: Sequence[str]) -> list[str]:
    return [w for w in words if w.lower().strip(",.") not in FUNCTION_WORDS]
