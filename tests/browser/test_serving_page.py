"""The page of `xdub serve`: a dub from the drop to the download."""

from __future__ import annotations

import base64
from pathlib import Path

import av
import pytest
from playwright.sync_api import Page, expect

from tests.browser.desk import picture
from tests.xdub_platform.serving import tiny
from tests.xdub_platform.serving.world import State

pytestmark = [pytest.mark.slow, pytest.mark.browser]

FRAMES = 25
FPS = 25
LONG = 240_000
"""Milliseconds that a dub may take on a busy machine."""

FILE = """([content, name]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(content), (char) => char.charCodeAt(0))], name));
    return transfer;
}"""
NOTE_STAGES = """() => {
    window.stages = [];
    const stage = document.getElementById("stage");
    new MutationObserver(() => window.stages.push(stage.textContent)).observe(stage, { childList: true });
}"""


def test_a_dub_from_drop_to_download(page: Page, state: State, tmp_path: Path) -> None:
    state.register()
    video = tiny.write_face(tmp_path / "face.mp4", FRAMES)
    audio = tiny.write_speech(tmp_path / "speech.wav", FRAMES / FPS)
    with state.serving() as server:
        page.goto(str(server.client.base_url))
        expect(page.locator("#model")).to_have_text("model version 1")
        drop(page, "label[for=video]", video)
        drop(page, "label[for=audio]", audio)
        page.evaluate(NOTE_STAGES)
        page.get_by_role("button", name="Dub").click()
        expect(page.locator("#work")).to_be_visible()
        picture(page, tmp_path, "serving-at-work")
        expect(page.get_by_text("Dub, model 1")).to_be_visible(timeout=LONG)
        assert {"uploading", "waiting for its turn"} < set(page.evaluate("window.stages")), "no stage of the work"
        page.get_by_role("button", name="Play both").click()
        for player in ("before", "after"):
            expect(page.locator(f"#{player}")).not_to_have_js_property("videoWidth", 0)
        expect(page.locator("#after")).not_to_have_js_property("currentTime", 0)
        picture(page, tmp_path, "serving-compare")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        download.value.save_as(tmp_path / "dub.mp4")
    with av.open(str(tmp_path / "dub.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
        assert container.streams.audio
        assert float(container.duration or 0) / av.time_base == pytest.approx(FRAMES / FPS, abs=0.1)


def drop(page: Page, place: str, file: Path) -> None:
    """Drops a file as from the desktop."""
    content = base64.b64encode(file.read_bytes()).decode()
    page.dispatch_event(place, "drop", {"dataTransfer": page.evaluate_handle(FILE, [content, file.name])})
