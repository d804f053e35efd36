"""The pages in a real browser, on a phone and on a desk: nothing sticks out, nothing is fetched, every figure shows."""

import shutil
from contextlib import closing

import pytest
from studies import made
from test_verify import OFFSETS, make, write_product

from sample.study.report import write
from sample.verify import verify

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
SCREENS = {"phone": (390, 844), "desk": (1280, 900)}
# of what is broader than the screen: whether it lies in a box that scrolls by itself
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter(e => {
    const r = e.getBoundingClientRect();
    return r.width > 0 && r.right > innerWidth + 1 && !e.closest(".wide, pre");
}).map(e => e.outerHTML.slice(0, 80))"""
BOXES = """() => [...document.querySelectorAll("table")].map(t => {
    const box = t.closest(".wide");
    return box !== null && getComputedStyle(box).overflowX === "auto" && box.clientWidth <= innerWidth;
})"""
IMAGES = "() => [...document.images].map(i => i.complete && i.naturalWidth > 0)"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as program:
        # the sandbox wants a user of its own, which a container does not have
        found = program.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Written pages by name."""
    folder = tmp_path_factory.mktemp("pages")
    config = make(folder)
    write_product(folder / "run" / "analysis-without-olr.zarr", OFFSETS + 0.5)
    verify(config)
    return {"study": write(folder / "study", made()), "verification": folder / "run" / "verify" / "report.html"}


def opened(browser, path, screen):
    """The page, and what it asked for and complained of."""
    width, height = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=2)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    return page, asked, said


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["study", "verification"])
def test_a_page_fits_the_screen_and_needs_nothing(browser, pages, name, screen):
    page, asked, said = opened(browser, pages[name], screen)
    with closing(page):
        width, inner = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert inner == SCREENS[screen][0] and width <= inner
        assert page.evaluate(OUTSIDE) == []
        boxes, images = page.evaluate(BOXES), page.evaluate(IMAGES)
        assert len(boxes) > 2 and all(boxes)
        assert len(images) > 2 and all(images)
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]


def test_a_table_too_broad_for_a_phone_scrolls_and_its_names_stay(browser, pages):
    page, _, _ = opened(browser, pages["study"], "phone")
    with closing(page):
        moved = page.evaluate("""() => {
            const box = [...document.querySelectorAll(".wide")].find(b => b.scrollWidth > b.clientWidth + 50);
            const name = [...box.querySelectorAll("tbody th")].find(h => h.colSpan === 1);
            const cell = name.nextElementSibling;
            const left = e => e.getBoundingClientRect().left, before = [left(name), left(cell)];
            box.scrollLeft = 50;
            return [left(name) - before[0], left(cell) - before[1]];
        }""")
    assert moved == pytest.approx([0, -50], abs=1)


def test_letters_of_figures_are_legible_on_a_phone(browser, pages):
    """Figures are drawn in inches at 9 points; 4.6 inches at 96 pixels on 354 pixels leaves 80 % of that."""
    page, _, _ = opened(browser, pages["study"], "phone")
    with closing(page):
        scale = page.evaluate("() => [...document.images].map(i => i.clientWidth / Number(i.getAttribute('width')))")
    assert min(scale) > 0.75
