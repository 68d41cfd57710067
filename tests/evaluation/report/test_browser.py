"""The report as a person has it: opened from disk in Chromium, by pointer, by keys, on a phone, in the dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Opened = Any


def ids(page: Any) -> list[str]:
    found: list[str] = page.locator("#list .open").all_inner_texts()
    return found


def values(page: Any, method: str) -> list[float]:
    texts = page.locator(f"#list .shot-name:has(.name[title='{method}']) .value").all_inner_texts()
    return [float(t.replace("\u2212", "-")) for t in texts if t]


def test_the_first_screen_says_who_wins_and_nothing_but_the_file_is_asked_for(
    open_report: Callable[..., Opened],
) -> None:
    opened = open_report()
    page = opened.page
    assert page.locator("#overview").bounding_box()["y"] < 200
    assert page.locator(".leaders tbody tr:not(.group)").count() == 7
    assert page.locator(".plot:visible svg title").count() == 1
    assert page.locator(".plot:visible").bounding_box()["y"] < 400
    assert [r for r in opened.requests if not r.startswith("data:")] == [page.url]


def test_the_figure_shows_the_axes_that_are_asked_for(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    page.select_option("#axis-x", "psnr.outside")
    assert page.locator(".plot:visible").count() == 1
    assert "psnr.outside (higher is better" in page.locator(".plot:visible").inner_text()


def test_means_are_sorted_by_their_heads(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    head = page.locator("#means-table thead th", has_text="lpips.outside")
    column = 5

    def means() -> list[float]:
        cells = page.locator(f"#means-table tbody tr td:nth-child({column + 1})")
        return [float(c.get_attribute("data-value")) for c in cells.all()]

    before = means()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert means() == sorted(before)
    head.locator("button").press("Enter")
    assert means() == sorted(before, reverse=True)
    head.locator("button").click()
    assert means() == before


def test_means_show_wins_instead_of_intervals(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    assert page.locator("#means-table .under.interval:visible").count()
    page.locator("#means-show input[value=win]").check()
    assert page.locator("#means-table .under.win:visible").first.inner_text()
    assert not page.locator("#means-table .under.interval:visible").count()


def test_one_table_of_edit_types_at_a_time(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    assert page.locator(".heat-part:visible").count() == 1
    page.select_option("#heat-column", label="psnr.outside")
    assert page.locator(".heat-part:visible caption").inner_text().startswith("psnr.outside")


def test_cases_are_sorted_filtered_searched_and_paged(
    open_report: Callable[..., Opened], until: Callable[..., None]
) -> None:
    page = open_report().page
    assert len(ids(page)) == 20
    page.click("#page-on")
    assert len(ids(page)) == 20
    page.select_option("#page", label="3")
    assert len(ids(page)) == 5
    page.select_option("#metric", label="psnr.outside")
    page.select_option("#sort", label="fpe")
    found = values(page, "fpe")
    assert found == sorted(found, reverse=True)
    page.select_option("#order", "up")
    found = values(page, "fpe")
    assert found == sorted(found)
    page.select_option("#sort", "disagreement")
    page.select_option("#order", "down")
    spread = [max(v) - min(v) for v in _rows(page)]
    assert spread == sorted(spread, reverse=True)
    page.select_option("#type", label="change colour")
    assert set(page.locator("#list .case-head .unit").all_inner_texts()) <= {
        "change colour \u00b7 generated",
        "change colour \u00b7 real picture",
    }
    page.select_option("#type", "")
    page.select_option("#show", label="p2p failed")
    assert page.locator("#list .case").count() == 7
    assert page.locator("#list .shot[aria-label^='p2p: '] .why").count() == 7
    page.select_option("#show", "")
    page.fill("#search", "teal CIRCLE")
    until(page, "document.querySelectorAll('#list .case').length < 20")
    assert all("teal" in t and "circle" in t for t in page.locator("#list .prompts").all_inner_texts())


def _rows(page: Any) -> list[list[float]]:
    rows = []
    for row in page.locator("#list .case").all():
        texts = row.locator(".value").all_inner_texts()
        rows.append([float(t.replace("\u2212", "-")) for t in texts if t])
    return rows


@pytest.mark.parametrize("name", ["inside", "beside"])
def test_a_phone_needs_no_sideways_scrolling(open_report: Callable[..., Opened], name: str) -> None:
    page = open_report(name, width=375).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.locator("#list .open").first.click()
    assert page.evaluate("document.getElementById('viewer').scrollWidth") <= 375
    assert page.locator("#stage").bounding_box()["width"] <= 375


def test_dark_and_light_follow_the_system_and_the_switch(open_report: Callable[..., Opened]) -> None:
    page = open_report(scheme="dark").page
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    assert dark == "rgb(21, 23, 26)"
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Theme: light"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.reload()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.click("#theme")
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Theme: system"
    assert page.evaluate(ground) == dark


def test_pictures_beside_the_file_are_loaded_when_they_are_seen(
    open_report: Callable[..., Opened], until: Callable[..., None]
) -> None:
    opened = open_report("beside")
    page = opened.page
    assert page.locator("#list img").first.get_attribute("loading") == "lazy"
    page.locator("#cases").scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('#list img')].some((i) => i.naturalWidth)")
    thumbnails = page.evaluate("[...document.querySelectorAll('#list img')].map((i) => i.getAttribute('src'))")
    assert all(t.startswith("beside_files/") and t.endswith("-t.webp") for t in thumbnails)
    page.locator("#list .open").first.click()
    assert page.locator("#viewer-title").inner_text() == "case-0000, seed 0"
    assert page.locator("#img-right").get_attribute("src").endswith(".png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(open_report: Callable[..., Opened], scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not there"
    ).Axe()
    opened = open_report(scheme=scheme)
    page = opened.page
    # axe is put into the page by the debugger, which no content security policy binds.
    for state in ("page", "viewer"):
        if state == "viewer":
            page.locator("#list .open").nth(4).click()
        response = axe.run(page, options={"resultTypes": ["violations"]}).response
        assert len(response["passes"]) > 25
        found = response["violations"]
        said = [(v["id"], [n["target"] for n in v["nodes"]][:3], v["nodes"][0]["failureSummary"]) for v in found]
        assert said == []
