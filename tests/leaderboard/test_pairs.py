import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from cryobench.leaderboard.statistics import pairs
from cryobench.leaderboard.statistics.pairs import Paired, compare_many
from cryobench.leaderboard.statistics.power import LEVEL, POWER, images_needed, images_to_test
from cryobench.leaderboard.statistics.signed_rank import holm, signed_rank

N_BOARDS = 2000


def boards(rng: np.random.Generator, n_rows: int = 6, n_images: int = 20) -> np.ndarray:
    """Boards [N_BOARDS, rows, images] without any difference: images of their own difficulty, heavy-tailed noise."""
    difficulty = rng.normal(0, 3, size=(N_BOARDS, 1, n_images))
    return 25 + difficulty + rng.standard_t(2, size=(N_BOARDS, n_rows, n_images))


def interval_99(errors: int) -> tuple[float, float]:
    """Clopper-Pearson interval of the error rate, given the number of tables with an error."""
    return tuple(scipy.stats.binomtest(int(errors), N_BOARDS).proportion_ci(0.99))


def compare(values: np.ndarray, *, higher: bool) -> Paired:
    return compare_many([values], higher=higher)[0]


def rows(result: Paired) -> list:
    """The pairs, each with its columns as attributes."""
    return list(pd.DataFrame(result.pairs).itertuples(index=False))


def test_without_differences_at_most_one_table_in_twenty_is_wrong():
    results = compare_many(list(boards(np.random.default_rng(0))), higher=True)
    wrong = sum((board.pairs["better"] >= 0).any() for board in results)
    assert interval_99(wrong)[0] <= LEVEL
    assert wrong > 0  # a test that never finds anything would pass too
    assert wrong == sum((board.ranks != 1).any() for board in results)


def test_correcting_only_for_pairs_with_the_leader_errs_one_time_in_eight():
    """Ten rows and 20 images. The leader is selected with the same data, so all pairs must be corrected for."""
    values = np.random.default_rng(9).normal(size=(N_BOARDS, 10, 20))
    leaders = values.mean(axis=2).argmax(axis=1)
    others = [np.delete(board, leader, axis=0) for board, leader in zip(values, leaders, strict=True)]
    differences = values[np.arange(N_BOARDS), leaders][:, None] - np.stack(others)
    corrected = holm(signed_rank(differences.reshape(-1, 20))[0].reshape(N_BOARDS, 9))
    lo, hi = interval_99((corrected <= LEVEL).any(axis=1).sum())
    assert LEVEL < 0.09 < lo < hi < 0.15


def test_half_a_decibel_is_detected_with_the_stated_power():
    """Six solvers; one is 0.5 dB better than the others, with 0.8 dB of scatter in each paired difference."""
    exact = np.array([[-1.0, 1.0]]) / math.sqrt(2) * 0.8 + 0.5  # mean 0.5, standard deviation 0.8
    n_images = int(images_needed(exact, 15)[0])
    rng = np.random.default_rng(5)
    values = rng.normal(0, 3, size=(N_BOARDS, 1, n_images)) + rng.normal(
        0, 0.8 / math.sqrt(2), size=(N_BOARDS, 6, n_images)
    )
    values[:, 2] += 0.5
    results = compare_many(list(values), higher=True)
    found = np.mean([board.pairs["better"][1] == 2 for board in results])  # the pair (0, 2)
    assert POWER - 0.03 < found < POWER + 0.08  # Holm's later steps are easier than the first, which was planned for
    assert interval_99(sum(board.ranks[2] != 1 for board in results))[0] <= LEVEL


def test_agrees_with_scipy_and_the_definitions():
    values = np.random.default_rng(0).normal(size=(5, 15)) + np.array([[0.0, 0.1, 1.0, 1.2, 2.0]]).T
    result = compare(values, higher=True)
    assert [pair[:2] for pair in rows(result)] == list(combinations(range(5), 2))
    theirs = [scipy.stats.wilcoxon(values[i], values[j]).pvalue for i, j in combinations(range(5), 2)]
    assert result.pairs["p"] == pytest.approx(theirs)
    assert result.pairs["p_holm"] == pytest.approx(holm(np.array(theirs)))
    for pair in rows(result):
        differences = values[pair.first] - values[pair.second]
        assert pair.difference == pytest.approx(differences.mean())
        assert pair.images_needed == images_needed(differences[None], 10)[0]
        wanted = (pair.second if pair.difference < 0 else pair.first) if pair.p_holm <= LEVEL else -1
        assert pair.better == wanted
    beaten = [sum(pair.better not in (-1, row) for pair in rows(result) if row in pair[:2]) for row in range(5)]
    assert result.ranks.tolist() == [1 + count for count in beaten]


def test_lower_is_better_is_the_negative_of_higher():
    values = np.random.default_rng(4).normal(size=(4, 12)) + 5 * np.arange(4)[:, None]
    for result in (compare(values, higher=True), compare(-values, higher=False)):
        assert result.ranks.tolist() == [4, 3, 2, 1]


def assert_same(one: Paired, other: Paired) -> None:
    pd.testing.assert_frame_equal(pd.DataFrame(one.pairs), pd.DataFrame(other.pairs), check_exact=True)
    assert (one.ranks == other.ranks).all()
    assert (one.tied == other.tied).all()
    assert one.reason == other.reason


def test_results_depend_on_neither_batches_nor_other_comparisons(monkeypatch):
    rng = np.random.default_rng(2)
    shapes = [(3, 6), (10, 20), (3, 6), (1, 5), (4, 3), (3, 60), (3, 6)]
    comparisons = [rng.normal(size=shape) for shape in shapes]
    together = compare_many(comparisons, higher=True)
    for one, values in zip(together, comparisons, strict=True):
        assert_same(one, compare(values, higher=True))
    monkeypatch.setattr(pairs, "BATCH", 1)
    for one, other in zip(together, compare_many(comparisons, higher=True), strict=True):
        assert_same(one, other)


def test_order_of_rows_and_images_does_not_matter():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(5, 14)) + np.arange(5)[:, None]
    order, images = rng.permutation(5), rng.permutation(14)
    shuffled = compare(values[order][:, images], higher=True)
    straight = compare(values, higher=True)
    assert shuffled.ranks.tolist() == straight.ranks[order].tolist()


def test_rows_without_a_significant_difference_share_a_rank():
    steps = np.arange(1, 13) / 100
    values = np.stack([30 + steps, 30 + steps[::-1], 20 + steps])
    result = compare(values, higher=True)
    assert (result.ranks.tolist(), result.tied.tolist()) == ([1, 1, 3], [True, True, False])


def test_sharing_a_rank_is_not_transitive():
    """The middle row differs significantly from neither the first nor the last, but these two differ."""
    spread = np.linspace(-8, 9, 18)
    values = np.stack([np.full(18, 1.0), spread, np.zeros(18)])
    result = compare(values, higher=True)
    assert result.pairs["better"].tolist() == [-1, 0, -1]
    assert (result.ranks.tolist(), result.tied.tolist()) == ([1, 1, 2], [True, True, False])


def test_ranks_and_mean_must_have_the_same_sign():
    """Fifteen small gains and one great loss: ranks and mean disagree, so neither row is better."""
    gains = np.append(np.arange(1, 16) / 100, -100.0)
    result = compare(np.stack([gains, np.zeros(16)]), higher=True)
    (pair,) = rows(result)
    assert pair.p <= LEVEL
    assert pair.difference < 0
    assert (pair.better, result.ranks.tolist()) == (-1, [1, 1])


@pytest.mark.parametrize(
    ("n_rows", "n_images", "least"), [(2, 5, "0.062"), (2, 1, "1"), (10, 10, "0.088"), (3, 6, "0.094"), (3, 2, "1")]
)
def test_too_few_images_give_no_p_and_the_reason(n_rows, n_images, least):
    values = np.arange(n_rows)[:, None] + np.zeros(n_images)
    result = compare(values, higher=True)
    assert all(math.isnan(pair.p) and math.isnan(pair.p_holm) and pair.better == -1 for pair in rows(result))
    assert f"with {n_images} image" in result.reason
    assert f"none can be below {least}, and" in result.reason
    enough = images_to_test(n_rows * (n_rows - 1) // 2)
    assert f"{enough} images would do" in result.reason
    assert (result.ranks.tolist(), result.tied.tolist()) == (list(range(n_rows, 0, -1)), [False] * n_rows)
    steps = np.arange(1, n_rows + 1)[:, None] * np.arange(1, enough + 1)
    tested = compare(steps, higher=True)
    assert tested.reason == ""
    assert tested.pairs["p_holm"].min() <= LEVEL


def test_without_p_values_equal_means_are_tied():
    result = compare(np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 0.0]]), higher=True)
    assert (result.ranks.tolist(), result.tied.tolist()) == ([1, 1, 3], [True, True, False])


def test_infinite_values_are_numbers():
    rng = np.random.default_rng(0)
    exact = np.full(12, math.inf)
    values = np.stack([exact, exact, rng.normal(30, 1, 12), np.append(rng.normal(40, 1, 11), math.inf)])
    result = compare(values, higher=True)
    same, far = rows(result)[:2]
    assert (same.difference, same.p) == (0.0, 1.0)
    assert (far.difference, far.better, math.isnan(far.images_needed)) == (math.inf, 0, True)
    assert result.ranks.tolist() == [1, 1, 4, 3]


def test_a_single_row_has_no_pairs():
    for n_images in (1, 5):
        result = compare(np.ones((1, n_images)), higher=True)
        assert (rows(result), result.ranks.tolist(), result.reason) == ([], [1], "")
