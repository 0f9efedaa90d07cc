"""How soon the page of ``llama2cpp explore`` is painted, and how soon an edit is answered, in Debian's chromium.

``python tests/bench/explore_times.py [MODEL]`` prints medians of some rounds, in milliseconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "support"))

from explored import explored
from playwright.sync_api import sync_playwright

import llama2cpp

ROUNDS = 15
# From a click on Apply to the table that shows what it has changed.
EDIT = """(layer) => new Promise((done) => {
  document.getElementById('edit-layer').value = layer;
  document.getElementById('edit-layer').dispatchEvent(new Event('input'));
  const seen = document.getElementById('edit-verdict');
  const begun = performance.now();
  const watch = new MutationObserver(() => {
    const now = document.getElementById('edit-verdict');
    if (now && now !== seen) { watch.disconnect(); done(performance.now() - begun); }
  });
  watch.observe(document.getElementById('panel-edit'), {subtree: true, childList: true});
  document.getElementById('edit-add').click();
})"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def rounds(browser: Any, url: str, layers: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"first paint": [], "first answer": [], "edit": []}
    for turn in range(ROUNDS):
        context = browser.new_context(viewport={"width": 1300, "height": 900})
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#next-tokens tbody tr")
        found["first answer"].append(page.evaluate("performance.now()"))
        found["first paint"].append(page.evaluate(PAINT))
        page.click("#tab-edit")
        page.wait_for_selector("#edit-add")
        page.wait_for_timeout(200)  # until all else has been answered
        found["edit"].append(page.evaluate(EDIT, turn % layers))
        context.close()
    return found


def main() -> None:
    source = sys.argv[1] if len(sys.argv) > 1 else "storyteller"
    chromium = shutil.which("chromium") or "chromium-browser"
    with llama2cpp.load(source, backend="cpu") as model, explored(model) as page, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        found = rounds(browser, page.url, model.config.n_layers)
        browser.close()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs, {ROUNDS} rounds")
    for name, times in found.items():
        print(f"{name}: median {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f}")


if __name__ == "__main__":
    main()
