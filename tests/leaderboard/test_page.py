"""The page as text: its contents and its escaping. For its behaviour see test_page_in_browser.py."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from made_results import fill, folders, page, record, results
from PIL import Image

from cryobench.figures import read_views
from cryobench.leaderboard.page import content, embedded, to_page
from cryobench.leaderboard.page.families import COMPRESSION, axis, families
from cryobench.leaderboard.table import leaderboard
from cryobench.results.store import VIEWS


def data_of(html: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    return json.loads(text)


def test_the_page_contains_the_table_row_by_row_for_any_order_of_the_records():
    records = results()
    frame = leaderboard(records)
    data = data_of(page(records[::-1]))
    again = leaderboard(records[::-1])
    assert data == data_of(page(records[::-1]))
    solver = data["texts"]["solver"]
    assert [solver["distinct"][code] for code in solver["codes"]] == list(again["solver"])
    known = [None if np.isnan(value) else pytest.approx(value, rel=1e-5) for value in again["psnr_lo"]]
    assert data["numbers"]["psnr_lo"] == known
    by_hash = {record.hash: record for record in records}
    for box, hash in zip(data["boxes"]["psnr"], again.index.get_level_values("hash"), strict=True):
        values = by_hash[hash].values.get("psnr")
        assert box == (values and pytest.approx(values, rel=1e-5))
    assert sorted(data["role"]) == sorted(data_of(page(records))["role"])
    assert len(data["role"]) == len(frame)


def test_removed_rows_are_not_in_the_page():
    records = results()
    frame = leaderboard(records)
    kept = frame[frame["solver"] != "tv"]
    kept.attrs |= frame.attrs
    data = data_of(to_page(kept, records, {}.get))
    assert len(data["role"]) == len(kept)
    assert "tv" not in data["texts"]["solver"]["distinct"]


HOSTILE = '</script><script>window.harm=1</script><img src=x onerror="window.harm=1"><!-- {{script}} &lt; \u2028'


def test_texts_of_records_are_escaped():
    html = page([record(HOSTILE, operator=HOSTILE, data=HOSTILE, noise=HOSTILE)])
    assert html.count("<script") == 2
    assert "<img" not in html
    assert "<!--" not in html
    assert data_of(html)["texts"]["solver"]["distinct"] == [HOSTILE]


def test_the_policy_allows_only_this_style_and_this_script():
    html = page(results())
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    for kind, text in (("style-src", style), ("script-src", script)):
        assert rules[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert set(rules) == {"default-src", "style-src", "script-src", "img-src", "base-uri", "form-action"}


def test_infinite_and_missing_numbers_survive():
    assert content.numbers([float("inf"), 3.0, float("nan"), 1e-7]) == ["Infinity", 3, None, 1e-7]
    exact = record("exact", quality=float("inf"))
    data = data_of(page([exact, record("other")]))
    assert "Infinity" in data["numbers"]["psnr"]
    assert ["Infinity"] * 4 in data["boxes"]["psnr"]


def test_many_images_are_summarised_by_five_numbers():
    many = record("many", images=content.DOTS + 1)
    few = record("few", images=content.DOTS)
    boxes = data_of(page([many, few]))["boxes"]["psnr"]
    assert boxes[0] == pytest.approx(np.quantile(many.values["psnr"], [0, 0.25, 0.5, 0.75, 1]), rel=1e-5)
    assert boxes[1] == pytest.approx(few.values["psnr"], rel=1e-5)


def test_box_plots_stop_at_a_number_of_values_with_the_ranking_metric_first(monkeypatch):
    records = results()
    ran = sum(len(r.images) for r in records if r.status == "ok")
    monkeypatch.setattr(content, "MAX_VALUES", ran)
    assert set(data_of(page(records, by="mse"))["boxes"]) == {"mse"}
    monkeypatch.setattr(content, "MAX_VALUES", 2 * ran)
    assert set(data_of(page(records))["boxes"]) == {"psnr", "mse"}


def test_images_and_ring_correlations_are_embedded_and_a_shared_truth_once(tmp_path):
    records = [record("a"), record("b", quality=19)]
    data = data_of(page(records, folders(tmp_path, records)))
    assert len(data["pictures"]) == 4 + 2 * 4
    assert data["views"]["0"]["truth"] == data["views"]["1"]["truth"]
    for row in ("0", "1"):
        views = read_views(tmp_path / f"cell-{row}" / VIEWS)
        for kind in ("truth", "reconstruction"):
            for place, pixels in zip(data["views"][row][kind], getattr(views, kind), strict=True):
                np.testing.assert_array_equal(decoded(data["pictures"][place]), pixels)
        rings = np.linspace(1, 0.1, 8) ** (1 + 0.1 * int(row))
        np.testing.assert_allclose(np.array(data["frc"][row]) / 1000, rings, atol=5e-4)
    assert data["left_out"] == 0


def decoded(text: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image)


@pytest.mark.parametrize("content_of_file", [b"", b"no archive", None])
def test_a_damaged_or_missing_file_only_removes_its_picture(tmp_path, content_of_file):
    records = [record("a"), record("b", quality=19)]
    places = folders(tmp_path, records)
    for file in list(places[records[0].hash].iterdir()):
        file.unlink() if content_of_file is None else file.write_bytes(content_of_file)
    data = data_of(page(records, places))
    assert set(data["views"]) == set(data["frc"]) == {"1"}


def test_rows_beyond_the_limit_are_counted_and_every_comparison_is_embedded_first(tmp_path, monkeypatch):
    records = [record(solver, operator, quality) for operator in ("identity", "fourier:0.5")
               for solver, quality in (("a", 21), ("b", 20), ("c", 19))]  # fmt: skip
    places = folders(tmp_path, records)
    monkeypatch.setattr(embedded, "MAX_ROWS", 4)
    data = data_of(page(records, places))
    assert set(data["views"]) == {"0", "1", "3", "4"}
    assert data["left_out"] == 2
    monkeypatch.setattr(embedded, "PICTURE_BYTES", 1)
    data = data_of(page(records, places))
    assert set(data["views"]) == {"0"}
    assert data["left_out"] == 5


def test_with_many_rows_tables_are_complete_and_details_are_those_of_the_first_records(tmp_path, monkeypatch):
    records = [record("a"), record("b", quality=21), record("c", quality=22)]
    places = folders(tmp_path, records)
    full = data_of(page(records, places))
    monkeypatch.setattr("cryobench.leaderboard.page.MAX_DETAILED", 2)
    data = data_of(page(records, places))
    assert data["texts"] == full["texts"]
    assert set(full["numbers"]) - set(data["numbers"]) == {"mse_lo", "mse_hi"}
    assert all(full["numbers"][name] == values for name, values in data["numbers"].items())
    assert [box is not None for box in data["boxes"]["psnr"]] == [False, True, True]
    assert set(data["views"]) == {"1", "2"}
    assert data["left_out"] == 1


# --- families of operators --------------------------------------------------------------------------------------------


def test_a_family_differs_in_one_parameter():
    found = families(["sumpool:8,count=8", "sumpool:8,count=16", "sumpool:4,count=16", "sumpool:8", "fourier:0.5"])
    assert {family.pattern: family.values for family in found} == {
        "sumpool:8,count=x": {"sumpool:8,count=8": "8", "sumpool:8,count=16": "16", "sumpool:8": None},
        "sumpool:x,count=16": {"sumpool:8,count=16": "8", "sumpool:4,count=16": "4"},
    }


def test_families_of_composed_operators_and_invalid_specs():
    found = families(["sumpool:4@ctf", "sumpool:8@ctf", "sumpool:8@fourier:0.5", "sumpool:8@fourier:0.25", '"', "a,,"])
    assert {family.pattern for family in found} == {"sumpool:x@ctf", "sumpool:8@fourier:x"}
    assert families([]) == families(["identity"]) == families(["identity", "identity"]) == []


def test_a_curve_runs_along_the_compression_where_it_differs_else_along_the_parameter():
    (family,) = families(["sumpool:16", "sumpool:4", "sumpool:8"])
    one = [(0, "sumpool:16", 4.0), (1, "sumpool:4", 4.0), (2, "sumpool:8", 4.001)]
    assert axis(family, one) == ("x of sumpool:x", [(1, 4.0), (2, 8.0), (0, 16.0)])
    other = [(0, "sumpool:16", 4.0), (1, "sumpool:4", 2.0), (2, "sumpool:8", 3.0)]
    assert axis(family, other) == (COMPRESSION, [(1, 2.0), (2, 3.0), (0, 4.0)])
    assert axis(family, other[:1]) is None
    (masks,) = families(["sumpool:8,mask=checkerboard", "sumpool:8,mask=superres"])
    words = [(0, "sumpool:8,mask=checkerboard", 4.0), (1, "sumpool:8,mask=superres", 4.0)]
    assert axis(masks, words) is None


def test_a_curve_stays_within_one_noise_and_data_set():
    curves = data_of(page(results()))["curves"]
    assert [(curve["family"], [x for _, x in curve["points"]]) for curve in curves] == [
        ("sumpool:8,count=x", [2, 4])
    ] * 2
    assert {curve["context"].split(" · ")[0] for curve in curves} == {"noise none", "noise gaussian:0.1"}


def test_ten_thousand_rows_make_a_page_of_a_few_megabytes(tmp_path):
    records = [
        record(f"solver:{solver}", f"sumpool:{operator}", 20 + solver / 7, seed=operator)
        for operator in range(1000)
        for solver in range(10)
    ]
    html = page(records, {records[0].hash: fill(tmp_path / "one", 1)})
    assert len(data_of(html)["role"]) == 10_000
    assert len(html) < 8_000_000
