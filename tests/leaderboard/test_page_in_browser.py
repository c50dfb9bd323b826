"""The page in a headless browser: it works from a file, by mouse and by keyboard, without network requests."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from browser import watched
from hostile import HTML
from made_results import COLUMNS, fill, folders, page, record, results
from markdown_it import MarkdownIt
from PIL import Image
from test_hostile_names import hostile_report

from cryobench.figures import read_views, write_views
from cryobench.leaderboard.page import to_page
from cryobench.leaderboard.table import leaderboard
from cryobench.results.store import VIEWS

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Callable]:
    """Open a page from a file. In every test, no request is sent and nothing is printed on the console."""
    with watched(browser, height=900) as open_page:

        def open_(html: str, **context):
            file = tmp_path / "page.html"
            file.write_text(html, encoding="utf-8")
            return open_page(file.as_uri(), **context)

        yield open_


@pytest.fixture
def whole(opened, tmp_path):
    """The page of synthetic results with images, on the tab of sumpool:8."""
    records = results()
    tab = opened(page(records, folders(tmp_path / "runs", records)))
    tab.get_by_role("tab", name="sumpool:8", exact=True).click()
    return tab


def names(tab, section: int = 0) -> list[str]:
    return tab.locator("section").nth(section).locator("tbody th code").all_text_contents()


def header(tab, name: str):
    return tab.locator("section").first.locator(f'th[data-column="{name}"]')


def test_a_click_on_a_header_sorts_best_first_and_another_reverses_it(whole):
    assert names(whole) == ["tv", "dct:0.1", "slow", "pinv", "ceiling", "wiener", "broken"]
    header(whole, "psnr").get_by_role("button").click()
    assert header(whole, "psnr").get_attribute("aria-sort") == "descending"
    assert names(whole) == ["ceiling", "tv", "dct:0.1", "slow", "pinv", "wiener", "broken"]
    header(whole, "psnr").get_by_role("button").click()
    assert header(whole, "psnr").get_attribute("aria-sort") == "ascending"
    assert names(whole) == ["pinv", "slow", "dct:0.1", "tv", "ceiling", "wiener", "broken"]  # without a value: last
    header(whole, "mse").get_by_role("button").click()
    assert header(whole, "psnr").get_attribute("aria-sort") is None
    assert names(whole)[:5] == ["ceiling", "tv", "dct:0.1", "slow", "pinv"]


def test_the_keyboard_sorts_and_the_focus_stays(whole):
    header(whole, "seconds_per_image").get_by_role("button").focus()
    whole.keyboard.press("Enter")
    # the ceiling was given a second like dct: equal values keep their order
    assert names(whole)[:5] == ["pinv", "dct:0.1", "ceiling", "tv", "slow"]
    whole.keyboard.press("Space")
    assert names(whole)[:5] == ["slow", "tv", "dct:0.1", "ceiling", "pinv"]
    assert whole.evaluate("document.activeElement.parentNode.dataset.column") == "seconds_per_image"


def test_the_keyboard_moves_between_tabs_which_show_their_operator(opened):
    tab = opened(page(results()))
    tab.get_by_role("tab").first.focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Home", "End"):
        tab.keyboard.press(key)
        (chosen,) = tab.locator('[role="tab"][aria-selected="true"]').all()
        assert chosen.get_attribute("tabindex") == "0"
        assert tab.evaluate("document.activeElement.id") == chosen.get_attribute("id")
        assert tab.locator("main").get_attribute("aria-labelledby") == chosen.get_attribute("id")
        regions = tab.locator("main .scroll").evaluate_all("each => each.map(one => one.getAttribute('aria-label'))")
        assert chosen.text_content() == "Overview" or all(r.startswith(f"{chosen.text_content()}, ") for r in regions)
        seen.append(chosen.text_content())
    operators = ["sumpool:8,count=32", "sumpool:8", "identity"]
    assert seen == [*operators, "Overview", "identity", "Overview", "identity"]
    assert tab.locator('[role="tab"][tabindex="0"]').count() == 1


def test_a_filter_leaves_floor_and_ceiling_and_plots_follow(whole):
    whole.get_by_label("Filter solvers").fill("DCT")
    expect(whole.locator("section").first.locator("tbody tr")).to_have_count(3)
    assert names(whole) == ["dct:0.1", "pinv", "ceiling"]
    assert whole.locator("#tools").get_by_role("status").text_content() == "18 of 42 rows"
    assert whole.locator("section").first.locator("g.box").count() == 3
    assert whole.locator("section").first.locator(".viewer .stage figure").count() == 4
    whole.get_by_label("Filter solvers").fill("skipped white")
    expect(whole.locator("section").first.locator("tbody")).to_contain_text("wiener")
    whole.get_by_label("Filter solvers").fill("")
    expect(whole.locator("section").first.locator("tbody tr")).to_have_count(7)
    whole.get_by_label("noise", exact=True).select_option("gaussian:0.1")
    assert whole.locator("section h2").all_text_contents() == [
        "noise gaussian:0.1 · demo · 4 images · seed 0 · C = 4.00"
    ]


def test_marks_reasons_and_remarks_are_shown(opened):
    origins = {"origin": {"structure": "6zu5"}, "trained_on": [{"structure": "6zu5"}]}
    seen = record("learned", quality=25, problem=origins)
    tab = opened(page([seen, *(r for r in results() if r.operator == "sumpool:8" and r.noise == "none")]))
    rows = {row.locator("code").text_content(): row.text_content() for row in tab.locator("main tbody tr").all()}
    assert "floor" in rows["pinv"]
    assert "not ranked" in rows["ceiling"]
    assert "needs <white> noise & a CTF" in rows["wiener"]
    assert "ValueError: a" in rows["broken"]
    remarks = " ".join(tab.locator(".remarks").all_text_contents())
    assert {"†", "‡"} & set(rows["learned"])
    assert "its prior" in remarks
    assert "4 images" in remarks  # why there is no test


HOSTILE = HTML + "\u2028"


def test_hostile_names_are_text(opened):
    """A solver, a preset, an operator, a noise, a suite's data, a metric, a unit, a device and a reason."""
    metric = {"name": "<script>window.harm=1</script>", "direction": "higher", "unit": HOSTILE}
    names = {"operator": HOSTILE, "noise": HOSTILE, "data": HOSTILE}
    cells = [
        record(solver, environment={"device": HOSTILE, "created": HOSTILE}, columns=[*COLUMNS, metric],
               values={name: [1.0, 2.0, 3.0, 4.5] for name in ("psnr", "mse", metric["name"])},
               unmeasured={metric["name"]: HOSTILE}, **names)
        for solver in (HOSTILE, f"dct@{HOSTILE}")
    ]  # fmt: skip
    failed = record("b", status="failed", reason=HOSTILE, **names)
    tab = opened(page([*cells, failed]))
    assert tab.evaluate("window.harm") is None
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 2
    assert HTML in tab.locator("section tbody").first.text_content()
    assert f"dct@{HTML}" in tab.locator("section tbody").first.text_content()
    for label in tab.get_by_label("Metric").first.locator("option").all_text_contents():
        tab.get_by_label("Metric").first.select_option(label=label)
    assert tab.evaluate("window.harm") is None


def test_a_published_page_with_hostile_names_is_text(opened):
    """The Markdown of `sweep --publish` as HTML, by a converter that keeps HTML: suite, published row, reason."""
    harmless = MarkdownIt("commonmark", {"html": True}).enable("table").render(hostile_report())
    tab = opened(f"<!doctype html><body>{harmless}")
    assert tab.evaluate("window.harm") is None
    assert tab.locator("img, script, svg, a, b").count() == 0
    assert tab.locator("table").count() == 2
    assert HTML in tab.locator("h1").text_content()
    assert HTML in tab.locator("p").first.text_content()
    assert HTML in tab.locator("table td").all_text_contents()


ATTEMPTS = """async (address) => {
    const refused = [];
    document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
    await fetch(address).catch(() => 0);
    new Image().src = address;
    for (const [kind, text] of [["script", "window.harm = 1"], ["style", "body { color: red }"]]) {
        const element = document.createElement(kind);
        element.textContent = text;
        document.body.append(element);
    }
    await new Promise((done) => setTimeout(done, 300));
    return [refused.sort(), window.harm ?? null];
}"""


def test_the_policy_blocks_every_request(browser, tmp_path):
    (tmp_path / "page.html").write_text(page(results()), encoding="utf-8")
    with HTTPServer(("127.0.0.1", 0), Counting) as server:
        server.asked = 0
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        tab = browser.new_page()
        tab.goto(address)
        assert server.asked == 1  # it would be noticed
        tab.goto((tmp_path / "page.html").as_uri())
        refused, harm = tab.evaluate(ATTEMPTS, address)
        tab.close()
        server.shutdown()
    assert refused == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert harm is None
    assert server.asked == 1


class Counting(BaseHTTPRequestHandler):
    """A server that counts requests and sends empty answers."""

    def do_GET(self):
        self.server.asked += self.path == "/"
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


# --- images -----------------------------------------------------------------------------------------------------------

TRANSFORMS = "each => each.map((canvas) => canvas.style.transform)"


def viewer(tab):
    """The first viewer, once it has drawn all its images."""
    found = tab.locator(".viewer").first
    expect(found.locator("canvas:not([aria-label])")).to_have_count(0)
    return found


def test_the_viewer_shows_the_saved_pixels(opened, tmp_path):
    cell = record("a")
    folder = fill(tmp_path / "run", 3, shape=(16, 24))
    tab = opened(page([cell], {cell.hash: folder}))
    stage = viewer(tab)
    views = read_views(folder / VIEWS)
    stage.get_by_role("combobox").select_option("2")
    expect(stage.locator("canvas").nth(1)).to_have_attribute("aria-label", "a, image 2")
    truth, estimate = (image[..., 0] for image in pixels(stage))
    np.testing.assert_array_equal(truth, views.truth[2])
    np.testing.assert_array_equal(estimate, views.reconstruction[2])
    stage.get_by_label("difference to the truth").check()
    expect(stage.locator("canvas").nth(1)).to_have_attribute("aria-label", "a minus truth, image 2")
    _, signed = pixels(stage)
    error = views.reconstruction[2].astype(int) - views.truth[2]
    assert (signed[error > 8, 2] < signed[error > 8, 0]).all()  # orange above
    assert (signed[error < -8, 2] > signed[error < -8, 0]).all()  # violet below
    assert (signed[error == 0] == 247).all()


def test_all_images_zoom_and_move_together_by_keyboard_and_pointer(whole):
    stage = viewer(whole)
    transforms = lambda: set(stage.locator("canvas").evaluate_all(TRANSFORMS))  # noqa: E731
    assert stage.locator("canvas").count() == 6
    at_first = transforms()
    assert len(at_first) == 1
    stage.locator(".stage").focus()
    seen = [at_first]
    for key in ("+", "+", "ArrowRight", "ArrowDown", "-"):
        whole.keyboard.press(key)
        assert len(transforms()) == 1
        assert transforms() not in seen
        seen.append(transforms())
    whole.keyboard.press("0")
    assert transforms() == at_first
    assert stage.locator(".zoomed").text_content() == "1×"
    area = stage.locator(".window").nth(1).bounding_box()
    whole.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 4)
    whole.mouse.wheel(0, -100)
    expect(stage.locator(".zoomed")).not_to_have_text("1×")
    zoomed = transforms()
    assert len(zoomed) == 1
    whole.mouse.down()
    whole.mouse.move(area["x"] + area["width"] / 8, area["y"] + area["height"] / 8, steps=4)
    whole.mouse.up()
    assert len(transforms()) == 1
    assert transforms() != zoomed
    stage.get_by_label("Show the whole image").click()
    assert transforms() == at_first


def test_zooming_keeps_the_point_under_the_pointer(whole):
    stage = viewer(whole)
    stage.scroll_into_view_if_needed()
    box = lambda: stage.locator("canvas").first.bounding_box()  # noqa: E731
    window = stage.locator(".window").first.bounding_box()
    x, y = window["x"] + 0.3 * window["width"], window["y"] + 0.6 * window["height"]
    whole.mouse.move(x, y)
    whole.mouse.dblclick(x, y)
    first = box()
    assert first["width"] == pytest.approx(2 * window["width"], rel=1e-3)
    assert (x - first["x"]) / first["width"] == pytest.approx(0.3, abs=0.01)
    assert (y - first["y"]) / first["height"] == pytest.approx(0.6, abs=0.01)


def test_a_scale_bar_has_the_labelled_length(whole):
    stage = viewer(whole)
    for _ in range(3):
        bar = stage.locator(".scalebar").first
        length = float(bar.text_content().split()[0])
        image = stage.locator("canvas").first.bounding_box()
        assert bar.text_content().endswith("Å")
        # 16 pixels of 2 Å across
        assert bar.bounding_box()["width"] / image["width"] * 32 == pytest.approx(length, rel=0.02)
        stage.get_by_label("Zoom in").click()


def test_rows_that_have_their_images_in_another_order_show_the_same_one(opened, tmp_path):
    first, second = record("a", quality=30), record("b")
    second.images = second.images[::-1]
    places = {cell.hash: fill(tmp_path / cell.solver, seed) for seed, cell in enumerate((first, second))}
    views = read_views(places[second.hash] / VIEWS)
    write_views(views.truth[::-1] / 127.5 - 1, views.reconstruction[::-1] / 127.5 - 1, images=second.images,
                pixel_size=2.0, path=places[second.hash] / VIEWS)  # fmt: skip
    tab = opened(page([first, second], places))
    assert tab.locator("section").count() == 1
    shown = viewer(tab)
    shown.get_by_role("combobox").select_option("1")
    expect(shown.locator("canvas").nth(2)).to_have_attribute("aria-label", "b, image 1")
    np.testing.assert_array_equal(pixels(shown)[2][..., 0], views.reconstruction[1])
    assert f"{second.values['psnr'][2]:.2f}" in shown.locator("figcaption").nth(3).text_content()


def pixels(stage) -> list[np.ndarray]:
    """The pixels of the canvases, uint8 [H, W, 3] each."""
    urls = stage.locator("canvas").evaluate_all("each => each.map((canvas) => canvas.toDataURL())")
    images = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    return [np.asarray(image.convert("RGB")) for image in images]


# --- plots ------------------------------------------------------------------------------------------------------------


def titles(place) -> list[str]:
    return place.locator("title").all_text_contents()


def test_a_published_leaderboard_has_no_spread_over_images_and_states_when_it_was_made(opened):
    tab = opened(to_page(leaderboard(results()), (), lambda _: None, made="Made on 2026-11-22 with cryobench 0.1.0"))
    expect(tab.locator("#about")).to_contain_text(re.compile(r"Made on 2026-11-22 with cryobench 0\.1\.0$"))
    tab.get_by_role("tab", name="sumpool:8", exact=True).click()
    expect(tab.get_by_text("Quality against").first).to_be_visible()
    expect(tab.get_by_text("Spread over images")).to_have_count(0)


def test_boxes_are_the_quartiles_of_the_images(whole):
    told = [text for text in titles(whole.locator("section").first) if "median" in text]
    assert len(told) == 5
    values = {r.solver: r.values["psnr"] for r in results() if r.operator == "sumpool:8" and r.status == "ok"}
    for text in told:
        solver = text.partition(":  ")[0].rpartition(": median")[0].removesuffix(" (floor)")
        found = [float(number) for number in re.findall(r"-?\d+\.?\d*", text.rpartition(": median")[2])]
        expected = np.quantile(values[solver], [0.5, 0.25, 0.75, 0, 1])
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_pareto_front_is_that_of_brute_force(whole):
    ran = [r for r in results() if (r.operator, r.noise, r.status) == ("sumpool:8", "none", "ok") and not r.ceiling]
    points = {r.solver: (r.timing["seconds_per_image"], -np.mean(r.values["psnr"])) for r in ran}
    front = {s for s, p in points.items() if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points.values())}
    label = whole.locator("section").first.locator("svg[aria-label*='Pareto']").get_attribute("aria-label")
    told = label.partition("front: ")[2].rstrip(".").split(", ")
    assert {name.removesuffix(" (floor)") for name in told} == front


def test_curves_over_compression_join_the_solvers_of_one_noise(opened):
    tab = opened(page(results()))
    plots = tab.locator("figure.plot")
    assert plots.count() == 2
    for plot in plots.all():
        # two operators, five solvers, references among them
        assert plot.locator("path.line").count() == 5 + 5  # and in the legend
        assert plot.locator("g.point").count() == 10
    assert plots.get_by_text("effective compression N / rank(A)").count() == 2
    paths = plots.first.locator(".area path.line").evaluate_all("each => each.map((path) => path.getAttribute('d'))")
    assert len(set(paths)) == 5
    looks = plots.first.locator(".area path.line").evaluate_all(
        "each => each.map((path) => path.getAttribute('stroke-dasharray'))"
    )
    assert len(set(looks)) == 5  # distinguishable without colour


def test_ring_correlations_are_drawn_in_the_units_that_are_known(whole, opened, tmp_path):
    assert whole.get_by_text("spatial frequency (1/Å)").count() == 2
    unknown = record("a", problem={"image_shape": [16, 16], "pixel_size_angstrom": [None] * 4})
    other = opened(page([unknown], {unknown.hash: fill(tmp_path / "other", 1)}))
    assert other.get_by_text("spatial frequency (cycles/pixel)").count() == 1


def test_correlations_of_volumes_are_those_of_shells(opened, tmp_path):
    volumes = record("a", problem={"image_shape": [16, 16, 16], "pixel_size_angstrom": [2.0] * 4})
    shown = opened(page([volumes], {volumes.hash: fill(tmp_path / "volumes", 1)}))
    assert shown.locator("figcaption", has_text="Fourier shell correlation with the truth").count() == 1
    assert shown.get_by_text("Mean over volumes").count() > 0
    assert shown.get_by_text("ring correlation").count() == 0


# --- size, width, colour, paper ---------------------------------------------------------------------------------------


def test_only_visible_parts_of_ten_thousand_rows_are_rendered(opened):
    many = [record(f"solver:{k // 1000}", f"sumpool:{k % 4}", 20 + k / 997, seed=k % 1000) for k in range(10_000)]
    tab = opened(page([record("pinv", "sumpool:1", 1.0, floor=True, seed=1), *many]))
    assert tab.evaluate("document.querySelectorAll('*').length") < 5_000
    tab.get_by_role("tab", name="sumpool:1").click()
    assert tab.locator("section").count() == 8
    assert tab.evaluate("document.querySelectorAll('*').length") < 60_000
    assert tab.locator("section").first.locator("tbody tr.floor").count() == 1
    tab.get_by_role("button", name=re.compile("^More of")).click()
    assert tab.locator("section").count() == 16


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_is_not_wider_than_the_window(opened, tmp_path, width):
    records = [record("a_very_long_solver_name:with=parameters,that=go,on=and,on=and,on=until,the=end"), *results()]
    tab = opened(page(records, folders(tmp_path / "r", records)), viewport={"width": width, "height": 800})
    for place in range(3):
        tab.get_by_role("tab").nth(place).click()
        assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_dark_mode_is_dark_and_print_is_white(opened):
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b) / 3"
    contrast = f"[{lightness}, {lightness.replace('backgroundColor', 'color')}]"
    ground, ink = (tab := opened(page(results()), color_scheme="dark")).evaluate(contrast)
    assert ground < 60
    assert ink > 190
    tab.emulate_media(media="print")
    ground, ink = tab.evaluate(contrast)
    assert ground == 255
    assert ink == 0
    assert not tab.locator("#tools").is_visible()
    assert tab.locator("main table").first.is_visible()


def test_every_control_has_an_accessible_name(whole):
    viewer(whole)
    unnamed = whole.evaluate("""() => [...document.querySelectorAll("button, input, select, [role=img]")]
        .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim() || each.labels?.length))
        .map((each) => each.outerHTML)""")
    assert unnamed == []


def test_a_page_without_results_shows_the_reasons(opened):
    tab = opened(page([record("a", status="failed", reason="why")]))
    assert "why" in tab.locator("section").text_content()
    assert Path(tab.url.removeprefix("file://")).exists()
