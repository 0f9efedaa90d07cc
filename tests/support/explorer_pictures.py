"""The pictures of the documentation that show the page of ``llama2cpp explore``: made anew in Debian's chromium.

Run it as ``python tests/support/explorer_pictures.py`` with what the extra ``browser-test`` installs, and Pillow.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from explored import Explored, explored
from PIL import Image
from playwright.sync_api import sync_playwright

import llama2cpp

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
COLOURS = 96  # of a palette: what a page of flat colours needs


def settled(page: Any) -> None:
    page.wait_for_timeout(300)
    page.wait_for_selector("#views[aria-busy=false]")


def save(name: str, png: bytes) -> None:
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"{name}.png", optimize=True)
    print(
        f"{name}.png: {(FOLDER / name).with_suffix('.png').stat().st_size:,} bytes, {picture.width} x {picture.height}"
    )


def attention(page: Any) -> None:
    page.click("#tab-attention")
    settled(page)
    grid = page.locator("[data-picture=attention-grid] svg")
    grid.focus()
    for key in ["ArrowDown"] * 4 + ["ArrowRight"] * 2:  # head 2 of layer 4, which looks at Tom
        page.keyboard.press(key)
        settled(page)


def lens(page: Any) -> None:
    page.click("#tab-lens")
    settled(page)


def edit(page: Any) -> None:
    page.click("#tab-edit")
    settled(page)
    page.fill("#edit-layer", "4")
    page.fill("#edit-head", "2")
    page.click("#edit-add")
    page.wait_for_selector("#edit-verdict")
    settled(page)


def patching(page: Any) -> None:
    page.click("#tab-patching")
    settled(page)
    page.click("#patch-run")
    page.wait_for_selector('#patch-grid[data-filled="80"]')
    settled(page)


# What is done before a picture is taken, and what it shows: the box around these elements.
TOUR: list[tuple[str, Callable[[Any], None] | None, list[str]]] = [
    ("next", None, ["#next-table"]),
    ("flow", None, ["[data-picture=flow]"]),
    ("lens", lens, ["#lens-table"]),
    ("edit", edit, ["#edits", "[data-picture=before-after]"]),
    ("patching", patching, ["#patch-grid"]),
]


def around(page: Any, selectors: list[str]) -> dict[str, float]:
    boxes = [page.locator(selector).first.bounding_box() for selector in selectors]
    left, top = min(box["x"] for box in boxes) - 12, min(box["y"] for box in boxes) - 12
    right = max(box["x"] + box["width"] for box in boxes) + 12
    bottom = max(box["y"] + box["height"] for box in boxes) + 12
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def take(browser: Any, tales: Explored) -> None:
    for scheme in ("light", "dark"):
        with opened(browser, tales, scheme, 1280, 860) as page:
            attention(page)
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            save(f"explore-{scheme}", page.screenshot())
    for name, act, shown in TOUR:
        with opened(browser, tales, "light", 1640, 2000) as page:
            if act:
                act(page)
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            save(f"explore-{name}", page.screenshot(clip=around(page, shown)))


@contextmanager
def opened(browser: Any, tales: Explored, scheme: str, width: int, height: int) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(tales.url)
    page.wait_for_selector("#next-tokens tbody tr")
    settled(page)
    yield page
    context.close()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("needs a chromium on the PATH (Debian's package)")
    with (
        llama2cpp.load("storyteller", backend="cpu") as model,
        explored(model, name="storyteller") as tales,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        take(browser, tales)
        browser.close()


if __name__ == "__main__":
    main()
