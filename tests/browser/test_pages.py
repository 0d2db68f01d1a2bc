"""The gallery in Chromium: filters, order, a set's page, copying, keys, and no request that leaves the folder.

``make test-browser`` installs what these tests need; without it they are skipped.
"""

import os
import shutil
from urllib.parse import unquote, urlsplit

import pytest

from atomhub.gallery.gather import Broken, local_sets
from atomhub.gallery.pages import write_gallery

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
WIDTHS = [360, 768, 1440]


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] * (os.geteuid() == 0))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages of the sets that come with atomhub."""
    folder = tmp_path_factory.mktemp("site") / "gallery"
    write_gallery(local_sets()[0], [Broken("odd", "It has no manifest.")], folder)
    return folder


@pytest.fixture(params=WIDTHS)
def page(request, chromium, site):
    """A page that keeps to its folder, and whose console stays empty."""
    said, asked = [], []
    context = chromium.new_context(viewport={"width": request.param, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto((site / "index.html").as_uri())
    yield page
    assert said == []
    for url in asked:
        parts = urlsplit(url)
        assert parts.scheme == "data" or (parts.scheme == "file" and unquote(parts.path).startswith(str(site))), url
    context.close()


def shown(page):
    return page.locator(".card:visible h2").all_inner_texts()


def test_sets_are_filtered_and_ordered_and_the_address_remembers_how(page):
    names = ["cifar10-ipc1", "cifar10-ipc10", "cifar10-ipc50", "cifar100-ipc1", "digits-ipc1", "digits-ipc10"]
    assert shown(page) == names
    page.get_by_label("Source").select_option("digits")
    assert shown(page) == names[4:]
    page.get_by_label("Order").select_option("accuracy")
    assert shown(page) == ["digits-ipc10", "digits-ipc1"]
    assert page.get_by_role("status").inner_text() == "2 of 6 sets"
    page.reload()
    assert shown(page) == ["digits-ipc10", "digits-ipc1"]
    page.get_by_label("Images per class").select_option("1")
    assert shown(page) == ["digits-ipc1"]
    page.get_by_label("Protocol").select_option("ncfm")
    assert shown(page) == []
    page.get_by_role("button", name="Show all").click()
    assert shown(page) == names
    page.get_by_label("Order").select_option("bytes per class")
    assert shown(page)[0] == "digits-ipc1"


def test_a_set_has_a_page_that_says_how_to_load_it(page):
    page.get_by_role("link", name="digits-ipc1", exact=True).click()
    assert page.get_by_role("heading", level=1).inner_text() == "digits-ipc1"
    assert page.locator(".preview .box").count() == 10
    assert page.locator(".preview .box").nth(3).get_attribute("title") == "3"
    picture = page.locator(".preview img").bounding_box()
    for box in page.locator(".preview .box").all():
        inside = box.bounding_box()
        assert picture["x"] <= inside["x"] <= inside["x"] + inside["width"] <= picture["x"] + picture["width"] + 1
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert 'atomhub.load("digits-ipc1")' in page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("link", name="Leaderboard").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Leaderboard"


def test_pages_fit_their_window_and_pictures_have_words(page, site):
    for path in ("index.html", "leaderboard.html", "sets/digits-ipc10.html", "sets/cifar10-ipc1.html"):
        page.goto((site / path).as_uri())
        width = page.viewport_size["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for picture in page.locator("img").all():
            assert picture.evaluate("i => i.complete && i.naturalWidth > 0 || i.loading === 'lazy'")
            assert picture.get_attribute("alt") or picture.locator("xpath=ancestor::*[@aria-hidden='true']").count()


def test_all_is_reached_by_keys(page):
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the content"
    reached = set()
    for _ in range(14):  # pages, five choices, six sets
        page.keyboard.press("Tab")
        reached.add(page.locator(":focus").evaluate("e => e.name || e.textContent"))
    assert {"source", "sort", "cifar10-ipc1", "digits-ipc10"} <= reached


def test_colours_follow_the_system_and_are_legible(chromium, site):
    for scheme in ("light", "dark"):
        context = chromium.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto((site / "index.html").as_uri())
        for what in (".lead", ".facts", ".score", "nav a", "footer p"):
            assert page.locator(what).first.evaluate(CONTRAST) >= 4.5, (scheme, what)
        context.close()


CONTRAST = """element => {
  const level = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (/rgba\\(0, 0, 0, 0\\)/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const [a, b] = [level(getComputedStyle(element).color), level(getComputedStyle(behind).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
"""WCAG 2.2, contrast ratio."""
