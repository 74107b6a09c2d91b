"""A run's page in a real browser: nothing fetched, nothing logged, usable with keyboard and pointer."""

import shutil

import page_run
import pytest

from dml import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    cli.set_up_log()
    folder = tmp_path_factory.mktemp("browser")
    directory = page_run.train(page_run.images(folder / "images"), folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        page_run.without_umap(patch)
        page_run.written(directory)
    return directory / "report.html"


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip(
            "PAGES NOT TESTED IN A BROWSER: there is no chromium (apt-get install chromium)"
        )
    sync = pytest.importorskip("playwright.sync_api", reason="PAGES NOT TESTED: no playwright")
    with sync.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, path):
    """Opens the page; at the end there must have been no message and no request."""
    heard: list[str] = []
    contexts = []

    def open_page(**more):
        context = browser.new_context(**more)
        contexts.append(context)
        view = context.new_page()
        view.on("console", lambda message: heard.append(message.text))
        view.on("pageerror", lambda error: heard.append(str(error)))
        view.on("request", lambda r: r.url.startswith(("file:", "data:")) or heard.append(r.url))
        view.goto(path.as_uri())
        return view

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []


def background(view) -> str:
    return view.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_dark_and_the_switch(opened):
    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    assert background(light) != background(dark)
    white = background(light)
    for wanted in (white, background(dark), white):  # light, dark, as the system
        light.click("#theme")
        assert background(light) == wanted
    dark.click("#theme")
    assert background(dark) == white


def test_tab_goes_to_the_map_and_past_it(opened):
    view = opened(viewport={"width": 1280, "height": 900})
    seen = []
    for _ in range(200):
        view.keyboard.press("Tab")
        seen.append(
            view.evaluate("(e => e.id || e.className || e.tagName)(document.activeElement)")
        )
        if seen[-1] == "BODY":
            break
    assert seen[0] == "skip"
    points = [name for name in seen if name.startswith("point-")]
    assert len(points) == 1, "the map is one stop, whatever the number of its points"
    assert seen.index("highlight") < seen.index(points[0]) < len(seen) - 1
    assert "to-map" in seen


def test_focus_shows_the_picture_and_arrows_move(opened):
    view = opened()
    view.focus("#point-0")
    card = view.locator("#card")
    assert card.is_visible()
    assert card.locator(".picture").count() == 2
    first = card.inner_text()
    moved = []
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "End", "Home"):
        view.keyboard.press(key)
        moved.append(view.evaluate("document.activeElement.id"))
        assert card.is_visible()
    assert moved[-2:] == ["point-39", "point-0"]
    assert len(set(moved)) > 2
    assert card.inner_text() == first
    view.keyboard.press("Enter")
    nearest = view.evaluate(
        "JSON.parse(document.getElementById('map-data').textContent).nearest[0]"
    )
    assert view.evaluate("document.activeElement.id") == f"point-{nearest}"
    view.keyboard.press("Escape")
    assert card.is_hidden()


def test_the_pointer_shows_pictures_that_are_there(opened):
    view = opened()
    view.locator("#map-picture").scroll_into_view_if_needed()
    for number in (0, 17, 39):
        box = view.locator(f"#point-{number}").bounding_box()
        view.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert view.locator("#card").is_visible()
        assert view.evaluate(
            "[...document.querySelectorAll('#card img')].every(i => i.complete && i.naturalWidth > 0)"
        )
    view.mouse.move(0, 0)
    assert view.locator("#card").is_hidden()


def test_gallery_pictures_are_drawn(opened):
    """An empty `use` would leave the tile's plain background."""
    import io

    from PIL import Image

    view = opened()
    tile = view.locator(".nearest .picture").first
    tile.scroll_into_view_if_needed()
    with Image.open(io.BytesIO(tile.screenshot())) as shot:
        assert len(shot.convert("RGB").getcolors(1 << 20) or []) > 50


def test_a_link_leads_from_a_query_to_its_point(opened):
    view = opened()
    link = view.locator("a.to-map").first
    wanted = link.get_attribute("href").removeprefix("#")
    link.click()
    assert view.evaluate("document.activeElement.id") == wanted
    assert view.locator("#card").is_visible()


def test_a_narrow_screen_needs_no_sideways_scrolling(opened):
    view = opened(viewport={"width": 390, "height": 844})
    assert view.evaluate("document.documentElement.scrollWidth") == 390


def test_without_scripts_everything_but_the_map_is_there(opened):
    view = opened(java_script_enabled=False)
    assert view.locator("h1").is_visible()
    assert view.locator(".nearest .picture").first.is_visible()
    assert view.locator("#theme").is_hidden()
    assert view.locator("a.to-map").first.is_hidden()
