"""The page of an analysis in a headless browser: clusters, particles and traversals, by mouse and by keyboard."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import analysis_toys as toys
import numpy as np
import pytest
from browser import watched
from PIL import Image

from cryobench.analysis.latents import principal_components
from cryobench.analysis.task import AnalysisTask
from cryobench.results.heterogeneity import read_heterogeneity

pytestmark = pytest.mark.slow

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture
def opened(browser, install_plugin, tmp_path) -> Iterator:
    """Open the page of an analysis. In every test, no request is sent and nothing is printed on the console."""
    registry = toys.install(install_plugin)
    with watched(browser, height=1000) as open_page:

        def open_(dimensions: int = 2, task: AnalysisTask | None = None, **context):
            toys.save(tmp_path / "run", registry, "demo:4", None, dimensions=dimensions)
            task = task or AnalysisTask(3, points=5, particles=False)
            task.run(read_heterogeneity(tmp_path / "run", registry), tmp_path / "a", registry)
            return open_page((tmp_path / "a" / "index.html").as_uri(), **context)

        yield open_


def sections(place) -> list[np.ndarray]:
    """The pixels of the images in a part of the page, across x, y and z."""
    sources = place.locator("img").evaluate_all("each => each.map(one => one.src)")
    return [np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in sources]


def blob(place) -> tuple[float, float]:
    """(x, y) of the brightest pixel across z, from the centre."""
    y, x = np.unravel_index(sections(place)[2].argmax(), (toys.SIDE, toys.SIDE))
    return float(x) - toys.SIDE // 2, float(y) - toys.SIDE // 2


def test_a_click_on_a_cluster_shows_its_map(opened):
    tab = opened()
    buttons = tab.locator("#clusters button")
    assert buttons.all_text_contents() == ["1: 30", "2: 20", "3: 10"]
    assert tab.locator("#chosen").text_content().startswith("Cluster 1: 30 particles (50.0%).")
    for number, place in enumerate([(-4, 0), (4, 0), (4, 4)]):
        buttons.nth(number).click()
        assert blob(tab.locator("#map")) == place
        assert [buttons.nth(n).get_attribute("aria-pressed") for n in range(3)].index("true") == number
    across_x, across_y, _ = sections(tab.locator("#map"))  # [z, y] and [z, x]: the centre is off the blob
    assert across_x.max() < 255
    assert across_y.max() < 255
    assert tab.locator("#map figcaption").all_text_contents() == [
        "x = 8 (y →, z ↓)", "y = 8 (x →, z ↓)", "z = 8 (x →, y ↓)"]  # fmt: skip
    assert tab.locator("#map img").nth(1).get_attribute("alt") == "cluster 3: central section across y"


def test_a_click_on_a_particle_says_what_it_is_and_shows_the_nearest_map(opened):
    tab = opened()
    z = toys.latents(60)
    box = tab.locator("#scatter").bounding_box()
    # the group at (-2, 0) is at one end of the first component, alone
    along, second = principal_components(z).coordinates.T
    place = along.argmin()
    x = 34
    y = (box["height"] - 34) + (second[place] - second.min()) * (12 - (box["height"] - 34)) / np.ptp(second)
    tab.mouse.click(box["x"] + x, box["y"] + y)
    assert tab.locator("#chosen").text_content().startswith(f"Image {place}, of cluster 1. Nearest map: ")
    assert blob(tab.locator("#map"))[0] == -4
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + 5)  # nothing is there
    assert tab.locator("#chosen").text_content().startswith(f"Image {place}, ")


def test_the_keyboard_moves_between_particles(opened):
    tab = opened()
    tab.locator("#scatter").focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        tab.keyboard.press(key)
        seen.append(tab.locator("#chosen").text_content())
    assert seen[0] == seen[2] != seen[1]
    assert all(text.startswith("Image ") and "cluster 1" in text for text in seen)
    tab.locator("#clusters button").nth(1).focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#chosen").text_content().startswith("Cluster 2: 20 particles")


def test_a_slider_moves_along_a_component(opened):
    tab = opened()
    card = tab.locator("#traversals section").first
    slider = card.locator("input")
    slider.focus()
    places = []
    for key in ("Home", "ArrowRight", "ArrowRight", "End"):
        tab.keyboard.press(key)
        places.append(blob(card)[0])
        point = slider.get_attribute("aria-valuetext").split(":")[0]
        assert point == card.locator("output").text_content().split(":")[0]
    latents = principal_components(toys.latents(60)).traversal(0, 5)[1]
    assert places == np.round(2 * latents[[0, 1, 2, 4], 0]).tolist()
    assert places == sorted(places)
    assert tab.locator("#traversals section").count() == 2


def test_what_is_drawn_follows_light_and_dark(opened):
    tab = opened(color_scheme="light")
    drawn = "document.getElementById('scatter').toDataURL()"
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(drawn), tab.evaluate(ground)
    tab.emulate_media(color_scheme="dark")
    for _ in range(100):  # wait_for_function would evaluate text in the page, which its policy forbids
        if tab.evaluate(drawn) != light[0]:
            break
        tab.wait_for_timeout(50)
    assert tab.evaluate(drawn) != light[0]
    assert tab.evaluate(ground) != light[1]


def test_latents_of_one_dimension_are_a_line(opened):
    tab = opened(1)
    assert "the height has no meaning" in tab.locator("#axes").text_content()
    assert tab.locator("#traversals section").count() == 1


def test_one_map_has_no_latents(opened):
    tab = opened(0, AnalysisTask(particles=False))
    assert tab.locator("#chosen").text_content() == "One map for all particles."
    assert tab.locator("#map img").count() == 3
    assert tab.locator("canvas").count() == 0


def test_a_narrow_window_does_not_scroll_sideways(opened):
    tab = opened(viewport={"width": 360, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_page_is_small(opened, tmp_path):
    opened()
    assert (tmp_path / "a" / "index.html").stat().st_size < 100_000
