import math
from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from cryobench.errors import ParameterError
from cryobench.leaderboard.statistics import pairs
from cryobench.leaderboard.statistics.bootstrap import bootstrap_interval
from cryobench.leaderboard.statistics.pairs import Paired, compare, compare_many
from cryobench.leaderboard.statistics.power import LEVEL, POWER, images_needed, images_to_test
from cryobench.leaderboard.statistics.signed_rank import holm, signed_rank

N_BOARDS = 2000


def boards(rng: np.random.Generator, n_rows: int = 6, n_images: int = 20) -> np.ndarray:
    """Boards [N_BOARDS, rows, images] without any difference: images of their own difficulty, heavy-tailed noise."""
    difficulty = rng.normal(0, 3, size=(N_BOARDS, 1, n_images))
    return 25 + difficulty + rng.standard_t(2, size=(N_BOARDS, n_rows, n_images))


def interval_99(errors: int) -> tuple[float, float]:
    """Clopper-Pearson interval of the error of which so many of the boards are an example."""
    return tuple(scipy.stats.binomtest(int(errors), N_BOARDS).proportion_ci(0.99))


def test_under_no_difference_at_most_one_board_in_twenty_is_wrong():
    results = compare_many(list(boards(np.random.default_rng(0))), higher=True, intervals=False)
    wrong = sum(any(pair.better is not None for pair in board.pairs) for board in results)
    assert interval_99(wrong)[0] <= LEVEL
    assert wrong > 0  # a test that never finds anything would pass too
    assert wrong == sum(board.ranks != [1] * 6 for board in results)


def test_correcting_against_the_leader_alone_errs_one_time_in_eight():
    """Of ten rows and 20 images. Which is why all pairs are corrected for: the leader is the best of the same data."""
    values = np.random.default_rng(9).normal(size=(N_BOARDS, 10, 20))
    leaders = values.mean(axis=2).argmax(axis=1)
    others = [np.delete(board, leader, axis=0) for board, leader in zip(values, leaders, strict=True)]
    differences = values[np.arange(N_BOARDS), leaders][:, None] - np.stack(others)
    corrected = holm(signed_rank(differences.reshape(-1, 20))[0].reshape(N_BOARDS, 9))
    lo, hi = interval_99((corrected <= LEVEL).any(axis=1).sum())
    assert LEVEL < 0.09 < lo < hi < 0.15


def test_half_a_decibel_is_found_with_the_stated_power():
    """Six solvers; one is 0.5 dB better than the others, with 0.8 dB of scatter in each paired difference."""
    exact = np.array([[-1.0, 1.0]]) / math.sqrt(2) * 0.8 + 0.5  # mean 0.5, standard deviation 0.8
    n_images = int(images_needed(exact, 15)[0])
    rng = np.random.default_rng(5)
    values = rng.normal(0, 3, size=(N_BOARDS, 1, n_images)) + rng.normal(
        0, 0.8 / math.sqrt(2), size=(N_BOARDS, 6, n_images)
    )
    values[:, 2] += 0.5
    results = compare_many(list(values), higher=True, intervals=False)
    found = np.mean([board.pairs[1].better == 2 for board in results])  # the pair (0, 2)
    assert POWER - 0.03 < found < POWER + 0.08  # Holm's later steps are easier than the first, which was planned for
    assert interval_99(sum(board.ranks[2] != 1 for board in results))[0] <= LEVEL


def test_agrees_with_scipy_and_the_definitions():
    values = np.random.default_rng(0).normal(size=(5, 15)) + np.array([[0.0, 0.1, 1.0, 1.2, 2.0]]).T
    result = compare(values, higher=True)
    assert [(pair.first, pair.second) for pair in result.pairs] == list(combinations(range(5), 2))
    theirs = [scipy.stats.wilcoxon(values[i], values[j]).pvalue for i, j in combinations(range(5), 2)]
    assert [pair.p for pair in result.pairs] == pytest.approx(theirs)
    assert [pair.p_holm for pair in result.pairs] == pytest.approx(holm(np.array(theirs)))
    for pair in result.pairs:
        differences = values[pair.first] - values[pair.second]
        assert pair.difference == pytest.approx(differences.mean())
        assert (pair.lo, pair.hi) == bootstrap_interval(differences.tolist(), resamples=pairs.RESAMPLES)
        assert pair.images_needed == images_needed(differences[None], 10)[0]
        wanted = (pair.second if pair.difference < 0 else pair.first) if pair.p_holm <= LEVEL else None
        assert pair.better == wanted
    beaten = [sum(pair.better not in (None, row) for pair in result.pairs if row in pair[:2]) for row in range(5)]
    assert result.ranks == [1 + count for count in beaten]


def test_lower_is_better_is_the_negative_of_higher():
    values = np.random.default_rng(4).normal(size=(4, 12)) + 5 * np.arange(4)[:, None]
    assert compare(values, higher=True).ranks == compare(-values, higher=False).ranks == [4, 3, 2, 1]


def test_neither_batches_nor_company_change_a_result(monkeypatch):
    rng = np.random.default_rng(2)
    shapes = [(3, 6), (10, 20), (3, 6), (1, 5), (4, 3), (3, 60), (3, 6)]
    comparisons = [rng.normal(size=shape) for shape in shapes]
    together = compare_many(comparisons, higher=True)
    assert together == [compare(values, higher=True) for values in comparisons]
    monkeypatch.setattr(pairs, "BATCH", 1)
    assert together == compare_many(comparisons, higher=True)


def test_order_of_rows_and_images_does_not_matter():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(5, 14)) + np.arange(5)[:, None]
    rows, images = rng.permutation(5), rng.permutation(14)
    shuffled = compare(values[rows][:, images], higher=True)
    straight = compare(values, higher=True)
    assert shuffled.ranks == [straight.ranks[row] for row in rows]


def test_rows_that_cannot_be_told_apart_share_a_rank():
    steps = np.arange(1, 13) / 100
    values = np.stack([30 + steps, 30 + steps[::-1], 20 + steps])
    assert (compare(values, higher=True).ranks, compare(values, higher=True).tied) == (
        [1, 1, 3],
        [True, True, False],
    )


def test_sharing_a_rank_is_not_transitive():
    """The middle one is neither shown to be worse than the first nor better than the last; these two differ."""
    spread = np.linspace(-8, 9, 18)
    values = np.stack([np.full(18, 1.0), spread, np.zeros(18)])
    result = compare(values, higher=True)
    assert [pair.better for pair in result.pairs] == [None, 0, None]
    assert (result.ranks, result.tied) == ([1, 1, 2], [True, True, False])


def test_ranks_and_mean_must_point_the_same_way():
    """Fifteen small gains and one great loss: the ranks say better, the mean says worse, and so nothing is said."""
    gains = np.append(np.arange(1, 16) / 100, -100.0)
    result = compare(np.stack([gains, np.zeros(16)]), higher=True)
    assert result.pairs[0].p <= LEVEL
    assert result.pairs[0].difference < 0
    assert (result.pairs[0].better, result.ranks) == (None, [1, 1])


@pytest.mark.parametrize(
    ("n_rows", "n_images", "least"), [(2, 5, "0.062"), (2, 1, "1"), (10, 10, "0.088"), (3, 6, "0.094"), (3, 2, "1")]
)
def test_too_few_images_give_no_p_and_the_reason(n_rows, n_images, least):
    values = np.arange(n_rows)[:, None] + np.zeros(n_images)
    result = compare(values, higher=True)
    assert all(pair.p is pair.p_holm is pair.better is None for pair in result.pairs)
    assert f"with {n_images} image" in result.why_not
    assert f"can be below {least}, and" in result.why_not
    enough = images_to_test(n_rows * (n_rows - 1) // 2)
    assert f"{enough} images would do" in result.why_not
    assert (result.ranks, result.tied) == (list(range(n_rows, 0, -1)), [False] * n_rows)
    steps = np.arange(1, n_rows + 1)[:, None] * np.arange(1, enough + 1)
    tested = compare(steps, higher=True)
    assert (tested.why_not, tested.remarks) == ("", [])
    assert min(pair.p_holm for pair in tested.pairs) <= LEVEL


def test_without_p_values_equal_means_are_tied():
    result = compare(np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 0.0]]), higher=True)
    assert (result.ranks, result.tied) == ([1, 1, 3], [True, True, False])


def test_a_row_without_a_number_is_not_tested():
    values = np.random.default_rng(1).normal(size=(4, 9)) + np.arange(4)[:, None] * 3
    whole = compare(values[[0, 1, 3]], higher=True)
    values[2, 4] = math.nan
    result = compare(values, higher=True)
    assert result.left_out == [2]
    assert (result.ranks, result.tied) == ([3, 2, None, 1], [False] * 4)
    assert [pair[:2] for pair in result.pairs] == list(combinations(range(4), 2))
    for pair in result.pairs:
        if 2 in pair[:2]:
            assert pair[2:] == (None,) * 7
    others = [pair for pair in result.pairs if 2 not in pair[:2]]
    assert [pair.p_holm for pair in others] == [pair.p_holm for pair in whole.pairs]
    assert [pair.better for pair in others] == [1, 3, 3]
    assert "1 of the rows not tested" in result.remarks[0]


def test_infinite_values_are_numbers():
    rng = np.random.default_rng(0)
    exact = np.full(12, math.inf)
    values = np.stack([exact, exact, rng.normal(30, 1, 12), np.append(rng.normal(40, 1, 11), math.inf)])
    result = compare(values, higher=True)
    same, far = result.pairs[0], result.pairs[1]
    assert (same.difference, same.lo, same.hi, same.p) == (0.0, 0.0, 0.0, 1.0)
    assert (far.difference, far.lo, far.hi, far.better, far.images_needed) == (math.inf, None, None, 0, None)
    assert result.ranks == [1, 1, 4, 3]
    assert result.left_out == []


def test_infinities_of_both_signs_have_no_mean():
    values = np.array([[math.inf, -math.inf, 1.0], [0.0, 0.0, 0.0]])
    assert compare(values, higher=True).left_out == [0]


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (1, 1), (3, 0), (0, 0)])
def test_nothing_to_compare(shape):
    result = compare(np.ones(shape), higher=True)
    assert [pair for pair in result.pairs if pair.p is not None] == []
    assert result.ranks == [1 if shape[1] else None] * shape[0]
    assert result.why_not == ""


def test_intervals_can_be_left_out():
    values = [np.random.default_rng(0).normal(size=(3, 8))]
    with_them, without = (compare_many(values, higher=True, intervals=wanted)[0] for wanted in (True, False))
    assert without == Paired(
        [pair._replace(lo=None, hi=None) for pair in with_them.pairs], with_them.ranks, with_them.tied
    )


def test_refuses_what_is_no_table():
    with pytest.raises(ParameterError, match=r"\[rows, images\]"):
        compare(np.zeros(5), higher=True)
