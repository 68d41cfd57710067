"""One case of a report in Chromium: slider, difference, permalinks, keys."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

Opened = Any


def test_the_prompt_difference_is_marked(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    row = page.locator("#list .case").nth(3)
    assert row.locator("del").all_inner_texts() == ["teal"]
    assert row.locator("ins").all_inner_texts() == ["purple"]


def test_the_slider_moves_by_pointer_and_by_keys(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    page.locator("#list .open").nth(4).click()
    stage, divider = page.locator("#stage"), page.locator("#divider")
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 60, steps=3)
    page.mouse.up()
    assert divider.input_value() == "25"
    assert divider.get_attribute("aria-valuetext") == "25 % before, 75 % after"
    divider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert divider.input_value() == "27"
    assert page.evaluate("getComputedStyle(document.getElementById('pane-right')).clipPath").endswith("27%)")
    page.keyboard.press("End")
    assert divider.input_value() == "100"


def test_the_slider_shows_source_on_one_side_and_edit_on_the_other(
    open_report: Callable[..., Opened], until: Callable[..., None]
) -> None:
    page = open_report(fragment="#case=case-0003&before=source&after=pnp&view=slider").page
    until(page, "document.getElementById('img-right').complete")
    source, edit = (_pixels(page, f"#img-{side}") for side in ("left", "right"))
    page.evaluate("document.querySelectorAll('.pane figcaption, .rule').forEach((e) => e.remove())")
    shot = np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB"), dtype=int)
    scale = shot.shape[1] / source.shape[1]
    points = [(x, y) for x in range(4, 48, 8) for y in range(4, 48, 8)]
    for x, y in points:
        expected = (source if x < 24 else edit)[y, x]
        found = shot[int((y + 0.5) * scale), int((x + 0.5) * scale)]
        assert np.abs(found - expected).max() <= 2, (x, y)


def _pixels(page: Any, selector: str) -> np.ndarray:
    source = page.locator(selector).get_attribute("src")
    data = base64.b64decode(source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


@pytest.mark.parametrize("name", ["inside", "beside"])
def test_the_difference_map_shows_the_difference(
    open_report: Callable[..., Opened], until: Callable[..., None], name: str
) -> None:
    page = open_report(name, fragment="#case=case-0000&before=source&after=truth&view=difference").page
    until(page, "[...document.querySelectorAll('.pane img:first-child')].every((i) => i.complete && i.naturalWidth)")
    page.select_option("#gain", "1")
    assert page.locator("#legend-top").inner_text() == "255"
    shot = np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB"), dtype=int)
    side = shot.shape[0]
    # Nothing differs outside the shape: the ramp's first colour. The shape is red before and green after.
    assert np.abs(shot[int(0.95 * side), int(0.95 * side)] - [0, 0, 5]).max() <= 2
    inside = shot[int(0.4 * side), int(0.35 * side)]
    before, after = np.array([217, 54, 54]), np.array([54, 217, 54])
    share = np.abs(before - after).mean() / 255
    stops = np.array(
        [[0, 0, 5], [41, 10, 74], [120, 28, 110], [186, 54, 84], [237, 105, 38], [252, 173, 33], [252, 255, 163]]
    )
    expected = [np.interp(share * 6, range(7), stops[:, c]) for c in range(3)]
    assert np.abs(inside - expected).max() <= 6


def test_a_permalink_opens_its_case_and_says_what_is_shown(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    page.locator("#list .open").nth(4).click()
    page.select_option("#left", label="none")
    page.select_option("#right", label="pnp")
    page.locator("#views input[value=beside]").check()
    address = page.evaluate("location.hash")
    assert address == "#case=case-0004&before=none&after=pnp&view=beside"
    again = open_report(fragment=address).page
    assert again.locator("#viewer-title").inner_text() == "case-0004"
    assert again.locator("#left option:checked").inner_text() == "none"
    assert again.locator("#stage").get_attribute("data-view") == "beside"
    again.keyboard.press("Escape")
    assert not again.locator("#viewer").is_visible()
    assert again.evaluate("location.hash") == "#cases"


def test_permalinks_of_hostile_names_lead_back(open_report: Callable[..., Opened], odd_ids: dict[int, str]) -> None:
    page = open_report().page
    for place in (1, 2):
        page.locator("#list .open").nth(place).click()
        address = page.evaluate("location.hash")
        again = open_report(fragment=address).page
        assert again.locator("#viewer-title").inner_text() == odd_ids[place]
        page.keyboard.press("Escape")
    lost = open_report(fragment="#case=<img src=x onerror=window.hacked=1>").page
    assert "a case that is not here" in lost.locator("#found").inner_text()


def test_back_closes_the_case(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    page.locator("#list .open").first.click()
    page.go_back()
    page.locator("#viewer").wait_for(state="hidden")


def test_failures_lead_to_their_cases(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    assert page.locator("#failures .failure").count() == 2
    page.locator("#failures .failure summary").first.click()
    page.locator("#failures .failure a").first.click()
    assert page.locator("#remarks .remark.bad").count() >= 1
    assert page.locator("#nothing").is_visible()
    assert page.locator("#stage").get_attribute("data-view") == "single"
    assert page.locator(".pane:visible").count() == 1
    assert not page.locator("#divider").is_visible()


def test_everything_goes_by_keys(open_report: Callable[..., Opened], odd_ids: dict[int, str]) -> None:
    page = open_report().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    assert page.locator("#viewer-title").inner_text() == odd_ids[1]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-title").inner_text() == "case-0003"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer-title").inner_text() == odd_ids[2]
    page.keyboard.press("2")
    assert page.locator("#right option:checked").inner_text() == "fpe"
    page.keyboard.press("x")
    assert page.locator("#left option:checked").inner_text() == "fpe"
    for key, view in (("d", "difference"), ("b", "beside"), ("s", "slider")):
        page.keyboard.press(key)
        assert page.locator("#stage").get_attribute("data-view") == view
    page.keyboard.press("m")
    assert page.locator(".pane .mask:visible").count() == 2
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == odd_ids[2]
    page.keyboard.press("/")
    page.keyboard.type("jd?")
    assert page.locator("#search").input_value() == "jd?"
    assert not page.locator("dialog:visible").count()


def test_letters_can_be_switched_off(open_report: Callable[..., Opened]) -> None:
    page = open_report().page
    page.click("#help-open")
    page.uncheck("#keys-on")
    page.click("#help button")
    page.keyboard.press("?")
    assert not page.locator("#help").is_visible()
