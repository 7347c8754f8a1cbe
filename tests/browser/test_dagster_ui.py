"""The Dagster UI as a user's desk: what is clicked, and what is then to be seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.desk import PATIENCE, Desk, Ui, picture
from xdub_platform.automation.origin import BY_HAND
from xdub_platform.chain import STARTED_BY_TAG

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SHARD = "shard-00001"
"""The one that the later footage becomes."""
VARIANT = "generated"
ENOUGH = {"min_accepted": 0.5}
TOO_FEW = "at least 50% of the pairs accepted: found 0%"
TAKEN_IN = ("raw_corpus", "clips", "companion_pairs")
RETRAINED = ("editor", "lip_expert", "texture_expert", "dubber", "benchmark_scores")
LONG = PATIENCE * 1000
"""Milliseconds that a run may take."""


def materialise(page: Page, ui: Ui, asset: str, *partition: str) -> str:
    """Clicks an asset's button, names the partition in the dialog, follows the run; tells how it ended."""
    page.goto(f"{ui.url}/assets/{asset}")
    page.get_by_role("button", name="Materialize").first.click()
    if partition:
        dialog = page.get_by_role("dialog").filter(has_text="Launch runs to materialize")
        for part in partition:
            dialog.get_by_text("Select a partition or create one").first.click()
            page.get_by_role("menuitem").filter(has_text=part).click()
            dialog.get_by_text("Launch runs to materialize").click()  # closes the menu
        dialog.get_by_role("button", name="Launch 1 run").click()
    # The message is there for seconds only: its address is read at once and not clicked.
    run = page.get_by_role("link", name="View", exact=True).get_attribute("href")
    page.goto(f"{ui.url}{run}")
    return outcome(page)


def outcome(page: Page) -> str:
    """Waits for the end of the page's only run; tells how it ended."""
    status = page.get_by_text(re.compile("^(Success|Failure)$")).first
    expect(status).to_be_visible(timeout=LONG)
    return status.inner_text()


def show(page: Page, ui: Ui, asset: str, partition: str, name: str) -> None:
    """Opens the picture `name` in a partition's metadata; it must be one that the browser can draw."""
    page.goto(f"{ui.url}/assets/{asset}?view=partitions&partition={partition}")
    page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).get_by_text("[Show Markdown]").click()
    image = page.get_by_role("dialog").locator("img[src^='data:image/png']")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.complete && image.naturalWidth > 50")


def test_clips_and_pairs_of_a_shard_by_clicking(page: Page, desk: Desk, tmp_path: Path) -> None:
    desk.drop()
    desk.run("key:raw_corpus")
    with desk.ui() as ui:
        assert materialise(page, ui, "clips", SHARD) == "Success"
        picture(page, tmp_path, "clips-run")
        show(page, ui, "clips", SHARD, "faces")
        picture(page, tmp_path, "clips-pictures")
        assert materialise(page, ui, "companion_pairs", SHARD, VARIANT) == "Success"
        picture(page, tmp_path, "pairs-run")
        show(page, ui, "companion_pairs", f"{SHARD}|{VARIANT}", "pairs_picture")
        picture(page, tmp_path, "pairs-pictures")
        last = [(run.assets, run.status, run.tags[STARTED_BY_TAG]) for run in ui.runs()[:2]]
    assert last == [(("companion_pairs",), "SUCCESS", BY_HAND), (("clips",), "SUCCESS", BY_HAND)]


def test_the_editor_refuses_after_a_failed_gate(page: Page, desk: Desk, tmp_path: Path) -> None:
    filters = {"mouth_distance": 1000.0}
    strict = {"pairs": {**desk.settings["pairs"], "filters": filters}, "gates": {**desk.settings["gates"], **ENOUGH}}
    desk.run("key:companion_pairs", **strict)
    with desk.ui(**strict) as ui:
        page.goto(f"{ui.url}/assets/companion_pairs?view=checks")
        expect(page.get_by_text(TOO_FEW).first).to_be_visible()
        picture(page, tmp_path, "gate-failed")
        assert materialise(page, ui, "editor") == "Failure"
        refused = f"no shard of companion_pairs is accepted (companion_pairs/shard-00000/{VARIANT}: {TOO_FEW})"
        expect(page.get_by_text(refused).first).to_be_visible()
        picture(page, tmp_path, "editor-refuses")


def test_new_footage_becomes_a_model_without_another_click(page: Page, desk: Desk, tmp_path: Path) -> None:
    automation = {"rest_seconds": 5.0, "look_seconds": 2, "retrain_after_hours": 1e-6}
    with desk.ui(automation=automation) as ui:
        page.goto(f"{ui.url}/automation")
        switch = page.get_by_role("link", name="new_footage").locator("xpath=following-sibling::*")
        switch.locator("label").click()
        expect(switch.locator("input")).to_be_checked()
        expect(switch.locator("input")).to_be_enabled()  # the server has taken it
        picture(page, tmp_path, "sensor-on")
        desk.drop()
        for job in ("take_in_footage", "retrain"):
            page.goto(f"{ui.url}/locations/xdub_platform.definitions/jobs/{job}/runs")
            assert outcome(page) == "Success"
            picture(page, tmp_path, job)
        page.goto(f"{ui.url}/assets/companion_pairs?view=checks")
        expect(page.get_by_text("Passed", exact=True).first).to_be_visible()
        picture(page, tmp_path, "gate-passed")
        show(page, ui, "companion_pairs", f"{SHARD}|{VARIANT}", "pairs_picture")
        arrived = [run for run in ui.runs() if run.tags[STARTED_BY_TAG] != "xdub run"]
    assert {(run.status, run.tags[STARTED_BY_TAG]) for run in arrived} == {("SUCCESS", "sensor new_footage")}
    assert sorted(asset for run in arrived for asset in run.assets) == sorted([*TAKEN_IN, *RETRAINED])
