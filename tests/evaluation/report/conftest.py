"""Run folders without a model, and a browser to open their reports in."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from attnctl_evaluation.report import writer

ROOT = Path(__file__).resolve().parents[3]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
HOSTILE = (
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">',
    "\"'><svg onload=window.hacked=1> {{ 7 * 7 }} \u2028 \u202e\u05e9\u05dc\u05d5\u05dd " + "endless" * 60,
)
IDS = {1: 'it"s <b>&amp;</b> #100%+ /\u202e\u4e2d', 2: "javascript:window.hacked=1"}


@pytest.fixture(scope="session")
def synthetic() -> Any:
    """The module that makes run folders."""
    spec = importlib.util.spec_from_file_location("synthetic_run", ROOT / "tools" / "synthetic_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_run(synthetic: Any) -> Callable[..., Path]:
    """Makes a run folder; see `tools/synthetic_run.py`."""
    found: Callable[..., Path] = synthetic.make_run
    return found


def chromium() -> str | None:
    """The browser of this machine, if there is one."""
    named = os.environ.get("ATTNCTL_CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    return next((place for name in names if (place := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    place = chromium()
    if place is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium, or name one in ATTNCTL_CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, of the test dependencies, is not there")
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=place, args=FLAGS)
        yield found
        found.close()


@dataclass
class Opened:
    """A page, and what it did that it should not."""

    page: Any
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def reports(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with pictures inside, and one with pictures beside it."""
    root = tmp_path_factory.mktemp("reports")
    run = make_run(root / "run", cases=45, size=48, prompts={0: HOSTILE}, ids=IDS)
    few = ("clip-score", "psnr.outside")
    seeds = make_run(root / "seeds", cases=2, size=160, fail_every=0, seeds=(0, 1), columns=few)
    found = {}
    for name, folder, pictures in (("inside", run, "embed"), ("beside", seeds, "folder")):
        found[name] = root / f"{name}.html"
        text, problems = writer.build([folder], out=found[name], pictures=pictures, thumbnail=96)
        assert problems == []
        writer.write(text, found[name])
    return found


@pytest.fixture(scope="session")
def contexts(browser: Any) -> Iterator[dict[tuple[int, str], Any]]:
    """Windows by width and scheme: making one takes longer than most tests."""
    made: dict[tuple[int, str], Any] = {}
    yield made
    for context in made.values():
        context.close()


@pytest.fixture
def open_report(
    browser: Any, contexts: dict[tuple[int, str], Any], reports: dict[str, Path]
) -> Iterator[Callable[..., Opened]]:
    """Opens a report; afterwards nothing may have been written to the console, and no request have left."""
    everything = []

    def open_it(name: str = "inside", fragment: str = "", width: int = 1280, scheme: str = "light") -> Opened:
        key = (width, scheme)
        if key not in contexts:
            contexts[key] = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
            )
        opened = Opened(contexts[key].new_page())
        everything.append(opened)
        page = opened.page
        page.set_default_timeout(20_000)
        page.on("console", lambda m: opened.faults.append(m.text))
        page.on("pageerror", lambda e: opened.faults.append(str(e)))
        page.on("request", lambda r: opened.requests.append(r.url))
        page.goto(reports[name].as_uri() + fragment)
        return opened

    yield open_it
    folder = next(iter(reports.values())).parent.as_uri()
    for opened in everything:
        hacked = opened.page.evaluate("window.hacked")
        opened.page.close()
        assert opened.faults == []
        assert [r for r in opened.requests if not r.startswith((folder, "data:"))] == []
        assert hacked is None


@pytest.fixture(scope="session")
def odd_ids() -> dict[int, str]:
    """Ids of two cases of the first report, which are hostile."""
    return IDS


@pytest.fixture(scope="session")
def until() -> Callable[[Any, str], None]:
    """Waits until an expression is true in a page; playwright's way evaluates text there, which is forbidden."""

    def wait(page: Any, expression: str) -> None:
        for _ in range(400):
            if page.evaluate(expression):
                return
            page.wait_for_timeout(50)
        raise AssertionError(f"never true: {expression}")

    return wait
