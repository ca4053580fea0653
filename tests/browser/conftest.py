"""A headless browser for the tests of pages: Debian's Chromium, driven by Playwright."""

import os
import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    """Chromium; skips where there is none, except on CI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        reason = "there is no Chromium here (on Debian: apt install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # CI runs as root
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page whose requests to other machines are noted in `page.elsewhere` and refused."""
    page = browser.new_page(accept_downloads=True)
    page.elsewhere = []

    def route(route):
        if route.request.url.split("/")[2].split(":")[0] in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            page.elsewhere.append(route.request.url)
            route.abort()

    page.route(lambda url: url.startswith("http"), route)
    yield page
    page.close()
