"""Build the tokenizer of ``micro``: CLIP's byte-level BPE with a vocabulary for the drawn world.

Every word of the caption grammar is one token, except for a few that are split in two so that
code which aligns tokens meets words of uneven length. Any other text still tokenizes, down to single bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from attnctl_evaluation.world import vocabulary

SPLIT: frozenset[str] = frozenset({"mushroom", "chocolate", "turquoise", "automobile"})
"""Words of two tokens: their last merge is left out."""

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """Give the 256 printable stand-ins for bytes that GPT-2 introduced, in the order of the bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters, extra = {b: chr(b) for b in printable}, 0
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + extra)
            extra += 1
    return [letters[b] for b in range(256)]


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Learn byte pair merges until each word is one token, or two if it is in `SPLIT`.

    Args:
        words: Lower-case words.

    Returns:
        Pairs in order of priority.
    """
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    whole = {word + "</w>" for word in SPLIT}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts in pieces.values():
            pairs.update(pair for pair in pairwise(parts) if "".join(pair) not in whole)
        if not pairs:
            return merges
        best = max(pairs, key=lambda p: (pairs[p], -len(p[0] + p[1]), p))
        merges.append(best)
        for word, parts in pieces.items():
            pieces[word] = _merge(parts, best)


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            merged.append(parts[i] + parts[i + 1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


def build(folder: Path) -> None:
    """Write the tokenizer to `folder` and the words it was made for to ``words.json`` beside that folder."""
    from transformers import CLIPTokenizer

    words = vocabulary()
    merges = learn_merges(words)
    letters = byte_letters()
    tokens = list(dict.fromkeys([*letters, *(c + "</w>" for c in letters), *("".join(p) for p in merges)]))
    vocab = {token: i for i, token in enumerate([*tokens, START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)
    # The two plain files beside tokenizer.json are what older transformers read.
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder.parent / "words.json").write_text(json.dumps(list(words), indent=0) + "\n", encoding="utf-8")
    for word in words:
        got = tokenizer.tokenize(word)
        if len(got) != (2 if word in SPLIT else 1):
            raise RuntimeError(f"{word!r} becomes {got}")
