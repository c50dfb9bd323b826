r"""Writes docs/leaderboard_page.png: a screenshot of the HTML page of a results folder.

    cryobench run -s dct -s tv -s wavelet -o sumpool:8,count=32 -o sumpool:8 -o sumpool:8,count=8 -o fourier:0.5 \
        -o fourier:0.25 -n none -n gaussian:rel=0.05 --ceiling -d simulate:6zu5,snr=10,count=8,size=128 --images 0:8 \
        --save figures --out RUNS
    uv run python tools/page_screenshot.py RUNS docs/leaderboard_page.png --tab sumpool:8

Needs playwright and a Chromium in PATH.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 256
"""A page has few colours: an indexed PNG is a third as large."""


def page_of(results: Path, folder: Path) -> Path:
    """The page of a results folder, written by `cryobench leaderboard`."""
    page = folder / "page.html"
    command = [sys.executable, "-m", "cryobench", "leaderboard", str(results), "--format", f"html={page}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return page


def take(page: Path, out: Path, *, tab: str, width: int, height: int, dark: bool) -> None:
    """Write a screenshot of the page with this tab open."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        sys.exit(f"no browser: none of {', '.join(BROWSERS)} is in PATH")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        window.goto(page.as_uri())
        window.get_by_role("tab", name=tab, exact=True).click()
        window.wait_for_function("[...document.querySelectorAll('canvas')].every((canvas) => canvas.ariaLabel)")
        window.screenshot(path=out)
        browser.close()
    with Image.open(out) as image:
        image.convert("RGB").quantize(COLOURS).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tab", default="Overview", help="an operator, or Overview")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1340)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        take(page_of(given.results, Path(folder)), given.out, tab=given.tab, width=given.width, height=given.height,
             dark=given.dark)  # fmt: skip


if __name__ == "__main__":
    main()
