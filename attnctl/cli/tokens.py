"""``attnctl tokens``: the words and tokens of a prompt, and how two prompts line up."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from attnctl.errors import unknown
from attnctl.loading import load_tokenizer
from attnctl.request import check_text
from attnctl.terminal import facts, quoted, say, show, show_json, table
from attnctl.tokens import Alignment, PromptTokens, align_tokens, align_words, differing_words, read_prompt

WAYS = ("auto", "words", "tokens")


def tokens(arguments: Namespace) -> int:
    """Show one prompt, or two and their alignment.

    Raises:
        AttnctlError: There is no such model or way, or words cannot be lined up one for one.
    """
    if arguments.by not in WAYS:
        raise unknown("way to line up prompts", arguments.by, WAYS)
    for given in (arguments.source, arguments.target or ""):
        check_text(given)
    tokenizer = load_tokenizer(arguments.model, revision=arguments.revision)
    length = int(tokenizer.model_max_length)
    source = read_prompt(arguments.source, tokenizer, length, published=arguments.published)
    if arguments.target is None:
        _show_prompt(source, as_json=arguments.json)
        return 0
    target = read_prompt(arguments.target, tokenizer, length, published=arguments.published)
    way = arguments.by
    if way == "auto":
        way = "words" if len(source.words) == len(target.words) else "tokens"
    alignment = (align_words if way == "words" else align_tokens)(source, target, published=arguments.published)
    _show_alignment(alignment, way, as_json=arguments.json)
    return 0


def _show_prompt(prompt: PromptTokens, *, as_json: bool) -> None:
    rows = [
        {"position": i, "token": piece, "id": number, "word": prompt.word_at(i)}
        for i, (piece, number) in enumerate(zip(prompt.pieces, prompt.ids, strict=True))
    ]
    if as_json:
        show_json({"prompt": prompt.text, "words": list(prompt.words), "length": prompt.length, "tokens": rows})
        return
    columns = ("position", "token", "id", "word")
    show(table(columns, [[row[c] for c in columns] for row in rows], right=("position", "id")))
    show(facts([("tokens", _used(prompt))]))
    _warn_of_cut_words(prompt)


def _show_alignment(alignment: Alignment, way: str, *, as_json: bool) -> None:
    source, target = alignment.source, alignment.target
    rows = list(_rows(alignment))
    lost = [i for i in range(1, len(source.ids)) if not alignment.matrix[i].any()]
    before, after = differing_words(source, target)
    proposal = f"{' '.join(before)} > {' '.join(after)}" if before and after else None
    if as_json:
        found = {
            "source": source.text,
            "target": target.text,
            "by": way,
            "length": target.length,
            "tokens": rows,
            "dropped": [{"position": i, "token": source.pieces[i]} for i in lost],
            "blend_words": proposal,
        }
        show_json(found)
        return
    cells = [
        (row["position"], row["token"], row["word"], _taken(row), _words(row, source), _weights(row)) for row in rows
    ]
    columns = ("position", "token", "word", "takes from", "of the word", "weight")
    show(table(columns, cells, right=("position",)))
    show(
        facts(
            [
                ("lined up by", way),
                ("tokens", f"source {_used(source)}, target {_used(target)}"),
                ("read by none", ", ".join(f"{i} {source.pieces[i]}" for i in lost) or "no token of the source"),
                ("blend words", f"{proposal!r}" if proposal else "no words differ"),
            ]
        )
    )
    for prompt in (source, target):
        _warn_of_cut_words(prompt)


def _rows(alignment: Alignment) -> Iterator[dict[str, Any]]:
    """Yield one row per token of the target: where its attention column comes from, and with which weights."""
    source, target = alignment.source, alignment.target
    for j, piece in enumerate(target.pieces):
        column = alignment.matrix[:, j]
        taken = [
            {
                "position": int(i),
                "token": source.pieces[i] if i < len(source.pieces) else "(padding)",
                "weight": round(float(column[i]), 6),
            }
            for i in column.nonzero()[0]
        ]
        yield {
            "position": j,
            "token": piece,
            "word": target.word_at(j),
            "takes": taken,
            "own": float(alignment.own[j]),
        }


def _taken(row: dict[str, Any]) -> str:
    if not row["takes"]:
        return "itself: it is new" if row["own"] else "nothing"
    return ", ".join(f"{t['position']} {t['token']}" for t in row["takes"])


def _weights(row: dict[str, Any]) -> str:
    return ", ".join(f"{weight:.3g}" for weight in [t["weight"] for t in row["takes"]] or [row["own"]])


def _words(row: dict[str, Any], source: PromptTokens) -> str:
    return " ".join(filter(None, dict.fromkeys(source.word_at(t["position"]) for t in row["takes"])))


def _used(prompt: PromptTokens) -> str:
    return f"{len(prompt.ids)} of {prompt.length}"


def _warn_of_cut_words(prompt: PromptTokens) -> None:
    cut = [word for word, found in zip(prompt.words, prompt.positions, strict=True) if not found and word]
    if cut:
        say("warning", f"{quoted(prompt.text)} is too long for the model, which does not see {', '.join(cut)}")
