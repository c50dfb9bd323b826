"""Pages in a headless browser, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watched(browser, height: int) -> Iterator[Callable]:
    """Opens pages by their addresses. At the end, nothing was sent or printed on the console, and each page was one
    file."""
    said, asked, contexts = [], [], []

    def open_(address: str, **context):
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": height}} | context))
        contexts[-1].set_default_timeout(15_000)
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in asked) == len(contexts)
