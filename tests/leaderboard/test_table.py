import math

import pandas as pd
import pytest
from board_records import MSE, OTHER, PSNR, RATE, absent, record

from cryobench.errors import ParameterError
from cryobench.leaderboard.cells import cells
from cryobench.leaderboard.statistics.bootstrap import bootstrap_interval
from cryobench.leaderboard.table import leaderboard
from cryobench.record import RANKING, Record


def ranking(frame: pd.DataFrame) -> list[tuple[str, int | None]]:
    return [
        (solver, None if pd.isna(rank) else int(rank))
        for solver, rank in zip(frame["solver"], frame["rank"], strict=True)
    ]


def test_columns_in_order():
    first = record(columns=[MSE, PSNR], values={"mse": [1.0, 2.0], "psnr": [20.0, 21.0]})
    second = record("tv", columns=[OTHER, PSNR], values={"other": [5.0, 5.0], "psnr": [20.0, 21.0]})
    assert list(leaderboard([first, second]).columns) == [
        "rank", "solver", "operator", "noise", "data", "seed", "n_images", "compression", "status", "reason",
        "mse", "mse_lo", "mse_hi", "psnr", "psnr_lo", "psnr_hi", "other", "other_lo", "other_hi", *RANKING,
        "seconds_per_image", "nfe", "operator_calls", "peak_memory_mib", "unmeasured", "overlap", "within", "device",
        "hardware", "version",
    ]  # fmt: skip


def test_a_row_holds_the_cell():
    row = leaderboard([record("tv", (20.0, 23.0))]).iloc[0]
    assert row["psnr"] == 21.5
    assert (row["psnr_lo"], row["psnr_hi"]) == (20.0, 23.0)
    expected = {"solver": "tv", "operator": "sumpool:16", "noise": "none", "data": "demo", "seed": 0, "n_images": 2}
    expected |= {"compression": 4.0, "status": "ok", "reason": "", "seconds_per_image": 0.5, "nfe": 0.0}
    expected |= {"operator_calls": 3.0, "peak_memory_mib": 512.0, "overlap": "", "device": "cpu", "version": "0.1.0"}
    assert {key: row[key] for key in expected} == expected


def test_best_first_in_the_stated_direction():
    def cell(solver: str, psnr: float, mse: float, seconds: float) -> Record:
        values = {"psnr": [psnr, psnr], "mse": [mse, mse]}
        return record(solver, columns=[PSNR, MSE], values=values, timing={"seconds_per_image": seconds})

    cells = [cell("a", 20, 0.3, 3.0), cell("b", 30, 0.2, 2.0), cell("c", 10, 0.1, 1.0)]
    assert ranking(leaderboard(cells)) == [("b", 1), ("a", 2), ("c", 3)]
    assert ranking(leaderboard(cells, by="mse")) == [("c", 1), ("b", 2), ("a", 3)]
    assert ranking(leaderboard(cells, by="seconds_per_image")) == [("c", 1), ("b", 2), ("a", 3)]


@pytest.mark.parametrize("cost", ["nfe", "operator_calls", "peak_memory_mib"])
def test_cheaper_is_better(cost):
    def cell(solver: str, value: float) -> Record:
        return record(solver, counters={"nfe": value, "operator_calls": value}, peak_memory_mib=value)

    assert ranking(leaderboard([cell("dear", 9.0), cell("cheap", 2.0)], by=cost)) == [("cheap", 1), ("dear", 2)]


def test_equal_means_share_a_rank():
    frame = leaderboard([record("a", (20.0, 22.0)), record("b", (22.0, 20.0)), record("c", (1.0, 2.0))])
    assert ranking(frame) == [("a", 1), ("b", 1), ("c", 3)]


def test_unranked_come_last():
    cells = [
        absent("failed", "broken"),
        absent("skipped", "unfit"),
        record("undefined", (30.0, None)),
        record("exact", (math.inf, 30.0)),
        record("good"),
    ]
    frame = leaderboard(cells)
    expected = [("exact", 1), ("good", 2), ("undefined", None), ("unfit", None), ("broken", None)]
    assert ranking(frame) == expected
    assert frame.index.get_level_values("group").nunique() == 1
    assert frame["reason"].tolist() == ["", "", "", "why unfit", "why broken"]
    assert frame[["psnr", "psnr_lo", "psnr_hi"]].iloc[2:].isna().to_numpy().all()


def test_a_failed_cell_has_no_means():
    frame = leaderboard([record(), record("broken", (90.0, 90.0), status="failed", reason="out of memory")])
    assert ranking(frame) == [("pinv", 1), ("broken", None)]
    assert math.isnan(frame["psnr"].iloc[1])


@pytest.mark.parametrize(
    "difference",
    [
        {"operator": "sumpool:8"},
        {"noise": "gaussian:0.1"},
        {"seed": 1},
        {"images": ["demo@7", "demo@8"]},
        {"problem": {"data_digest": "bbbb2222"}},
        {"environment": {"dtype": "float64"}},
        {"problem": {"data_digest": "aaaa1111", "within": "circle"}},
    ],
)
def test_only_cells_of_the_same_problem_are_compared(difference):
    cells = [record("a", (20.0, 20.0)), record("b", (30.0, 30.0), **difference), record("c", (25.0, 25.0))]
    frame = leaderboard(cells)
    assert ranking(frame) == [("c", 1), ("a", 2), ("b", 1)]
    assert frame.groupby(level="group", sort=False).size().tolist() == [2, 1]


def test_cells_and_records_give_the_same_table():
    cell_of = [record("a"), record("b", (21.0, None)), absent("failed", "c"), record("d", operator="sumpool:4")]
    pd.testing.assert_frame_equal(leaderboard(cell_of), leaderboard(cells(cell_of)))


def test_region_and_hardware_are_in_the_table():
    hardware = {"processor": "CPU X", "torch_threads": 8}
    on_cpu = record(environment={"device": "cpu", "hardware": hardware})
    on_gpu = record(environment={"device": "cuda:0 GPU Y", "hardware": hardware}, unmeasured={"lpips": "no weights"})
    frame = leaderboard([on_cpu, on_gpu, record()])
    assert frame["hardware"].fillna("").tolist() == ["CPU X, 8 threads", "GPU Y", ""]
    assert frame["within"].tolist() == ["image"] * 3
    assert frame["unmeasured"].tolist() == ["", '{"lpips": "no weights"}', ""]


def test_the_order_of_images_does_not_matter():
    """Neither the comparison nor the pairing depends on it: values are matched by image."""
    images = [f"demo@{i}" for i in range(12)]  # @10 is not the last by name
    values = [20.0 + (7 * i) % 5 for i in range(12)]
    better = [value + 0.5 + 0.1 * (i % 3) for i, value in enumerate(values)]
    alike = leaderboard([record("a", values, images=images), record("b", better, images=images)])
    turned = record("b", better[::-1], images=images[::-1])
    assert alike["p_holm"].iloc[1] < 0.05
    columns = ["rank", "solver", "psnr", *RANKING]
    pd.testing.assert_frame_equal(leaderboard([record("a", values, images=images), turned])[columns], alike[columns])


def test_equal_images_are_one_data_set_in_any_file():
    frame = leaderboard([record("a", (20.0, 20.0)), record("b", (30.0, 30.0), data="copy.mrcs")])
    assert ranking(frame) == [("b", 1), ("a", 2)]
    assert frame["data"].tolist() == ["demo", "demo"]


def test_groups_are_in_order_of_first_appearance():
    cells = [record("a", operator="z"), record("b", operator="a"), record("c", (1.0, 2.0), operator="z")]
    frame = leaderboard(cells)
    assert frame["solver"].tolist() == ["a", "c", "b"]
    assert frame.groupby(level="group", sort=False)["operator"].first().tolist() == ["z", "a"]


def test_one_label_of_two_data_sets_shows_the_digest():
    cells = [
        record("a"),
        record("b", problem={"data_digest": "sha256:bbbb2222"}),
        record("c", data="else", problem={"data_digest": "cc"}),
    ]
    assert leaderboard(cells)["data"].tolist() == ["demo#aaaa", "demo#bbbb", "else"]


def test_digests_are_as_long_as_needed_to_distinguish_them():
    cells = [record("a"), record("b", problem={"data_digest": "aaaa1222"})]
    assert leaderboard(cells)["data"].tolist() == ["demo#aaaa11", "demo#aaaa12"]


def test_one_image_has_a_mean_and_no_interval():
    row = leaderboard([record(psnr=(25.0,))]).iloc[0]
    assert row["psnr"] == 25.0
    assert math.isnan(row["psnr_lo"])
    assert math.isnan(row["psnr_hi"])
    assert row["rank"] == 1


def test_the_interval_of_a_proportion_is_binomial():
    """Of 20 covered images the lower end is p with p^20 = 0.025; a bootstrap of 20 equal numbers is a point."""
    psnr = [20.0] * 20
    rates = {"all": [1.0] * 20, "none": [0.0] * 20, "half": [0.0, 1.0] * 10, "gap": [math.nan] * 20}
    rows = [record(name, psnr, columns=[PSNR, RATE], values={"psnr": psnr, "rate": rate})
            for name, rate in rates.items()]  # fmt: skip
    frame = leaderboard(rows).set_index("solver")
    end = 0.025 ** (1 / 20)
    assert frame.loc["all", ["rate", "rate_lo", "rate_hi"]].tolist() == pytest.approx([1, end, 1])
    assert frame.loc["none", ["rate", "rate_lo", "rate_hi"]].tolist() == pytest.approx([0, 0, 1 - end])
    low, high = frame.loc["half", ["rate_lo", "rate_hi"]]
    assert sum(math.comb(20, k) * low**k * (1 - low) ** (20 - k) for k in range(10, 21)) == pytest.approx(0.025)
    assert high == pytest.approx(1 - low)
    assert frame.loc["gap", ["rate", "rate_lo", "rate_hi"]].isna().all()
    assert frame.loc["all", "psnr_lo"] == 20.0  # of other columns it is that of the bootstrap


@pytest.mark.parametrize("rates", [(0.0, 90.0), (-0.5, 1.5), (0.5, math.inf)])
def test_a_column_that_is_no_proportion_has_the_interval_of_the_bootstrap(rates):
    """A column of a plugin may say that it is binomial and have percentages; the mean of (-0.5, 1.5) is from 0 to 1."""
    frame = leaderboard([record(columns=[PSNR, RATE], values={"psnr": [20.0, 22.0], "rate": list(rates)})])
    ends = [math.nan if end is None else end for end in bootstrap_interval(rates)]
    assert frame[["rate_lo", "rate_hi"]].iloc[0].tolist() == pytest.approx(ends, nan_ok=True)


def test_the_floor_is_marked_in_the_index():
    frame = leaderboard([record("tv", (1.0, 2.0)), record("pinv", floor=True)])
    assert frame["solver"].tolist() == ["pinv", "tv"]
    assert frame.index.get_level_values("floor").tolist() == [True, False]
    assert "floor" not in frame.columns


@pytest.mark.parametrize("best", [19.0, 30.0])
def test_the_ceiling_is_in_the_table_but_not_ranked(best):
    """For any value: the order of the solvers does not depend on it."""
    solvers = [record("tv", (21.0, 22.0)), record("pinv", (20.0, 20.0), floor=True), record("odd", (None, 1.0))]
    cells = [solvers[0], record("ceiling", (best, best), ceiling=True), *solvers[1:], absent("skipped", "dct")]
    frame = leaderboard(cells)
    assert ranking(frame) == [("tv", 1), ("pinv", 2), ("ceiling", None), ("odd", None), ("dct", None)]
    assert [row for row in ranking(frame) if row[0] != "ceiling"] == ranking(leaderboard([*solvers, cells[-1]]))
    assert frame.index.get_level_values("ceiling").tolist() == [False, False, True, False, False]
    assert frame["psnr"].iloc[2] == best
    assert "ceiling" not in frame.columns
    for by in ("nfe", "seconds_per_image"):
        assert ("ceiling", None) in ranking(leaderboard(cells, by=by))


def test_a_ceiling_alone_is_a_table_without_a_rank():
    assert ranking(leaderboard([record("ceiling", ceiling=True)])) == [("ceiling", None)]


def test_unknown_by():
    with pytest.raises(ParameterError) as caught:
        leaderboard([record(columns=[PSNR, OTHER])], by="pnsr")
    message = str(caught.value)
    assert "'pnsr'" in message
    assert "did you mean 'psnr'?" in message
    assert "seconds_per_image" in message
    assert "other" not in message.split("there are")[1]
    assert "\n" not in message


def test_psnr_is_the_default_only_where_it_is_not_asked_for():
    """Without psnr the default is the first metric with a direction; psnr itself is then an unknown column."""
    rows = [record(name, columns=[OTHER, MSE], values={"other": [0.0, 0.0], "mse": [value] * 2})
            for name, value in (("a", 3.0), ("b", 1.0))]  # fmt: skip
    frame = leaderboard(rows)
    assert (frame.attrs["by"], ranking(frame)) == ("mse", [("b", 1), ("a", 2)])
    with pytest.raises(ParameterError, match="cannot rank by 'psnr': no record has it"):
        leaderboard(rows, by="psnr")
    both = [record(columns=[MSE, PSNR], values={"mse": [1.0, 1.0], "psnr": [20.0, 22.0]})]
    assert leaderboard(both).attrs["by"] == "psnr"


def test_by_without_a_better_direction():
    with pytest.raises(ParameterError, match="it states no direction"):
        leaderboard([record(columns=[PSNR, OTHER], values={"other": [1.0, 2.0]})], by="other")


def test_records_that_disagree_on_the_direction():
    with pytest.raises(ParameterError, match="its direction differs"):
        leaderboard([record("a"), record("b", columns=[PSNR | {"direction": "lower"}])])


@pytest.mark.parametrize("name", ["rank", "nfe", "psnr_lo"])
def test_a_metric_cannot_take_a_columns_name(name):
    with pytest.raises(ParameterError, match=name):
        leaderboard([record(columns=[PSNR, PSNR | {"name": name}])])


def test_nothing_ran():
    frame = leaderboard([absent("skipped", "a"), absent("failed", "b")])
    assert ranking(frame) == [("a", None), ("b", None)]
    assert leaderboard([]).empty
