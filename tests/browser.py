"""Chromium for tests of pages.

A test that opens pages takes the fixture ``browser`` and calls :func:`opened`, which sees to it
that no page asks for anything, complains or runs off the side.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1280, 800), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, one for a module's tests; they are skipped where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        reason = f"no Chromium: none of {', '.join(PROGRAMS)} is on the PATH (`make browser`)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def opened(
    browser: Any,
    path: Path,
    size: tuple[int, int] = DESKTOP,
    dark: bool = False,
    touch: bool = False,
) -> Iterator[Any]:
    """``path`` in a window of its own, offline.

    Fails if the page asks for anything but itself, if its console has an error, or if it is wider
    than the window, at the start or at the end.
    """  # fmt: skip
    asked: list[str] = []
    said: list[str] = []
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=touch, offline=True,
        color_scheme="dark" if dark else "light", reduced_motion="reduce",
    )  # fmt: skip
    try:
        context.set_default_timeout(20_000)
        own = path.resolve().as_uri()

        def answer(route: Any) -> None:
            asked.append(route.request.url)
            if route.request.url == own:
                route.continue_()
            else:
                route.abort()

        context.route("**/*", answer)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on(
            "console",
            lambda line: said.append(line.text) if line.type in ("error", "assert") else None,
        )
        page.on("request", lambda request: asked.append(request.url))
        page.goto(own)
        _check_width(page, width)
        yield page
        _check_width(page, width)
        outside = [url for url in asked if url != own and not url.startswith(("data:", "blob:"))]
        assert outside == []
        assert said == []
    finally:
        context.close()


def _check_width(page: Any, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
