"""Time a report of 700 cases x 8 methods: how long it takes to make, how large it is, how fast it opens.

`python tools/bench_report.py FOLDER` makes the run, the report and the measurements in FOLDER (about 2 GB).
Opening needs Chromium and playwright, see tests/evaluation/report/conftest.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from synthetic_run import NAMES, make_run

from attnctl_evaluation.report import writer

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

WATCH = """
addEventListener("DOMContentLoaded", () => { window.listed = performance.now(); });
"""


def build(run: Path, page: Path, thumbnail: int) -> dict[str, Any]:
    """Make the report; seconds of this process, and sizes."""
    shutil.rmtree(page.with_name(f"{page.stem}_files"), ignore_errors=True)
    wall, busy = time.perf_counter(), time.process_time()
    text, _ = writer.build([run], out=page, thumbnail=thumbnail)
    writer.write(text, page)
    files = [p.stat().st_size for p in page.with_name(f"{page.stem}_files").glob("*")]
    return {
        "build seconds, wall": round(time.perf_counter() - wall, 1),
        "build seconds, processor": round(time.process_time() - busy, 1),
        "page MB": round(page.stat().st_size / 1e6, 2),
        "files beside it": len(files),
        "MB beside it": round(sum(files) / 1e6, 1),
    }


def open_it(page: Path, times: int) -> dict[str, Any]:
    """Open the report in Chromium, cold each time; milliseconds since the navigation started, medians."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    with sync_playwright() as driver:
        for _ in range(times):
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            tab = browser.new_page(viewport={"width": 1280, "height": 800})
            tab.add_init_script(WATCH)
            tab.goto(page.as_uri())
            tab.wait_for_timeout(500)
            measured = tab.evaluate(
                "({'first contentful paint ms': performance.getEntriesByName('first-contentful-paint')[0].startTime,"
                " 'list filled, ready to use ms': window.listed,"
                " 'elements in the page': document.querySelectorAll('*').length,"
                " 'script heap MB': performance.memory.usedJSHeapSize / 1e6})"
            )
            for name, script in (
                ("sort by disagreement ms", "const s = document.getElementById('sort'); s.value = 'disagreement';"),
                ("filter by edit type ms", "const s = document.getElementById('type'); s.value = '2';"),
            ):
                code = f"(() => {{ {script} const t = performance.now(); s.dispatchEvent(new Event('change'));"
                measured[name] = tab.evaluate(f"{code} return performance.now() - t; }})()")
            code = "(() => { const t = performance.now(); document.querySelector('#list .open').click();"
            measured["open a case ms"] = tab.evaluate(f"{code} return performance.now() - t; }})()")
            for name, value in measured.items():
                found.setdefault(name, []).append(value)
            browser.close()
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=700)
    parser.add_argument("--methods", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--thumbnail", type=int, default=128, help="pixels; at half of --size every picture gets one")
    parser.add_argument("--times", type=int, default=5, help="how often it is opened")
    given = parser.parse_args()
    run, page = given.folder / "run", given.folder / "report.html"
    if not run.exists():
        given.folder.mkdir(parents=True, exist_ok=True)
        make_run(run, cases=given.cases, methods=NAMES[: given.methods], size=given.size, fail_every=97)
    found = {"cases": given.cases, "methods": given.methods, "picture pixels": given.size}
    found |= {"processor": platform.processor() or platform.machine()}
    found |= build(run, page, given.thumbnail) | open_it(page, given.times)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
