"""Ranks, differences, the floor and the Pareto front of a table, against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from board_records import MSE, PSNR, record

from cryobench.leaderboard import ranking
from cryobench.leaderboard.ranking import pareto
from cryobench.leaderboard.statistics import pairs
from cryobench.leaderboard.statistics.bootstrap import bootstrap_interval
from cryobench.leaderboard.statistics.pairs import RESAMPLES, compare_many
from cryobench.leaderboard.table import leaderboard


def values(shifts: list[float], n_images: int = 12, seed: int = 0) -> np.ndarray:
    """Rows whose means differ by about the shifts, on images of unequal difficulty."""
    rng = np.random.default_rng(seed)
    return 20 + rng.normal(0, 3, n_images) + np.array(shifts)[:, None] + rng.normal(0, 0.2, (len(shifts), n_images))


def board(array: np.ndarray, floor: int | None = None, **changes) -> pd.DataFrame:
    cells = [record(f"s{row}", psnr.tolist(), floor=row == floor, **changes) for row, psnr in enumerate(array)]
    return leaderboard(cells).reset_index(drop=True).set_index("solver")


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_the_columns_are_those_of_the_paired_tests(direction):
    """The values sorted by image name: the order determines the resamples of an interval."""
    array = values([0, 0.02, -0.5, 2.0, -0.05], seed=3)
    by_name = array[:, np.argsort([f"demo@{i}" for i in range(12)])]
    frame = board(array, columns=[PSNR | {"direction": direction}])
    (paired,) = compare_many([by_name], higher=direction == "higher")
    leader = int(np.argmax(array.mean(axis=1) * (1 if direction == "higher" else -1)))
    assert frame.index[0] == f"s{leader}"
    assert frame["rank"].to_dict() == {f"s{row}": rank for row, rank in enumerate(paired.ranks.tolist())}
    assert frame["tied"].to_dict() == {f"s{row}": tied for row, tied in enumerate(paired.tied.tolist())}
    assert frame["tied"].any()
    assert not frame["tied"].all()
    for one, other, better in zip(*(paired.pairs[name] for name in ("first", "second", "better")), strict=True):
        shared = set(frame.loc[f"s{one}", "letters"]) & set(frame.loc[f"s{other}", "letters"])
        assert bool(shared) == (better < 0)
    assert frame["letters"].iloc[0][0] == "a"
    for pair in pd.DataFrame(paired.pairs).itertuples():
        if leader in (pair.first, pair.second):
            other = pair.second if pair.first == leader else pair.first
            row = frame.loc[f"s{other}"]
            assert row["p_holm"] == pair.p_holm
            assert row["images_needed"] == pair.images_needed
            assert row["diff_leader"] == pytest.approx((array[other] - array[leader]).mean(), abs=1e-12)
            interval = bootstrap_interval((by_name[other] - by_name[leader]).tolist(), resamples=RESAMPLES)
            assert (row["diff_leader_lo"], row["diff_leader_hi"]) == pytest.approx(interval, abs=1e-6)
    assert frame.loc[f"s{leader}", ["diff_leader", "p_holm", "images_needed"]].isna().all()


def test_p_of_two_rows_equals_scipys():
    array = values([0, 0.3])
    expected = scipy.stats.wilcoxon(array[0], array[1]).pvalue
    assert board(array)["p_holm"].dropna().tolist() == pytest.approx([expected])


def test_few_images_are_ranked_by_mean_with_the_reason():
    frame = board(values([0, 1, 2], n_images=4))
    assert frame["rank"].tolist() == [1, 2, 3]
    assert frame["p_holm"].isna().all()
    assert frame["untested"].str.contains("no p-values: with 4 images and 3 pairs").all()
    assert frame["diff_leader_lo"].notna().tolist() == [False, True, True]


def test_one_image_has_differences_and_no_intervals():
    frame = board(values([0, 1], n_images=1))
    assert frame["diff_leader"].notna().tolist() == [False, True]
    assert frame["diff_leader_lo"].isna().all()


def test_a_cost_is_one_number_per_cell():
    cells = [record(f"s{i}", timing={"seconds_per_image": float(i)}) for i in range(3)]
    frame = leaderboard(cells, by="seconds_per_image")
    assert frame["diff_leader"].tolist()[1:] == [1.0, 2.0]
    assert frame["untested"].unique().tolist() == ["seconds_per_image is one number per cell: not tested"]
    assert frame["pareto_nfe"].isna().all()
    assert (frame["beats_floor"] == "").all()


def test_too_many_rows_are_not_tested(monkeypatch):
    monkeypatch.setattr(ranking, "MAX_ROWS", 3)
    frame = board(values([0, 1, 2, 3]))
    assert frame["rank"].tolist() == [1, 2, 3, 4]
    assert frame["untested"].str.contains("more than 3 rows").all()


def test_exact_images_do_not_affect_other_rows():
    exact = np.full(12, math.inf)
    frame = board(np.array([exact, values([0])[0], exact]))
    assert frame["rank"].tolist() == [1, 1, 3]
    assert frame["diff_leader"].tolist()[1:] == [0.0, -math.inf]
    assert frame["diff_leader_lo"].isna().all()


def test_comparisons_are_independent(monkeypatch):
    """The table of several comparisons, in any batches, contains the tables of each."""
    arrays = [values([0, 0.1, 1.0][: 2 + seed % 2], n_images=6 + seed % 3, seed=seed) for seed in range(7)]
    alone = [board(array, operator=f"o{i}", floor=0) for i, array in enumerate(arrays)]
    cells = [
        record(f"s{row}", psnr.tolist(), operator=f"o{i}", floor=row == 0)
        for i, array in enumerate(arrays)
        for row, psnr in enumerate(array)
    ]
    for batch in (1, 100_000):
        monkeypatch.setattr(pairs, "BATCH", batch)
        together = leaderboard(cells).reset_index(drop=True).set_index("solver")
        pd.testing.assert_frame_equal(together, pd.concat(alone))


def test_rows_that_beat_the_floor():
    frame = board(values([0, 2.0, 0.1, -1.0], seed=1), floor=0)
    assert frame["beats_floor"].to_dict() == {"s1": "yes", "s2": "unclear", "s0": "", "s3": "no"}
    assert (board(values([0, 2.0]))["beats_floor"] == "").all()  # there is none
    few = board(values([0, 2.0], n_images=3), floor=0)
    assert few["beats_floor"].to_dict() == {"s1": "unclear", "s0": ""}
    lower = board(values([0, 2.0, -2.0]), floor=0, columns=[PSNR | {"direction": "lower"}])
    assert lower["beats_floor"].to_dict() == {"s2": "yes", "s0": "", "s1": "no"}


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_by_brute_force(higher):
    rng = np.random.default_rng(5)
    groups, scores, costs = rng.integers(4, size=60), rng.integers(5, size=60) * 1.0, rng.integers(5, size=60) * 1.0
    scores[::7], costs[::11] = math.nan, math.nan
    sign = 1 if higher else -1
    for row, found in enumerate(pareto(groups, scores, costs, higher=higher)):
        if math.isnan(scores[row]) or math.isnan(costs[row]):
            assert found is None
            continue
        beaten = any(
            groups[other] == groups[row]
            and sign * scores[other] >= sign * scores[row]
            and costs[other] <= costs[row]
            and (scores[other] != scores[row] or costs[other] != costs[row])
            for other in range(60)
        )
        assert found == (not beaten)


def test_the_front_of_a_table():
    """The ceiling and cells that did not run are on no front; an infinite quality is allowed."""

    def cell(solver: str, psnr: float, seconds: float, **changes):
        return record(solver, (psnr, psnr), timing={"seconds_per_image": seconds}, **changes)

    frame = leaderboard([
        cell("good", 30, 9.0), cell("cheap", 20, 1.0), cell("worse", 19, 2.0), cell("exact", math.inf, 10.0),
        cell("ceiling", math.inf, 0.0, ceiling=True), cell("untimed", 40, math.nan),
    ])  # fmt: skip
    front = dict(zip(frame["solver"], frame["pareto_seconds"], strict=True))
    assert front.pop("ceiling") is pd.NA
    assert front.pop("untimed") is pd.NA
    assert front == {"good": True, "cheap": True, "worse": False, "exact": True}


def test_holms_correction_is_over_all_pairs():
    """Not only over those with the leader, which would be invalid: see docs/statistics.md."""
    array = values([0, 0.05, 0.1, 0.15], seed=2)
    raw = [scipy.stats.wilcoxon(array[i], array[j]).pvalue for i, j in itertools.combinations(range(4), 2)]
    corrected = np.maximum.accumulate(np.sort(raw) * np.arange(6, 0, -1)).clip(max=1)
    found = board(array)["p_holm"].dropna().to_numpy()
    assert all(np.isclose(corrected, p).any() for p in found)


def test_other_metrics_do_not_affect_the_ranking():
    array = values([0, 1])
    frame = board(array, columns=[PSNR, MSE])
    pd.testing.assert_series_equal(frame["p_holm"], board(array)["p_holm"])


def test_a_row_without_a_number_for_an_image_is_not_tested_and_does_not_count():
    array = values([0.0, 2.0, 1.0, 3.0])
    whole = board(array[[0, 1, 3]])
    frame = board(np.vstack([array[:2], np.append(array[2, :-1], math.nan)[None], array[3:]]))
    assert frame.loc["s2", ["rank", "diff_leader", "p_holm", "images_needed"]].isna().all()
    assert frame["p_holm"].dropna().tolist() == whole["p_holm"].dropna().tolist()
    assert frame["rank"].dropna().tolist() == whole["rank"].tolist()


def test_there_are_no_letters_where_all_rows_differ_or_nothing_is_tested():
    assert (board(values([0, 1, 2]))["letters"] == "").all()
    assert (board(values([0, 0, 0])[:, :3])["letters"] == "").all()
    assert (board(values([0, 0, 0]))["letters"] == "a").all()
