"""The figure of a leaderboard."""

from __future__ import annotations

import io

import numpy as np
from board_records import record
from hostile import ALL
from PIL import Image

import cryobench as cb
from cryobench.leaderboard.render import chart as module
from cryobench.leaderboard.render.chart import chart, to_png
from cryobench.leaderboard.table import leaderboard


def cells(operator: str = "sumpool:16", rows: int = 4):
    images = np.random.default_rng(0).normal(22, 3, 12)
    return [
        record(f"s{row}", (images - 0.4 * row + 0.01 * row * images).tolist(), operator=operator, floor=row == rows - 1,
               timing={"seconds_per_image": 10.0 ** -row})
        for row in range(rows)
    ]  # fmt: skip


def points(axis) -> list[tuple[float, float]]:
    return [
        tuple(float(value[0]) for value in line.get_data()) for line in axis.lines if line.get_marker() in ("o", "D")
    ]


def test_dots_intervals_and_costs_are_those_of_the_table():
    frame = leaderboard(cells())
    left, right = chart(frame).axes
    np.testing.assert_allclose(points(left), [*zip(frame["psnr"], range(4), strict=True)])
    bars = [line.get_xdata() for line in left.lines if line.get_marker() == "None" and line.get_linestyle() == "-"]
    np.testing.assert_allclose(bars, frame[["psnr_lo", "psnr_hi"]])
    (floor,) = [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == "--"]
    assert floor == frame["psnr"].iloc[-1]
    assert [text.get_text().split() for text in left.get_yticklabels()] == [
        ["s0", "1"], ["s1", "2"], ["s2", "3"], ["s3", "(floor)", "4"]
    ]  # fmt: skip
    np.testing.assert_allclose(points(right), frame[["seconds_per_image", "psnr"]])
    (front,) = [line for line in right.lines if line.get_label() == "Pareto front"]
    assert frame["pareto_seconds"].all()
    np.testing.assert_allclose(front.get_data(), frame[["seconds_per_image", "psnr"]].to_numpy()[::-1].T)


def test_rows_that_are_dominated_are_not_on_the_front_and_infinite_values_are_not_drawn():
    records = [*cells(), record("slow", [10.0] * 12, timing={"seconds_per_image": 50.0}),
               record("exact", [float("inf")] * 12, timing={"seconds_per_image": 50.0})]  # fmt: skip
    left, right = chart(leaderboard(records)).axes
    (front,) = [line for line in right.lines if line.get_label() == "Pareto front"]
    assert 50.0 not in front.get_xdata()
    assert len(points(left)) == len(points(right)) == 5
    assert len(left.get_yticklabels()) == 6


def test_a_front_of_one_row_is_no_line():
    (record_,) = cells()[:1]
    _, right = chart(leaderboard([record_])).axes
    assert [line.get_label() for line in right.lines if line.get_label() == "Pareto front"] == []
    assert right.get_legend() is None


def test_letters_costs_and_a_limit_of_comparisons():
    same = [record(f"s{row}", [20.0 + row * (-1) ** image + image for image in range(12)]) for row in range(2)]
    figure = chart(leaderboard(same))
    assert [text.get_text().split() for text in figure.axes[0].get_yticklabels()] == [
        ["s0", "a", "1"],
        ["s1", "a", "2"],
    ]
    assert "rows with a common letter do not differ significantly" in figure.get_supxlabel()
    many = [cell for place in range(14) for cell in cells(f"sumpool:{place + 2}", rows=2)]
    figure = chart(leaderboard(many, by="seconds_per_image"))
    assert len(figure.axes) == module.MAX_COMPARISONS
    assert figure.get_supxlabel().startswith("not drawn: 2 more comparisons; choose with --operator")
    assert chart(leaderboard([])).texts[0].get_text() == "no results"


def test_a_prior_that_has_seen_the_structure_is_marked():
    frame = leaderboard(cells())
    frame["overlap"] = ["structure", "", "", ""]
    figure = chart(frame)
    assert figure.axes[0].get_yticklabels()[0].get_text().startswith("s0†")
    assert figure.get_supxlabel().endswith("† its prior was trained on other images of the same structure")


def test_names_are_text():
    frame = leaderboard([record(name.replace("\ud800", "") + "$x^$", (20.0, 21.0)) for name in ALL])
    image = Image.open(io.BytesIO(to_png(frame)))
    assert image.size[0] == module.WIDTH * 120


def test_records_have_a_plot_and_the_command_writes_it(cli, blobs):
    records = cb.run("dct", "sumpool:4", data=blobs, out="runs")
    figure = records.plot(by="ssim")
    assert figure.axes[0].get_xlabel() == "ssim ↑"
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert cli("leaderboard", "--format", "png=board.png", "--format", "csv")[0] == 0
    assert Image.open("board.png").format == "PNG"
    code, _, err = cli("leaderboard", "--format", "png")
    assert (code, err) == (2, "error: --format png: a figure is not printed; give --format png=board.png\n")
