import io
import json
import math
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from cryobench.leaderboard.render import rich_tables, to_csv, to_html, to_json
from cryobench.leaderboard.table import leaderboard
from cryobench.record import Record

PSNR = {"name": "psnr", "direction": "higher", "unit": "dB"}
MSE = {"name": "mse", "direction": "lower", "unit": ""}
NAMES = ("mse", "mae", "psnr", "ssim", "l2", "measurement_mse")
COLUMNS = [MSE | {"name": name} for name in NAMES]
COLUMNS[2] = PSNR


def record(solver: str = "pinv", psnr: tuple[float | None, ...] = (20.0, 22.0), **changes: Any) -> Record:
    """A cell that ran and has one metric."""
    fields: dict[str, Any] = {"hash": "0", "status": "ok", "reason": "", "solver": solver, "operator": "sumpool:16"}
    fields |= {"noise": "none", "data": "demo", "seed": 0, "images": [f"demo@{i}" for i in range(len(psnr))]}
    fields |= {"compression": 4.0, "values": {"psnr": list(psnr)}, "columns": [PSNR], "peak_memory_mib": 512.0}
    fields |= {"timing": {"seconds_per_image": 0.5}, "counters": {"nfe": 0.0, "operator_calls": 3.0}}
    fields |= {"problem": {"data_digest": "aaaa1111"}, "environment": {"device": "cpu", "version": "0.1.0"}}
    return Record(**(fields | changes))


def absent(status: str, solver: str, reason: str) -> Record:
    """A cell that did not run."""
    return Record("0", status, reason, solver, "sumpool:16", "none", "demo", 0, [])  # type: ignore[arg-type]


def cell(solver: str, mse: float, **changes) -> Record:
    """A cell of four images and the six metrics."""
    errors = [mse * factor for factor in (0.8, 0.9, 1.1, 1.2)]
    values = dict.fromkeys(NAMES, errors) | {"psnr": [-10 * math.log10(error) for error in errors]}
    images = [f"demo@{i}" for i in range(4)]
    return record(solver, **({"images": images, "values": values, "columns": COLUMNS} | changes))


def text(frame: pd.DataFrame, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, force_terminal=False, legacy_windows=False).print(rich_tables(frame))
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.fixture
def frame() -> pd.DataFrame:
    return leaderboard([
        cell("pinv", 0.0022, floor=True),
        cell("tv:lam=0.01,iterations=200", 0.0019),
        cell("pinv", 0.004, floor=True, operator="fourier:0.25,mask=fourier_ring"),
        cell("diffusion:prior=hf:owner/a-name-that-goes-on-for-long", 0.001, operator="fourier:0.25,mask=fourier_ring"),
        absent("skipped", "dmplug", reason="needs a diffusion prior;\nnone was given [see docs]"),
        absent("failed", "ddnm", reason="RuntimeError: [/bold] out of memory"),
    ])  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 120, 160, 400])
def test_fits_the_width(frame, width):
    shown = text(frame, width)
    ranking = 48 if width == 40 else width  # rank, solver and the ranking metric stay
    assert max(map(len, shown.splitlines())) <= ranking
    assert "…" not in shown


def test_titles_of_groups(frame):
    shown = text(frame)
    assert "sumpool:16 · noise none · demo, 4 images · seed 0 · C = 4.00" in shown
    assert "fourier:0.25,mask=fourier_ring · noise none · demo, 4 images · seed 0 · C = 4.00" in shown
    assert ", 1 image ·" in text(leaderboard([record(psnr=(20.0,))]))


def test_the_ranking_metric_with_interval_and_the_floor_in_words(frame):
    line = next(line for line in text(frame).splitlines() if "pinv (floor)" in line)
    row = frame[(frame["solver"] == "pinv")].iloc[0]
    assert line.startswith("2")
    assert f"{row['psnr']:.2f} [{row['psnr_lo']:.2f}, {row['psnr_hi']:.2f}]" in line
    assert "psnr ↑ dB" in text(frame)
    assert "mse ↓" in text(frame)


def test_the_ceiling_is_shown_and_explained_and_never_the_best():
    clean = [PSNR, PSNR | {"name": "psnr_clean"}]
    values = {"psnr": [20.0, 22.0], "psnr_clean": [25.0, 27.0]}
    solver = record("tv", columns=clean, values=values)
    ceiling = record("ceiling", (40.0, 41.0), ceiling=True, timing={}, counters={}, peak_memory_mib=None)
    frame = leaderboard([solver, ceiling])
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, color_system="standard").print(rich_tables(frame))
    bold = [line for line in out.getvalue().splitlines() if line.startswith("\x1b[1m1")]
    assert len(bold) == 1
    assert "tv" in bold[0]
    shown = text(frame, 100)
    line = next(line for line in shown.splitlines() if line.startswith("–"))
    assert line.split()[:3] == ["–", "ceiling", "40.50"]
    assert "ceiling: a bound on psnr to the measured image, made of the clean one; not ranked" in shown
    assert "no mean" not in shown  # what the ceiling has not was not asked of it
    assert "no mean" in text(leaderboard([solver, ceiling, record("odd", (None, 1.0))]), 100)
    assert "ceiling" not in text(leaderboard([solver]))
    page = to_html(frame)
    assert "<td>–</td><td>ceiling</td>" in page
    assert "not ranked" in page
    assert text(frame, 100, encoding="ascii").isascii()


def test_what_does_not_fit_is_named(frame):
    narrow, wide = text(frame, 80), text(frame, 400)
    assert "not shown at this width, but in the CSV:" in narrow
    assert "measurement_mse" in " ".join(narrow.split())
    assert "not shown" not in wide
    for header in ("psnr ↑ dB", "measurement_mse ↓", "NFE", "calls", "MiB"):
        assert header in wide


def test_another_ranking_metric_comes_first():
    cells = [cell("a", 0.01, timing={"seconds_per_image": 0.0123}), cell("b", 0.02)]
    assert text(leaderboard(cells, by="mse")).splitlines()[1].split()[0] == "mse"
    assert "0.012" in text(leaderboard(cells, by="seconds_per_image"))


def test_reasons_are_shown_as_they_are(frame):
    shown = " ".join(text(frame).split())
    assert "skipped dmplug: needs a diffusion prior; none was given [see docs]" in shown
    assert "failed ddnm: RuntimeError: [/bold] out of memory" in shown


def test_only_skips():
    shown = text(leaderboard([absent("skipped", "tv", reason="no torch")]))
    assert "skipped tv: no torch" in shown
    assert "sumpool:16" in shown
    assert "no results" in text(leaderboard([]))


def test_markup_and_terminal_codes_are_text():
    shown = text(leaderboard([cell("x:[red]y[/red]", 0.1, data="a\x1b[31mb")]))
    assert "x:[red]y[/red]" in shown
    assert "\x1b" not in shown


def test_ascii_output(frame):
    shown = text(frame, encoding="ascii")
    assert shown.isascii()
    assert "psnr ^ dB" in shown
    assert "?" not in shown


def test_missing_and_infinite_means():
    cells = [record("exact", (math.inf, 30.0)), record("half", (None, 30.0)), record("good")]
    shown = text(leaderboard(cells))
    assert "inf" in shown
    assert "no mean: not measured, or not defined for every image" in shown
    assert "no mean" not in text(leaderboard([record()]))


def test_rows_of_different_machines_are_told():
    cells = [record("a"), record("b", environment={"device": "cuda", "version": "0.1.0"})]
    assert "more than one device: cpu, cuda" in text(leaderboard(cells))
    assert "more than one" not in text(leaderboard(cells[:1]))


@pytest.mark.parametrize(("value", "shown"), [(0.8523, "0.852"), (123.4, "123"), (0.0, "0"), (2.5e-9, "2.5e-09")])
def test_digits_of_a_mean(value, shown):
    values = {"psnr": [20.0, 21.0], "mse": [value, value]}
    assert f" {shown} " in text(leaderboard([record(columns=[PSNR, MSE], values=values)]))


def test_csv_round_trip(frame):
    back = pd.read_csv(io.StringIO(to_csv(frame)), keep_default_na=False, na_values=[""])
    assert list(back.columns) == list(frame.columns)
    for name in frame.columns:
        if frame[name].dtype == "float64":
            pd.testing.assert_series_equal(
                back[name].astype("float64"), frame[name].reset_index(drop=True), check_exact=True
            )
        else:
            left, right = ([None if pd.isna(value) else value for value in one[name]] for one in (back, frame))
            assert left == [value if value != "" else None for value in right]


def test_csv_leaves_missing_empty():
    header, line = to_csv(leaderboard([record(psnr=(25.0,))])).splitlines()
    row = dict(zip(header.split(","), line.split(","), strict=True))
    assert (row["rank"], row["psnr"], row["psnr_lo"], row["psnr_hi"]) == ("1", "25.0", "", "")


def test_json(frame):
    rows = json.loads(to_json(frame), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [row["solver"] for row in rows] == frame["solver"].tolist()
    assert list(rows[0]) == list(frame.columns)
    assert rows[0]["psnr"] == frame["psnr"].iloc[0]
    skipped = next(row for row in rows if row["status"] == "skipped")
    assert (skipped["rank"], skipped["psnr"], skipped["device"]) == (None, None, None)
    assert json.loads(to_json(leaderboard([record(psnr=(math.inf, 1.0))])))[0]["psnr"] == "inf"
    assert json.loads(to_json(leaderboard([]))) == []


def test_html_is_escaped_and_complete(frame):
    cells = [cell("<script>alert(1)</script>", 0.1), absent("skipped", "tv", reason="a < b & c")]
    page = to_html(leaderboard(cells))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "skipped tv: a &lt; b &amp; c" in page
    page = to_html(frame)
    assert page.count("<table>") == page.count("</table>") == 2
    assert page.count("pinv (floor)") == 2
    assert "measurement_mse ↓ [95% interval]" in page
    assert "no results" in to_html(leaderboard([]))
