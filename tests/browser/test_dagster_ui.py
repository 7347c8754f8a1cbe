"""The Dagster UI as a user's desk: what is clicked, and what is then to be seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.desk import PATIENCE, Desk, Ui, picture

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SHARD = "shard-00001"
"""The one that the later footage becomes."""
VARIANT = "generated"
LONG = PATIENCE * 1000
"""Milliseconds that a run may take."""


def materialise(page: Page, ui: Ui, asset: str, *partition: str) -> str:
    """Clicks an asset's button, names the partition in the dialog, follows the run to its end; tells how it ended."""
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
        assert [(run.assets, run.status) for run in ui.runs()[:2]] == [
            (("companion_pairs",), "SUCCESS"),
            (("clips",), "SUCCESS"),
        ]
