"""Debian's chromium, a page in it, and a state root to look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.desk import Desk, prepare
from tests.xdub_platform.serving.world import parts, state

__all__ = ["parts", "state"]

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
WINDOW = {"width": 1500, "height": 1100}
PATIENCE = 120_000
"""Milliseconds that a click or a text may take on a busy machine."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser, without a window."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs the system package chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page that a user has just opened; Dagster's greeting is skipped whenever it comes up."""
    context = chromium.new_context(viewport=WINDOW, accept_downloads=True)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    greeting = page.get_by_role("button", name="Skip", exact=True)
    # Not a click: the greeting's own backdrop, while it fades in, lies above the button.
    page.add_locator_handler(greeting, lambda skip: skip.dispatch_event("click"))
    yield page
    context.close()


@pytest.fixture(scope="session")
def prepared(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Made once; not at all without a browser."""
    return prepare(tmp_path_factory.mktemp("desk"))


@pytest.fixture
def desk(prepared: Desk) -> Desk:
    """The prepared state root as it was before another test worked on it."""
    prepared.restore()
    return prepared
