"""The page of ``llama2cpp explore`` in Chromium: each view, edit and share, by mouse and by keys, at all sizes."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explored import ODD_TEXTS, TOKEN, Explored, explored, odd_gguf, probabilities

import llama2cpp

sync = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[browser-test]'")
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), "")
if not CHROMIUM:
    pytest.skip("needs a chromium on the PATH (Debian's package)", allow_module_level=True)

TEXT = "When Lily and Tom went to the park, Lily gave the ball to"
VIEWS = ("flow", "attention", "lens", "attribution", "edit", "patching", "share")
PICTURES = {"flow": 3, "attention": 2, "lens": 1, "attribution": 3, "edit": 1, "patching": 1}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync.sync_playwright() as driver:
        made = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-renderer-backgrounding"]
        )
        yield made
        made.close()


@pytest.fixture(scope="module")
def tales() -> Iterator[Explored]:
    with llama2cpp.load("storyteller", backend="cpu") as model, explored(model) as page:
        yield page


@contextmanager
def opened(browser: Any, url: str, *, expected: str | None = None, **options: Any) -> Iterator[Any]:
    """A page in a tab of its own; what its console complains of is an error, but for what is expected.

    Its policy forbids evaluating text, which is how playwright waits for functions: without it, but in one test.
    """
    defaults = {"viewport": {"width": 1300, "height": 900}, "accept_downloads": True, "bypass_csp": True}
    context = browser.new_context(**{**defaults, **options})
    context.set_default_timeout(60_000)  # what a loaded machine may take
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    try:
        page.goto(url)
        settled(page)
        yield page
        assert [told for told in problems if expected is None or expected not in told] == []
    finally:
        context.close()


def settled(page: Any) -> None:
    """All that was asked for is drawn: from the event itself until then the page says that it is busy."""
    page.wait_for_selector("#views[aria-busy=false]")
    page.wait_for_selector("#next-tokens tbody tr, #next-table p")


def show(page: Any, view: str) -> None:
    page.click(f"#tab-{view}")
    settled(page)


def has_tokens(page: Any, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#tokens [data-token-id]').length === {count}")


def token_ids(page: Any) -> list[int]:
    read = "found => found.map((one) => Number(one.dataset.tokenId))"  # all at one moment
    return [int(id) for id in page.eval_on_selector_all("#tokens [data-token-id]", read)]


def rows(page: Any) -> list[tuple[int, float, float]]:
    read = "found => found.map(({ dataset }) => [dataset.id, dataset.p, dataset.q])"  # all at one moment
    return [(int(id), float(p), float(q)) for id, p, q in page.eval_on_selector_all("#next-tokens tr[data-id]", read)]


def save_pictures(page: Any, view: str) -> Iterator[tuple[str, Path]]:
    """Press each button of a view that saves a picture: the names, and the files."""
    for button in page.locator(f"#panel-{view} [data-export]").all():
        name = button.get_attribute("data-export")
        with page.expect_download() as download:
            button.click()
        assert download.value.suggested_filename == name
        page.wait_for_timeout(120)  # Chromium drops the eleventh download of a frame within a second, without a word
        yield name, Path(download.value.path())


def test_address_prompt_tokens_and_next(browser: Any, tales: Explored) -> None:
    with opened(browser, f"{tales.url}&prompt=Once+upon+a") as page:
        assert TOKEN not in page.url
        assert page.input_value("#prompt") == "Once upon a"
        ids = tales.model.to_tokens("Once upon a")[0].tolist()
        assert token_ids(page) == ids
        special = page.query_selector_all('#tokens [data-special="true"]')
        assert [int(one.get_attribute("data-token-id")) for one in special] == [1]
        p = probabilities(tales.model(ids)[0, -1])
        for id, shown, drawn in rows(page):
            assert shown == pytest.approx(p[id], rel=1e-9)
            assert drawn == pytest.approx(p[id], rel=1e-9)
        page.reload()  # the token is this tab's
        settled(page)
        assert token_ids(page) == ids
        page.fill("#prompt", "The dog")
        dog = tales.model.to_tokens("The dog")[0].tolist()
        page.wait_for_function(
            f"document.querySelector('#tokens [data-position=\"1\"]')?.dataset.tokenId === '{dog[1]}'"
        )
        assert token_ids(page) == dog
    with opened(browser, tales.url) as page:  # another tab without the address has no token
        page.context.new_page().goto(tales.origin)
        other = page.context.pages[-1]
        other.wait_for_function("document.getElementById('about').textContent.includes('cannot be reached')")
        assert "token is missing" in other.text_content("#status")
        page.goto("about:blank")


def test_sampling_steps_rewinds_and_branches(browser: Any, tales: Explored) -> None:
    model = tales.model
    with opened(browser, f"{tales.url}&prompt=The+dog") as page:
        page.locator("#top_k").fill("3")
        page.wait_for_selector('#next-tokens tr[data-cut="top_k"]')
        told = rows(page)
        assert [q > 0 for _, _, q in told] == [True] * 3 + [False] * (len(told) - 3)
        assert sum(q for _, _, q in told) == pytest.approx(1)
        page.locator("#top_k").fill("0")
        page.locator("#temperature").fill("0")
        page.wait_for_selector('#next-tokens tr[data-cut="temperature"]')
        page.fill("#most", "6")
        page.press("#most", "Tab")
        page.click("#generate")
        ids = model.to_tokens("The dog")[0].tolist()
        for _ in range(6):
            ids.append(int(model(ids)[0, -1].argmax()))
        has_tokens(page, len(ids))
        assert token_ids(page) == ids
        page.click('#tokens [data-position="4"]')
        settled(page)
        assert rows(page)[0][1] == pytest.approx(probabilities(model(ids[:5])[0, -1]).max(), rel=1e-6)
        page.click("#fork")
        settled(page)
        assert token_ids(page) == ids[:5]
        second = rows(page)[1][0]
        page.click(f'#next-tokens tr[data-id="{second}"] button')
        page.wait_for_selector("#compared")
        settled(page)
        assert token_ids(page) == [*ids[:5], second]
        assert "They share 5 tokens" in page.text_content("#chosen")
        page.click('[data-branch="0"]')
        has_tokens(page, len(ids))
        page.click('#tokens [data-position="5"]')
        page.click("#rewind")
        has_tokens(page, 6)
        page.click("#step")
        has_tokens(page, 7)
        assert token_ids(page) == ids[:7]


def test_flow_down_to_one_product(browser: Any, tales: Explored) -> None:
    with opened(browser, tales.url) as page:
        ids = token_ids(page)
        page.click('[data-station="blocks.3.hook_attn_out"]')
        page.wait_for_selector('#layer-parts [data-hook="blocks.3.attn.hook_z"]')
        page.click('#panel-flow [data-head="4"]')
        page.wait_for_function("document.getElementById('panel-flow').textContent.includes('Head 4 of layer 3')")
        settled(page)
        pattern = tales.model.run_with_cache(ids, "pattern3")[1]["pattern", 3][0, 4, -1]
        for row in page.query_selector_all("#head-keys tr[data-key]"):
            assert float(row.get_attribute("data-weight")) == float(pattern[int(row.get_attribute("data-key"))])
        for kind, output in [("v", 3), ("mix", 2), ("attn_out", 7), ("up", 100), ("logit", 848)]:
            page.select_option("#product-kind", kind)
            settled(page)
            page.fill("#product-output", str(output))
            page.press("#product-output", "Tab")
            settled(page)
            said = page.query_selector("#product-sum")
            told = [float(said.get_attribute(f"data-{name}")) for name in ("sum", "measured")]
            assert told[0] == pytest.approx(told[1], abs=5e-5)
            assert "the same but for the last digits" in said.text_content()
            assert ("rounded to int8 in groups of 64" in said.text_content()) == (kind != "mix")
        assert told[1] == float(tales.model(ids)[0, -1, 848])


def test_attention_on_hover_and_by_keys(browser: Any, tales: Explored) -> None:
    with opened(browser, tales.url) as page:
        show(page, "attention")
        assert page.locator("#panel-attention [data-picture=attention-grid] image").count() == 30
        assert page.locator("#panel-attention svg text", has_text=re.compile("^KV [01]$")).count() == 2
        grid = page.locator("[data-picture=attention-grid] svg")
        grid.focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
            settled(page)
        assert page.locator("#panel-attention h3", has_text="Layer 2, head 3 (KV 1)").count() == 1
        pattern = tales.model.run_with_cache(token_ids(page), "pattern2")[1]["pattern", 2][0, 3]
        large = page.locator('[data-picture="attention-L2H3"]')
        box = large.locator("rect").nth(0).bounding_box()
        page.mouse.move(box["x"] + 3, box["y"] + 3)
        assert "looks at “<s>” (token 0): 1.000" in large.locator(".readout").text_content()
        large.locator("svg").focus()
        page.keyboard.press("ArrowDown")
        assert f"token 0): {pattern[1, 0]:.3f}" in large.locator(".readout").text_content()


def test_lens_and_attribution(browser: Any, tales: Explored) -> None:
    model = tales.model
    with opened(browser, tales.url) as page:
        ids = token_ids(page)
        show(page, "lens")
        lens = model.run_with_cache(ids)[1].logit_lens(positions=None, top_k=1, return_type="probs")
        cells = page.query_selector_all("#lens-table [data-top-id]")
        found = np.array([int(cell.get_attribute("data-top-id")) for cell in cells]).reshape(6, len(ids))
        assert lens.top_ids is not None
        assert (found[::-1] == lens.top_ids[:, 0, :, 0]).all()
        page.fill("#lens-target", "Tom")
        page.press("#lens-target", "Enter")
        page.wait_for_function("document.getElementById('lens-table').caption.textContent.includes('Tom')")
        show(page, "attribution")
        said = page.query_selector("#attribution-sum")
        assert float(said.get_attribute("data-logit")) == pytest.approx(float(model(ids)[0, -1, 848]), abs=1e-5)
        assert page.locator("[data-picture=attribution-neurons] g[role=button]").count() == 16
        page.locator("[data-picture=attribution-parts] g[role=button]").last.press("Enter")
        settled(page)
        assert page.get_attribute("#tab-flow", "aria-selected") == "true"


def test_edits_and_their_python(browser: Any, tales: Explored, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tales.model
    with opened(browser, tales.url) as page:
        show(page, "edit")
        page.fill("#edit-layer", "4")
        page.fill("#edit-head", "2")
        page.click("#edit-add")
        page.wait_for_selector("#edit-verdict")
        settled(page)
        page.select_option("#edit-what", "direction")
        page.fill("#edit-token", "Lily")
        page.fill("#edit-strength", "30")
        page.click("#edit-add")
        page.wait_for_function("document.querySelectorAll('#edits li').length === 2")
        settled(page)
        monkeypatch.setattr(llama2cpp, "load", lambda *_: model)
        names: dict[str, Any] = {}
        exec(page.text_content("#python"), names)
        before, after = probabilities(names["before"]), probabilities(names["after"])
        for row in page.query_selector_all("#edit-rows tr[data-id]"):
            id = int(row.get_attribute("data-id"))
            assert float(row.get_attribute("data-before")) == pytest.approx(before[id], rel=1e-9)
            assert float(row.get_attribute("data-after")) == pytest.approx(after[id], rel=1e-9)
        verdict = page.query_selector("#edit-verdict")
        assert int(verdict.get_attribute("data-before")) == before.argmax()
        assert int(verdict.get_attribute("data-after")) == after.argmax() != before.argmax()
        assert rows(page)[0][0] == after.argmax()  # the table on the left is the edited model's
        page.click("#continue-both")
        page.wait_for_function("document.getElementById('answer-after').children.length >= 20")
        page.wait_for_function("document.getElementById('answer-before').children.length >= 20")
        assert page.text_content("#answer-before") != page.text_content("#answer-after")
        page.click("#edits li button")
        page.wait_for_function("document.querySelectorAll('#edits li').length === 1")
        for what, do in [("neuron", "set"), ("mlp", "scale"), ("layer", "off"), ("key", "scale"), ("value", "off")]:
            count = page.locator("#edits li").count()
            page.select_option("#edit-what", what)
            page.select_option("#edit-do", do)
            page.click("#edit-add")
            page.wait_for_function(f"document.querySelectorAll('#edits li').length === {count + 1}")
        settled(page)
        page.fill("#edit-layer", "99")
        page.click("#edit-add")
        assert page.evaluate("document.getElementById('edit-layer').validity.rangeOverflow")


def test_patching_fills_in_live(browser: Any, tales: Explored) -> None:
    with opened(browser, tales.url) as page:
        show(page, "patching")
        page.evaluate("""window.seen = []; new MutationObserver(() => {
          const grid = document.getElementById('patch-grid'); if (grid) window.seen.push(grid.dataset.filled);
        }).observe(document.getElementById('panel-patching'), {subtree: true, childList: true, attributes: true})""")
        page.click("#patch-run")
        page.wait_for_function("document.getElementById('patch-grid')?.dataset.filled === '80'")
        grid = np.array(json.loads(page.get_attribute("#patch-grid", "data-values")))
        model, texts = tales.model, (TEXT, TEXT.replace("Lily gave", "Tom gave"))
        _, cache = model.run_with_cache(texts[0])
        metric = llama2cpp.metrics.logit_diff(848, 862)
        expected = llama2cpp.patching.activation_patch(
            model, texts[1], cache, metric, "resid_pre", ["layer", "position"], progress=False
        )
        assert (grid == expected).all()
        assert {"0", "16", "80"} <= set(page.evaluate("window.seen"))


def test_share_and_pictures(browser: Any, tales: Explored, tmp_path: Path) -> None:
    with opened(browser, f"{tales.url}&prompt=The+cat+saw") as page:
        show(page, "edit")
        page.click("#edit-add")
        page.wait_for_selector("#edit-verdict")
        page.click('#tokens [data-position="2"]')
        show(page, "attention")
        show(page, "share")
        link = page.input_value("#share-link")
        assert TOKEN not in link
        with page.expect_download() as download:
            page.click("#share-save")
        download.value.save_as(tmp_path / "state.json")
        state = json.loads((tmp_path / "state.json").read_text("utf-8"))
        assert state["edits"] == [{"what": "head", "do": "off", "layer": 0, "head": 0}]
        ids = token_ids(page)
    fragment = link.partition("#")[2]
    with opened(browser, f"{tales.url}#{fragment}") as page:  # as a link
        assert token_ids(page) == ids
        assert page.get_attribute('#tokens [aria-pressed="true"]', "data-position") == "2"
        assert page.get_attribute("#tab-share", "aria-selected") == "true"
        page.fill("#prompt", "Something else")
        page.wait_for_function(f"document.querySelectorAll('#tokens [data-token-id]').length !== {len(ids)}")
        page.set_input_files("#share-file", tmp_path / "state.json")  # as a file
        has_tokens(page, len(ids))
        settled(page)
        assert token_ids(page) == ids
        for bad in ["nothing", "s=e30", "s=" + "x" * 50]:
            page.fill("#share-paste", bad)
            page.click("#share-open")
            assert "cannot be opened" in page.text_content("#status")
        show(page, "patching")
        page.click("#patch-run")
        page.wait_for_selector("#patch-grid")
        saved = 0
        for view in VIEWS[:-1]:
            show(page, view)
            for name, path in save_pictures(page, view):
                data = path.read_bytes()
                if name.endswith(".png"):
                    assert data.startswith(b"\x89PNG\r\n")
                    assert len(data) > 300
                else:
                    assert ElementTree.fromstring(data).tag.endswith("svg")
                saved += 1
        assert saved == 2 * sum(PICTURES.values())


def test_texts_of_tokens_are_never_markup(browser: Any, tmp_path: Path) -> None:
    """A checkpoint that nobody has seen, whose tokens hold markup and control characters: in every view, text."""
    with llama2cpp.load(odd_gguf(tmp_path / "odd.gguf"), backend="cpu") as model, explored(model, opened="x") as served:
        ids = [1, *range(3, 3 + len(ODD_TEXTS)), 14]
        with opened(browser, f"{served.url}&prompt=ab") as page:
            before = page.evaluate("document.querySelectorAll('img, b, script').length")
            for id in ids[1:]:  # put into the text from the table
                while page.query_selector(f'#next-tokens tr[data-id="{id}"]') is None:
                    page.click("text=More rows")
                    settled(page)
                page.click(f'#next-tokens tr[data-id="{id}"] button')
                settled(page)
            assert token_ids(page)[-len(ids) + 1 :] == ids[1:]
            shown = [one.text_content() for one in page.query_selector_all("#tokens [data-token-id]")]
            assert {"<img src=x>", "<b>bold</b>", "&amp;", "\\u{7}", "\\u{202e}back", "\\u{200b}", "a\\nb"} <= set(
                shown
            )
            for view in VIEWS:
                show(page, view)
                if view == "patching":
                    for name, value in [("clean", "ab"), ("corrupt", "ba"), ("answer", "#3"), ("wrong", "#4")]:
                        page.fill(f"#patch-{name}", value)
                    page.press("#patch-wrong", "Tab")
                    page.click("#patch-run")
                    page.wait_for_selector("#patch-grid")
                assert page.evaluate("document.querySelectorAll('img, b, script').length") == before, view
                assert page.evaluate(
                    "[...document.querySelectorAll('svg *')].every((one) => one.namespaceURI.endsWith('svg'))"
                )
            assert "3 layers" in page.text_content("#about")


def test_other_origins_cannot_reach_it(browser: Any, tales: Explored, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>another site</title>", "utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{site.server_address[1]}/")
        attempts = """async ([origin, token]) => {
          const tries = [{}, {method: 'POST', body: '{}'}, {mode: 'no-cors', method: 'POST', body: '{}'},
            {method: 'POST', body: '{}', headers: {Authorization: `Bearer ${token}`}}];
          const told = [];
          for (const options of tries) {
            try { told.push(await (await fetch(`${origin}/api/about`, options)).text()); } catch { told.push(''); }
          }
          const frame = document.createElement('iframe'); frame.src = origin; document.body.append(frame);
          await new Promise((done) => { frame.onload = done; });
          try { told.push(frame.contentDocument?.body?.textContent ?? ''); } catch { told.push(''); }
          return told;
        }"""
        assert page.evaluate(attempts, [tales.origin, TOKEN]) == [""] * 5
        context.close()
        site.shutdown()


def test_all_views_under_the_policy(browser: Any, tales: Explored) -> None:
    """Nothing that the page does is against its own Content-Security-Policy: the console would say so."""
    assert "unsafe" not in tales.send("GET", "/")[1]["content-security-policy"]
    with opened(browser, tales.url, bypass_csp=False) as page:
        page.fill("#most", "3")
        page.press("#most", "Tab")
        page.click("#generate")
        page.wait_for_selector(f'#tokens [data-position="{len(tales.model.to_tokens(TEXT)[0]) + 2}"]')
        for view in VIEWS:
            show(page, view)
            if view == "edit":
                page.click("#edit-add")
                page.wait_for_selector("#edit-verdict")
            if view == "patching":
                page.click("#patch-run")
                page.wait_for_selector('#patch-grid[data-filled="80"]')
            assert len(list(save_pictures(page, view))) == (0 if view == "share" else 2 * PICTURES[view])


@pytest.mark.parametrize("how", ["pointer", "space"])
def test_a_press_is_not_lost_to_a_redraw(browser: Any, tales: Explored, how: str) -> None:
    """An answer that comes while a button is held down is drawn when it is let go: the button is there until then."""
    with opened(browser, tales.url) as page:
        last = len(token_ids(page)) - 1
        held: list[Any] = []
        page.route("**/api/flow", lambda route: held.append(route))  # playwright takes no builtin
        page.focus('#tokens [aria-pressed="true"]')
        page.keyboard.press("ArrowLeft")
        while not held:
            page.wait_for_timeout(10)
        button = page.locator('[data-export="flow.svg"]')
        if how == "pointer":
            button.hover()
            page.mouse.down()
        else:
            button.focus()
            page.keyboard.down(" ")
        with page.expect_response("**/api/flow"):
            held[0].continue_()
        page.wait_for_timeout(300)
        assert page.text_content('[data-picture="flow"] .readout').startswith(f"Token {last} of")
        assert page.get_attribute("#views", "aria-busy") == "true"
        with page.expect_download():
            if how == "pointer":
                page.mouse.up()
            else:
                page.keyboard.up(" ")
        settled(page)
        assert page.text_content('[data-picture="flow"] .readout').startswith(f"Token {last - 1} of")


def test_an_edit_is_one_question(browser: Any, tales: Explored) -> None:
    """Apply asks for the comparison once; what it refuses is not applied."""
    with opened(browser, tales.url, expected="status of 400") as page:
        show(page, "edit")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        page.click("#edit-add")
        page.wait_for_selector("#edit-verdict")
        page.wait_for_selector("#python")
        settled(page)
        assert asked[0] == "compare"
        assert sorted(asked) == ["compare", "next", "python"]
        asked.clear()
        page.click("#edits li button")
        page.wait_for_selector("#edit-verdict", state="detached")
        settled(page)
        assert "compare" in asked
        page.select_option("#edit-what", "direction")
        page.select_option("#edit-from", "texts")
        page.click("#edit-add")
        page.wait_for_function("document.getElementById('status').textContent !== ''")
        assert page.locator("#edits li").count() == 0


def test_by_keys_alone(browser: Any, tales: Explored) -> None:
    with opened(browser, f"{tales.url}&prompt=The+dog") as page:
        seen: set[str] = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            here = page.evaluate("document.activeElement.id || document.activeElement.dataset?.tokenId || ''")
            seen.add(here)
        assert {"theme", "prompt", "special", "step", "generate", "most", "seed", "temperature", "tab-flow"} <= seen
        page.focus('#tokens [aria-pressed="true"]')
        page.keyboard.press("ArrowLeft")
        settled(page)
        assert page.get_attribute('#tokens [aria-pressed="true"]', "data-position") == str(len(token_ids(page)) - 2)
        page.keyboard.press("End")
        settled(page)
        page.focus("#tab-flow")
        for view in VIEWS[1:]:
            page.keyboard.press("ArrowRight")
            settled(page)
            assert page.evaluate("document.activeElement.id") == f"tab-{view}"
            assert page.is_visible(f"#panel-{view}")
        count = len(token_ids(page))
        page.focus("#step")
        page.keyboard.press("Enter")
        has_tokens(page, count + 1)


# What is pressed, in which view, and where the keyboard is afterwards: at the same control or at what took its place.
PRESSED = [
    ("flow", '[data-station="blocks.2.hook_attn_out"]', '[data-station="blocks.2.hook_attn_out"]'),
    ("flow", '#panel-flow [data-head="4"]', '#panel-flow [data-head="4"]'),
    ("flow", "#head-keys tbody tr:nth-child(2) button", "#head-keys tbody tr:nth-child(2) button"),
    ("flow", '#next-table >> button:text-is("More rows")', '#next-table >> button:text-is("More rows")'),
    ("flow", "#next-tokens tbody tr:nth-child(2) button", "#next-tokens tbody tr:nth-child(2) button"),
    ("flow", "#step", "#step"),
    ("flow", "#fork", "#fork"),
    ("flow", '[data-branch="0"]', '[data-branch="0"]'),
    ("attention", "[data-picture^=attention-L] svg", "[data-picture^=attention-L] svg"),
    ("lens", "#lens-table button[tabindex='0']", "#lens-table tbody tr:first-child td:last-child button"),
    ("attribution", "#panel-attribution .row button:nth-child(2)", "#panel-attribution .row button:nth-child(2)"),
    ("edit", "#edit-add", "#edit-add"),
    ("edit", "#edits-off", "#edits-off"),
]


def test_the_keyboard_stays_where_it_is(browser: Any, tales: Explored) -> None:
    """What is pressed is drawn anew, and whoever has pressed it goes on from there."""
    with opened(browser, tales.url) as page:
        for view, pressed, after in PRESSED:
            show(page, view)
            page.locator(pressed).focus()
            page.keyboard.press("Enter")
            if pressed == "#step":
                page.wait_for_selector("#step:not([aria-disabled])")
            settled(page)
            assert page.locator(after).evaluate("(one) => one === document.activeElement"), pressed
        page.locator("#edits button").focus()
        page.keyboard.press("Enter")  # the last edit is gone, and the list has the keyboard
        settled(page)
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.activeElement.id") == "edit-add"


LOOKED_THROUGH = [(360, "light"), (1300, "dark")]  # by axe-core, which takes its time


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (2560, "light"), (1300, "dark")])
def test_sizes_themes_and_accessibility(browser: Any, tales: Explored, width: int, scheme: str) -> None:
    """No view is wider than the screen; axe-core finds nothing in any."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view = {"width": width, "height": 900}
    with opened(browser, tales.url, viewport=view, color_scheme=scheme, reduced_motion="reduce") as page:
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("getComputedStyle(document.getElementById('step')).transitionDuration") == "0s"
        for name in VIEWS:
            show(page, name)
            if name == "edit":
                page.click("#edit-add")
                page.wait_for_selector("#edit-verdict")
                settled(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            if (width, scheme) in LOOKED_THROUGH:
                found = axe.run(page)
                assert found.violations_count == 0, f"{name}: {found.generate_report()}"


def test_the_grid_of_heads_fits_large_text(browser: Any, tales: Explored) -> None:
    """Pictures are as large as text is: what there is room for is counted in their units, so none is cut or shrunk."""
    with opened(browser, tales.url, viewport={"width": 1700, "height": 900}) as page:
        page.add_style_tag(content="html { font-size: 24px !important }")
        show(page, "attention")
        page.wait_for_selector("[data-picture=attention-grid] svg")
        widths = """(svg) => [svg.getBoundingClientRect().width, svg.viewBox.baseVal.width]"""
        shown, drawn = page.eval_on_selector("[data-picture=attention-grid] svg", widths)
        assert shown == pytest.approx(drawn * 24 / 15, rel=0.01)
