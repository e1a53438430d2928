"""A picture of a page of `dse browse`, whole, by headless Chromium.

python benchmarks/screenshot.py http://127.0.0.1:8050/ page.png --width 390 --dark
"""

from __future__ import annotations

import argparse
import shutil

from playwright.sync_api import sync_playwright

SETTLE_MS = 5000  # for what is drawn after the scatter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("path")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(
            viewport={"width": given.width, "height": 900},
            color_scheme="dark" if given.dark else "light",
        )
        tab.goto(given.address)
        tab.wait_for_selector("main :is(table, .empty, [role=alert]:not([hidden]))")
        tab.wait_for_timeout(SETTLE_MS)
        tab.screenshot(path=given.path, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
