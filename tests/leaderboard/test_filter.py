"""Which rows, columns and order of a leaderboard are shown."""

from __future__ import annotations

import pytest
from board_records import MSE, PSNR, absent, record

from cryobench.errors import ParameterError
from cryobench.leaderboard.cells import StoredRecords, cells
from cryobench.leaderboard.filter import choose, grouped, with_metrics
from cryobench.leaderboard.table import leaderboard

NOISY = {"operator": "fourier:0.5", "noise": "gaussian:0.1"}
CELLS = cells([
    record("pinv", floor=True), record("ceiling", ceiling=True), record("tv:lam=0.1,iterations=9"), record("tv"),
    record("dct"), absent("skipped", "dmplug"), record("pinv", floor=True, **NOISY), record("dct", **NOISY),
])  # fmt: skip


def chosen(**patterns) -> list[str]:
    return [f"{one.solver} {one.operator}" for one in StoredRecords(choose(CELLS, patterns))]


def test_without_patterns_everything_is_kept():
    assert len(chosen()) == CELLS.num_rows
    assert len(chosen(solver=["*"], operator=["*"], noise=["*"], data=["*"])) == CELLS.num_rows


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["tv"], {"tv:lam=0.1,iterations=9", "tv"}),
        (["tv:*"], {"tv:lam=0.1,iterations=9"}),
        (["tv:lam=0.1?iterations=9"], {"tv:lam=0.1,iterations=9"}),
        (["d*"], {"dct", "dmplug"}),
        (["dmplug", "tv"], {"dmplug", "tv", "tv:lam=0.1,iterations=9"}),
    ],
)
def test_solvers_are_chosen_and_floor_and_ceiling_stay(patterns, kept):
    found = [text for text in chosen(solver=patterns) if text.endswith("sumpool:16")]
    assert {text.removesuffix(" sumpool:16") for text in found} == kept | {"pinv", "ceiling"}


def test_a_comparison_without_a_chosen_solver_is_removed():
    assert all(text.endswith("sumpool:16") for text in chosen(solver=["tv"]))


def test_problems_are_chosen():
    assert chosen(operator=["fourier"]) == ["pinv fourier:0.5", "dct fourier:0.5"]
    assert chosen(noise=["gaussian:*"]) == chosen(operator=["fourier:0.5"])
    assert chosen(operator=["fourier"], solver=["dct"]) == ["pinv fourier:0.5", "dct fourier:0.5"]


@pytest.mark.parametrize("name", ["solver", "operator", "noise", "data"])
def test_a_pattern_without_matches_is_an_error_with_the_available_values(name):
    with pytest.raises(ParameterError) as caught:
        choose(CELLS, {name: ["nothing*"]})
    assert "nothing* matches nothing; the results have: " in str(caught.value)
    assert "\n" not in str(caught.value)


METRICS = leaderboard([
    record(columns=[PSNR, MSE, MSE | {"name": "frc_half"}, MSE | {"name": "frc_area"}, PSNR | {"name": "psnr_clean"}])
])  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (["mse"], ["psnr", "mse"]),
        (["psnr"], ["psnr"]),
        (["frc"], ["psnr", "frc_half", "frc_area"]),
        (["frc_h*", "mse"], ["psnr", "mse", "frc_half"]),
        (["*"], ["psnr", "mse", "frc_half", "frc_area", "psnr_clean"]),
    ],
)
def test_metric_columns_are_chosen_and_the_ranking_one_stays(wanted, kept):
    frame = with_metrics(METRICS, wanted)
    assert [column["name"] for column in frame.attrs["columns"]] == kept
    shown = [name for name in frame.columns if f"{name}_lo" in frame.columns and not name.startswith("diff")]
    assert shown == kept
    assert len(METRICS.attrs["columns"]) == 5


def test_an_unknown_metric_is_an_error():
    with pytest.raises(ParameterError, match="--metrics 'pnsr' is not a column of these results; did you mean 'psnr'"):
        with_metrics(METRICS, ["pnsr"])


def board(*compressions: float) -> list[float]:
    cells = [record(operator=f"o{i}", compression=value) for i, value in enumerate(compressions)]
    frame = grouped(leaderboard(cells), "compression")
    return frame.groupby(level="group", sort=False)["compression"].first().tolist()


def test_groups_by_compression_are_sorted_by_it():
    assert board(4.0, 1.5, 2.0, 1.5, 4.001) == [1.5, 1.5, 2.0, 4.0, 4.001]


def test_groups_by_name_are_in_order_of_appearance_with_rows_in_theirs():
    problems = [("b", "y"), ("b", "x"), ("a", "y"), ("a", "x")]
    cells = [
        record(solver, psnr, operator=operator, noise=noise)
        for operator, noise in problems
        for solver, psnr in (("s", (1.0, 2.0)), ("t", (3.0, 4.0)))
    ]
    frame = grouped(leaderboard(cells), "noise")
    assert frame["noise"].tolist() == ["y"] * 4 + ["x"] * 4
    assert frame["operator"].tolist() == ["b", "b", "a", "a"] * 2
    assert frame["rank"].tolist() == [1, 2] * 4
    assert frame.attrs["group_by"] == "noise"


def test_an_unknown_group_is_an_error():
    with pytest.raises(ParameterError, match="--group-by 'operators': did you mean 'operator'"):
        grouped(METRICS, "operators")
