"""`attnctl tokens`: prompts cut up and lined up."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

CAT, TIGER = "a photo of a cat on grass", "a photo of a tiger on grass"  # the tiny model spells "tiger"


def test_two_prompts_as_a_table(call, model: str) -> None:
    done = call("tokens", CAT, TIGER, "--model", model)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"position +token +word +takes from +of the word +weight\n", done.out)
    rows = re.findall(r"^ +(\d+) +(\S+) +tiger +5 cat +cat +0.2$", done.out, re.MULTILINE)
    assert rows == [(str(5 + i), letter) for i, letter in enumerate("tiger")]
    assert re.search(r"^ +10 +on +on +6 on +on +1$", done.out, re.MULTILINE)
    assert re.search(r"^lined up by +words$", done.out, re.MULTILINE)
    assert re.search(r"^blend words +'cat > tiger'$", done.out, re.MULTILINE)


def test_new_and_dropped_words(call, model: str) -> None:
    more = call("tokens", "a cat", "a big red cat", "--model", model)
    assert re.search(r"red +red +itself: it is new +1\n", more.out)
    assert "'cat > big red cat'" in more.out
    data = call("tokens", "a big cat", "a cat", "--model", model, "--json").data
    assert data["by"] == "tokens"
    assert data["dropped"] == [{"position": 2, "token": "big"}]
    assert data["blend_words"] == "big cat > cat"
    assert [t["takes"][0]["position"] for t in data["tokens"]] == [0, 1, 3, 4]


def test_the_published_quirk_can_be_seen(call, model: str) -> None:
    fixed = call("tokens", TIGER, CAT, "--model", model, "--json").data["tokens"]
    published = call("tokens", TIGER, CAT, "--model", model, "--published", "--json").data["tokens"]
    assert [t["token"] for t in fixed[6]["takes"]] == ["on"]
    assert [t["word"] for t in published[5:8]] == ["cat", "on", "grass"]
    assert published[6]["takes"] == [{"position": 6, "token": "i", "weight": 1.0}]


def test_one_prompt(call, model: str) -> None:
    done = call("tokens", "a tiger", "--model", model)
    assert len(re.findall(r" tiger$", done.out, re.MULTILINE)) == 5
    assert "8 of 77" in done.out
    data = call("tokens", "a cat", "--model", model, "--json").data
    assert data["words"] == ["a", "cat"]
    assert [t["word"] for t in data["tokens"]] == ["", "a", "cat", ""]


def test_a_prompt_that_is_too_long_says_what_is_lost(call, model: str) -> None:
    done = call("tokens", "cat " * 75 + "dog", "--model", model)
    assert done.code == 0
    assert "does not see dog" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a cat", "a big cat", "--by", "words"), "as many words in both prompts, found 2 in 'a cat' and 3"),
        (("a cat", "a dog", "--by", "word"), "unknown way to line up prompts 'word': known are words, "),
        ((), "required: PROMPT"),
        (("a", "b", "c"), "does not expect"),
    ],
)
def test_bad_input(call, model: str, words: tuple[str, ...], message: str) -> None:
    assert message in call("tokens", *words, "--model", model).error


def test_models_without_a_tokenizer(call, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no tokenizer/" in call("tokens", "a cat", "--model", "empty").error
    (tmp_path / "broken" / "tokenizer").mkdir(parents=True)
    (tmp_path / "broken" / "tokenizer" / "vocab.json").write_text("{")
    assert "the tokenizer of broken cannot be loaded" in call("tokens", "a cat", "--model", "broken").error


def test_no_torch_is_needed(model: str) -> None:
    code = "import sys; from attnctl.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "tokens", "a cat", "--model", model], check=False)
    assert done.returncode == 0
