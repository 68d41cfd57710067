"""The page as text: nothing of a stranger's is markup, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attnctl_evaluation.report import writer
from attnctl_evaluation.rows import RECORDS_NAME, MethodEntry, Results

Make = Callable[..., Path]
EVIL = "</script></style></title><script>bad()</script><img src=x onerror=bad()>\"'`{{7*7}}\u2028\u202e"
FEW = ("clip-score", "psnr.outside")


class Page(HTMLParser):
    """Elements with their attributes, and the texts of some."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


@pytest.fixture(scope="module")
def evil(make_run: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every text is hostile."""
    folder = make_run(tmp_path_factory.mktemp("evil") / "run", cases=9, methods=("none", "fpe"), columns=FEW, size=16)
    header = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    kept = {"id", "better", "label", "method", "fingerprint", "low", "high", "scale"}

    def worse(data: object, key: str = "") -> object:
        if isinstance(data, dict):
            return {k if key in ("", "cards", "dataset") else f"{k}{EVIL}": worse(v, k) for k, v in data.items()}
        if isinstance(data, list):
            return [worse(v, key) for v in data]
        return f"{data}{EVIL}" if isinstance(data, str) and key not in kept | {"columns", "baseline"} else data

    changed = {
        key: worse(header[key], key) for key in ("title", "settings", "model", "environment", "device", "config")
    }
    header["absent"] = {f"lpips{EVIL}": EVIL}
    header["dataset"] |= {"spec": EVIL, "bibtex": f"@misc{{x, {EVIL}\n}}", "paper": "javascript:bad()"}
    labels = {m["label"]: f"{m['label']}{EVIL}" for m in header["methods"]}
    for entry in header["methods"]:
        entry |= {k: f"{entry[k]}{EVIL}" for k in ("label", "method", "summary", "paper", "bibtex", "inversion")}
        entry["preset"], entry["settings"] = EVIL, {f"set{EVIL}": EVIL}
    header |= changed | {"baseline": labels["none"]}
    header["model"] = {"id": EVIL, "sha256": EVIL, "revision": EVIL, "commit": EVIL}
    for card in header["cards"].values():
        card.update(dict.fromkeys(("summary", "source", "unit", "preprocessing", "model", "weights_sha256"), EVIL))
        card["settings"], card["packages"] = {EVIL: EVIL}, {EVIL: EVIL}
    (folder / "run.json").write_text(json.dumps(header), encoding="utf-8")
    lines = []
    for line in (folder / RECORDS_NAME).read_text(encoding="utf-8").split("\n")[:-1]:
        record = json.loads(line)
        record |= {"case": record["case"] + EVIL, "method": labels[record["method"]], "prompt": EVIL}
        record |= {"source_prompt": f"x {EVIL}", "warnings": [EVIL], "rows": {EVIL: 3}}
        record["scores"] = {k: v | {"reason": EVIL} for k, v in record["scores"].items()}
        if record["failure"]:
            record["failure"] = {"kind": EVIL, "message": EVIL, "hint": EVIL}
            record["pictures"]["source"] = f"../{EVIL}.png"
        lines.append(json.dumps(record) + "\n")
    (folder / RECORDS_NAME).write_text("".join(lines), encoding="utf-8")
    return folder


def test_hostile_texts_make_no_element_and_no_handler(evil: Path) -> None:
    text, problems = writer.build([evil], title=EVIL)
    assert problems
    page = Page(text)
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    assert [s.get("type") for s in scripts if s.get("type") != "text/plain"] == ["application/json", None]
    assert not [attrs for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert {attrs.get("src") for tag, attrs in page.elements if tag == "img"} == {None}
    assert "bad()" not in page.texts["script"][-1]
    assert "bad()" not in page.texts["style"][0]
    assert "49" not in re.findall(r"<title>(.*?)</title>", text, re.DOTALL)[0]
    links = [attrs["href"] or "" for tag, attrs in page.elements if tag == "a"]
    assert links
    assert all(link.startswith(("#", "https://arxiv.org/abs/")) for link in links)


def test_the_policy_allows_the_own_style_and_script_alone(evil: Path) -> None:
    text, _ = writer.build([evil])
    page = Page(text)
    (policy,) = [
        a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    for tag in ("style", "script"):
        body = page.texts[tag][-1].encode("utf-8")
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [a for _, a in page.elements if "style" in a]
    assert not [
        t for t, _ in page.elements if t in ("link", "iframe", "object", "embed", "base", "form") and t != "form"
    ]


def test_the_data_in_the_page_are_the_records(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", cases=8, columns=FEW, size=16)
    text, _ = writer.build([folder], pictures="none")
    data = json.loads(Page(text).texts["script"][0])
    results = Results.read(folder)
    assert data["methods"] == [m.label for m in results.header.methods]
    assert len(data["items"]) == 8
    for record in results.records:
        item = next(i for i in data["items"] if i["id"] == record.case)
        cell = item["cells"][data["methods"].index(record.method)]
        assert cell["s"] == record.status
        if record.status == "ok":
            assert cell["v"] == [pytest.approx(record.scores[c].value, rel=1e-5) for c in FEW]
        else:
            assert record.failure is not None
            assert data["failures"][cell["f"]][1] == record.failure.message
    assert data["media"] == []


def test_equal_records_give_equal_pages(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", cases=8, columns=FEW, size=16)
    assert writer.build([folder])[0] == writer.build([folder])[0]


def test_everything_an_issue_of_fairness_is_said(make_run: Make, tmp_path: Path) -> None:
    text, _ = writer.build([make_run(tmp_path / "run", cases=10, size=16, methods=("none", "fpe", "masactrl"))])
    for said in (
        "fpe and masactrl read the source prompt, the others do not.",
        "masactrl reads the mask, the others do not.",
        "Denoiser evaluations differ: from 150 rows a picture (none) to 190 (masactrl).",
        "4.2 GiB were asked for, 3.9 GiB are free",
        "AlexNet weights are not on this machine",
        "@article{masactrl,",
        "ab" * 32,
        "psnr.outside@",
        "invented-model",
    ):
        assert said in text, said


def test_runs_without_numbers_methods_or_rows_have_a_report_too(make_run: Make, tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", cases=3, columns=(), size=16, fail_every=1)
    empty = make_run(tmp_path / "empty", cases=3, columns=FEW, size=16, unfinished=12)
    alone = [MethodEntry(label="none", folder="f", method="")]
    outside = make_run(
        tmp_path / "outside", cases=3, columns=FEW, size=16, methods=("none",),
        header={"methods": alone, "model": {}, "device": {}, "environment": {}, "settings": {}, "cards": {},
                "config": {}},
    )  # fmt: skip
    for folder, said in (
        (bare, "No column has a direction"),
        (empty, "12 rows are not in the records"),
        (outside, "pictures made by other code"),
    ):
        text, _ = writer.build([folder])
        assert said in text
        for form in ("md", "csv", "latex"):
            assert writer.build([folder], form)[0]
