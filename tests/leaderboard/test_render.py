import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from board_records import MSE, PSNR, RATE, absent, record
from rich.console import Console

from cryobench.leaderboard.filter import grouped, with_metrics
from cryobench.leaderboard.render import rich_tables, terminal, to_csv, to_html, to_json, to_latex, to_markdown
from cryobench.leaderboard.render.boards import boards
from cryobench.leaderboard.table import leaderboard
from cryobench.record import Record

NAMES = ("mse", "mae", "psnr", "ssim", "l2", "measurement_mse")
COLUMNS = [MSE | {"name": name} for name in NAMES]
COLUMNS[2] = PSNR


def cell(solver: str, mse: float, **changes) -> Record:
    """A cell of four images and the six metrics."""
    errors = [mse * factor for factor in (0.8, 0.9, 1.1, 1.2)]
    values = dict.fromkeys(NAMES, errors) | {"psnr": [-10 * math.log10(error) for error in errors]}
    images = [f"demo@{i}" for i in range(4)]
    return record(solver, **({"images": images, "values": values, "columns": COLUMNS} | changes))


def text(frame: pd.DataFrame, width: int = 80, encoding: str = "utf-8", columns=(), requested=()) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width, force_terminal=False, legacy_windows=False).print(
        rich_tables(frame, columns, requested)
    )
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


def test_names_are_folded_only_where_there_is_no_room(frame):
    name = "diffusion:prior=hf:owner/a-name-that-goes-on-for-long"
    assert name not in text(frame, 100)
    assert name in text(frame, 100, columns=["nothing-else"])


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
    assert "mse ↓" in text(frame, 120)


def test_the_ceiling_is_shown_and_explained_but_never_ranked():
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
    assert "ceiling: not ranked: a bound on psnr to the measured image, computed from the clean one" in shown
    assert "no mean" not in shown  # metrics that the ceiling lacks were not requested
    assert "no mean" in text(leaderboard([solver, ceiling, record("odd", (None, 1.0))]), 100)
    assert "ceiling" not in text(leaderboard([solver]))
    page = to_html(frame)
    assert "<td>–</td><td>ceiling</td>" in page
    assert "not ranked" in page
    assert text(frame, 100, encoding="ascii").isascii()


def test_columns_that_do_not_fit_are_counted(frame):
    narrow, wide = text(frame, 80), text(frame, 400)
    last = narrow.splitlines()[-1]
    number = int(re.fullmatch(r"not shown: (\d+) columns?; --wide .*, --columns NAME,... some", last)[1])
    ran = [board for board in boards(frame) if len(board)]
    headers = [len(terminal._layout(ran, width).columns) for width in (80, 400)]
    assert number == headers[1] - headers[0] > 0
    assert "not shown" not in wide
    for header in ("psnr ↑ dB", "measurement_mse ↓", "NFE", "calls", "MiB"):
        assert header in wide


def test_chosen_columns_are_shown_beside_rank_solver_and_ranking_column(frame):
    shown = text(frame, 80, columns=["measurement_*", "nfe"])
    assert "not shown" not in shown
    for name in ("psnr ↑ dB", "measurement_mse ↓", "NFE"):
        assert name in shown
    for name in ("ssim ↑", "s per", "MiB", "to the first ["):
        assert name not in shown
    last = text(frame, 80, columns=["*mse", "mae", "l2"]).splitlines()[-1]
    assert last == "not shown: measurement_mse; --wide shows all"


def test_requested_metrics_come_before_the_interval_of_the_difference():
    frame = leaderboard([cell("pinv", 0.0022, floor=True), cell("tv", 0.0019)])
    assert "difference to the first" in text(frame, 75)
    assert "meas." not in text(frame, 75)
    shown = text(frame, 75, requested=["measurement_mse"])
    assert "meas." in shown
    assert shown.count("[95% interval]") == 1 < text(frame, 75).count("[95% interval]")


def test_another_ranking_metric_comes_first():
    cells = [cell("a", 0.01, timing={"seconds_per_image": 0.0123}), cell("b", 0.02)]
    assert text(leaderboard(cells, by="mse")).splitlines()[1].split()[0] == "mse"
    assert "0.012" in text(leaderboard(cells, by="seconds_per_image"))


def test_reasons_are_shown_as_they_are(frame):
    shown = " ".join(text(frame).split())
    assert "skipped dmplug: needs a diffusion prior; none was given [see docs]" in shown
    assert "failed ddnm: RuntimeError: [/bold] out of memory" in shown


def test_a_table_of_skipped_cells_only():
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


def test_rows_from_different_machines_are_reported():
    cells = [record("a"), record("b", environment={"device": "cuda", "version": "0.1.0"})]
    assert "rows come from different devices: cpu, cuda" in text(leaderboard(cells))
    assert "different" not in text(leaderboard(cells[:1]))


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


def test_missing_values_are_empty_in_csv():
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


in_every_rendering = pytest.mark.parametrize(
    "written", [lambda frame: text(frame, 200), to_markdown, to_latex, to_html], ids=["rich", "md", "latex", "html"]
)

# --- results of tests ------------------------------------------------------------------------------------------------


def cells_with(shifts: list[float], n_images: int = 12, floor: int | None = None, **changes) -> list[Record]:
    """Solvers s0, s1 ... whose psnr differ by about the shifts, image by image."""
    rng = np.random.default_rng(len(shifts))
    hard = rng.normal(22, 3, n_images)
    return [
        record(f"s{row}", (hard + shift + rng.normal(0, 0.2, n_images)).tolist(), floor=row == floor, **changes)
        for row, shift in enumerate(shifts)
    ]


@in_every_rendering
def test_every_rendering_shows_ties_differences_and_their_tests(written):
    frame = leaderboard(cells_with([1.0, 1.0, 0.0, 0.5], floor=2))
    shown = written(frame)
    ranks = frame["rank"].tolist()
    assert ranks[0] == ranks[1] == 1
    assert shown.count("1= a") == 2
    assert re.search(r"\b3  b\b", shown)
    assert re.search(r"\b4  c\b", shown)
    assert "rows with a common letter do not differ significantly (0.05, Holm)" in shown
    second, last = frame.iloc[1], frame.iloc[3]
    assert f"{second['diff_leader']:+.2f}" in shown
    assert f"p={second['p_holm']:.2f}" in shown
    assert f"{last['diff_leader_lo']:+.2f}, {last['diff_leader_hi']:+.2f}]" in shown
    assert f"{second['solver']} {second['images_needed']}" in shown
    assert "images needed to detect the observed difference to the first" in shown
    assert "s2 (floor)" in shown


def test_no_difference_is_rounded_to_zero():
    """The sign and the size of 2e-9 are shown."""
    frame = leaderboard([record("a", (20.0, 21.0)), record("b", (20.0 - 2e-9, 21.0 - 2e-9))])
    assert "-2e-09" in text(frame, 200)
    assert "-0.00" not in text(frame, 200)


def test_reasons_for_missing_p_values_and_solvers_below_the_floor_are_shown():
    shown = text(leaderboard(cells_with([1.0, 0.0, -1.0], n_images=4, floor=1)), 200)
    assert "no p-values: with 4 images and 3 pairs of rows" in shown
    assert "no better than the floor: s2" in shown
    assert "not significantly better than the floor" not in shown  # nothing was tested
    shown = text(leaderboard(cells_with([0.1, 0.0], floor=1)), 200)
    assert ("not significantly better than the floor: s0" in shown) == ("1=" in shown)


def test_the_pareto_mark_is_in_the_cost_column_and_explained():
    cells = [
        record("good", (30.0, 31.0), timing={"seconds_per_image": 9.0}),
        record("dear", (20.0, 21.0), timing={"seconds_per_image": 10.0}),
        record("fast", (10.0, 11.0), timing={"seconds_per_image": 0.5}),
    ]
    frame = leaderboard(cells)
    for shown in (text(frame, 200), to_markdown(frame)):
        assert "9 ◆" in shown
        assert "0.50 ◆" in shown
        assert "10 ◆" not in shown
        assert "◆ Pareto front: no other row is as good in psnr and as cheap" in shown
    assert "$\\diamond$ Pareto front" in to_latex(frame)
    assert "+ Pareto front" in text(frame, 200, encoding="ascii")
    assert "◆" not in text(leaderboard(cells, by="seconds_per_image"), 200)


def test_full_rank_is_called_not_compressive():
    assert "C = 1: not compressive" in text(leaderboard([record(compression=1.0)]), 100)
    assert "not compressive" not in text(leaderboard([record(compression=1.01)]), 100)


def test_times_from_different_machines_are_reported():
    def on(processor: str) -> dict:
        return {"device": "cpu", "version": "0.1.0", "hardware": {"processor": processor, "torch_threads": 2}}

    cells = [record("a", environment=on("X")), record("b", environment=on("Y"))]
    assert "times are not comparable: rows come from different hardware: X, 2 threads, Y, 2 threads" in text(
        leaderboard(cells), 200
    )
    assert "different" not in text(leaderboard([cells[0], record("b", environment=on("X"))]), 200)


def test_reasons_for_missing_metrics_are_shown():
    lpips = {"name": "lpips", "direction": "lower", "unit": ""}
    cell = record(columns=[PSNR, lpips], values={"psnr": [1.0, 2.0], "lpips": [math.nan, math.nan]},
                  unmeasured={"lpips": "no AlexNet weights here; see docs"})  # fmt: skip
    shown = text(leaderboard([cell]), 100)
    assert "– no lpips: no AlexNet weights here; see docs" in shown
    assert "not measured, or not defined" not in shown


def test_proportions_have_their_interval_in_written_tables():
    values = {"psnr": [20.0] * 4, "mse": [0.1] * 4, "rate": [1.0, 1.0, 1.0, 0.0]}
    rows = leaderboard([record(psnr=[20.0] * 4, values=values, columns=[PSNR, MSE, RATE])])
    for shown in (to_markdown(rows), to_latex(rows).replace("{[}", "[")):
        assert "0.750 [0.194, 0.994]" in shown
        assert "0.100 [" not in shown


def test_columns_without_a_value_are_a_remark_that_says_why():
    """As of metrics against the truth where the images are noisy themselves."""
    columns = [PSNR, MSE, MSE | {"name": "mae"}]
    values = {"psnr": [20.0, 22.0], "mse": [math.nan, math.nan], "mae": [math.nan, math.nan]}
    why = {"mse": "no truth", "mae": "no truth"}
    rows = leaderboard([record(name, values=values, columns=columns, unmeasured=why) for name in ("pinv", "dct")])
    for shown in (to_markdown(rows), text(rows, 120)):
        assert "no mse, mae: no truth" in shown
        assert len(re.findall(r"\bmse\b", shown)) == 1


def test_the_evaluated_region_is_in_the_title():
    assert "seed 0 · within circle · C" in text(leaderboard([record(problem={"within": "circle"})]), 100)


# --- several comparisons ----------------------------------------------------------------------------------------------


def several() -> pd.DataFrame:
    cells = []
    for place, (operator, noise) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("c", "y")]):
        cells += cells_with([0.0, 2.0, 1.0], floor=0, operator=operator, noise=noise, compression=2.0 + place % 2)
    return leaderboard(cells)


@in_every_rendering
def test_every_rendering_summarises_comparisons(written):
    shown = written(several())
    assert "all comparisons" in shown
    for solver, rank, beats in (("s1", "1.00", "5 of 5"), ("s2", "2.00", "5 of 5"), ("s0 (floor)", "3.00", "")):
        line = next(line for line in reversed(shown.splitlines()) if solver in line and rank in line)
        assert beats in line
    assert "Friedman p=" in shown
    assert "no significant difference: s1, s2" in shown
    assert "all comparisons" not in written(leaderboard(cells_with([0.0, 1.0])))


@in_every_rendering
@pytest.mark.parametrize(
    ("by", "headings"),
    [("noise", ["noise x", "noise y"]), ("operator", ["a", "b", "c"]), ("compression", ["C = 2.00", "C = 3.00"])],
)
def test_groups_have_headings_and_a_summary_each(written, by, headings):
    shown = written(grouped(several(), by))
    marks = {"to_markdown": "## {}", "to_latex": "\\subsection*{{{}}}", "to_html": "<h3>{}</h3>"}
    lines = shown.splitlines()
    found = [lines.index(marks.get(written.__name__, "{}").format(heading)) for heading in headings]
    assert found == sorted(found)
    several_in = sum(1 for heading in headings if heading != "c")
    assert shown.count("all comparisons") == several_in


def test_a_terminal_shows_whole_comparisons_up_to_a_limit_and_counts_the_rest(monkeypatch):
    monkeypatch.setattr(terminal, "MAX_ROWS", 7)
    shown = text(several(), 120)
    assert shown.count("· noise") == 2
    assert "not shown: 9 more rows of 3 more comparisons; choose with --operator" in " ".join(shown.split())
    assert "5 of 5" in shown  # the summary is of all
    monkeypatch.setattr(terminal, "MAX_ROWS", 2)
    shown = text(several(), 120)
    assert shown.count("· noise") == 1  # the first comparison is always shown
    assert "not shown: 12 more rows of 4 more comparisons; choose" in " ".join(shown.split())


def test_chosen_metrics_are_the_columns(frame):
    chosen = with_metrics(frame, ["ssim"])
    for shown in (text(chosen, 200), to_csv(chosen), to_markdown(chosen)):
        assert "ssim" in shown
        assert "psnr" in shown
        assert "mse" not in shown


# --- files for other programs -----------------------------------------------------------------------------------------


def test_csv_is_that_of_pandas():
    frame = leaderboard(
        [*cells_with([1.0, 0.0], floor=1), record("exact", (math.inf, 1.0)), absent("skipped", 'a,"b"\nc')]
    )
    assert to_csv(frame) == frame.to_csv(index=False, lineterminator="\n")


def test_markdown_has_the_same_number_of_cells_in_every_line_and_text_is_escaped():
    cells = [record("x:|*[a](b)*<b>_", data="d|*e*"), absent("failed", "y", reason="`a` | <i>")]
    shown = to_markdown(leaderboard(cells))
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "x:\\|\\*\\[a\\](b)\\*\\<b\\>\\_" in shown
    assert "d\\|\\*e\\*" in shown
    assert "- failed y: \\`a\\` \\| \\<i\\>" in shown


def test_latex_has_the_same_number_of_cells_in_every_row_and_text_is_escaped():
    cells = [record("x:a_b&50%{\\input}$~^#"), absent("failed", "y_z", reason="100 % [gone]")]
    shown = to_latex(leaderboard(cells))
    rows = [line for line in shown.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", shown)[1]
    assert len(columns) == len(re.findall(r"(?<!\\)&", rows[0])) + 1
    assert r"x:a\_b\&50\%\{\textbackslash{}input\}\$\textasciitilde{}\textasciicircum{}\#" in shown
    assert r"failed y\_z: 100 \% {[}gone]" in shown
    for name in ("table", "tabular"):
        assert shown.count(f"\\begin{{{name}}}") == shown.count(f"\\end{{{name}}}") == 1


def test_an_empty_leaderboard_is_no_results_in_every_rendering():
    frame = leaderboard([])
    assert to_markdown(frame) == "no results\n"
    assert "no results" in to_latex(frame)
    assert to_csv(frame).count("\n") == 1
