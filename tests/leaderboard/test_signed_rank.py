import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobench.leaderboard.statistics.signed_rank import EXACT_UP_TO, holm, midranks, signed_rank, upper_tail

SOME_TIES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8)


def brute_force(differences: list[float]) -> float:
    """The two-sided p by enumerating all signs of the midranks; zeros are ranked and have no sign (Pratt)."""
    ranks = scipy.stats.rankdata(np.abs(differences)) * (np.array(differences) != 0)
    seen = abs(sum(math.copysign(1, value) * rank for value, rank in zip(differences, ranks, strict=True)))
    every = [abs(np.dot(signs, ranks)) for signs in product((-1, 1), repeat=len(differences))]
    return float(np.mean(np.array(every) >= seen - 1e-9))


@settings(deadline=None)
@given(st.lists(SOME_TIES, min_size=1, max_size=3).filter(lambda rows: len(set(map(len, rows))) == 1))
def test_midranks_equal_scipys(rows):
    values = np.array(rows)
    values[values == 3] = math.inf
    np.testing.assert_array_equal(midranks(values), scipy.stats.rankdata(values, axis=1))


@settings(deadline=None, max_examples=200)
@given(SOME_TIES)
def test_exact_p_values_equal_enumeration_with_ties_and_zeros(differences):
    p, _ = signed_rank(np.array([differences]))
    assert p[0] == pytest.approx(brute_force(differences), abs=1e-12)


@pytest.mark.parametrize("n_images", [1, 2, 3, 8, 20, EXACT_UP_TO])
def test_without_ties_it_is_scipys_exact_test(n_images):
    differences = np.random.default_rng(n_images).normal(0.3, size=(20, n_images))
    p, direction = signed_rank(differences)
    theirs = scipy.stats.wilcoxon(differences, axis=1, method="exact")
    assert p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert direction.tolist() == [np.sign(2 * plus - n_images * (n_images + 1) / 2) for plus in _plus(differences)]


def _plus(differences: np.ndarray) -> list[float]:
    return [scipy.stats.rankdata(np.abs(row))[row > 0].sum() for row in differences]


def test_beyond_the_exact_range_it_is_scipys_approximation_without_ties():
    differences = np.random.default_rng(0).standard_t(2, size=(50, EXACT_UP_TO + 10)) + 0.2
    p, _ = signed_rank(differences)
    theirs = scipy.stats.wilcoxon(differences, axis=1, correction=True, method="asymptotic")
    assert p == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize("digits", [0, 1, 8])  # many ties and zeros, some, none
def test_beyond_the_exact_range_it_is_close_to_the_exact_test(digits, monkeypatch):
    differences = np.round(np.random.default_rng(0).standard_t(2, size=(50, EXACT_UP_TO + 10)) + 0.2, digits)
    approximate, _ = signed_rank(differences)
    monkeypatch.setattr("cryobench.leaderboard.statistics.signed_rank.EXACT_UP_TO", 1000)
    exact, _ = signed_rank(differences)
    assert np.abs(approximate - exact).max() < 0.001


@pytest.mark.parametrize(("wins", "losses", "zeros", "within"), [(40, 20, 40, 1e-9), (400, 350, 400, 0.01)])
def test_with_one_size_of_difference_it_is_the_sign_test(wins, losses, zeros, within):
    differences = np.repeat([1.0, -1.0, 0.0], [wins, losses, zeros])[None]
    p, _ = signed_rank(differences)
    assert p[0] == pytest.approx(scipy.stats.binomtest(wins, wins + losses).pvalue, rel=within)


def test_where_the_approximation_takes_over_it_is_close_and_on_the_safe_side():
    differences = np.random.default_rng(1).normal(0.3, size=(500, EXACT_UP_TO + 1))
    p, _ = signed_rank(differences)
    truth = scipy.stats.wilcoxon(differences, axis=1, method="exact").pvalue
    assert np.abs(p - truth).max() < 0.005
    small = truth < 0.05
    assert small.sum() > 100
    assert np.all(p[small] >= truth[small])


@settings(deadline=None)
@given(SOME_TIES)
def test_swapping_the_rows_reverses_only_the_direction(differences):
    values = np.array([differences])
    (p, way), (p_swapped, way_swapped) = signed_rank(values), signed_rank(-values)
    assert p[0] == p_swapped[0]
    assert way[0] == -way_swapped[0]


def test_infinite_differences_are_the_largest():
    finite = np.array([[0.1, -0.2, 0.3, 50.0, 0.7]])
    infinite = np.where(finite == 50.0, math.inf, finite)
    assert signed_rank(infinite)[0] == signed_rank(finite)[0]
    both = np.array([[math.inf, -math.inf, 1.0]])
    assert signed_rank(both)[0] == pytest.approx(brute_force([9.0, -9.0, 1.0]))


def test_zero_differences_have_p_one():
    p, direction = signed_rank(np.zeros((1, 7)))
    assert (p.tolist(), direction.tolist()) == ([1.0], [0])
    p, direction = signed_rank(np.zeros((1, EXACT_UP_TO + 1)))
    assert (p.tolist(), direction.tolist()) == ([1.0], [0])


def test_the_tail_is_a_distribution():
    tail = upper_tail((2, 4, 6))
    assert tail[0] == 1
    sums = np.array([2 * a + 4 * b + 6 * c for a, b, c in product((0, 1), repeat=3)])
    assert tail.tolist() == pytest.approx([np.mean(sums >= least) for least in range(13)])


def by_definition(p: list[float]) -> list[float]:
    """Holm's correction: the i-th smallest times the number of those not smaller, and no less than the ones before."""
    order = sorted(range(len(p)), key=p.__getitem__)
    return [
        min(1.0, max(p[order[step]] * (len(p) - step) for step in range(order.index(place) + 1)))
        for place in range(len(p))
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm(p):
    corrected = holm(np.array([p, p]))
    assert corrected[0] == pytest.approx(by_definition(p))
    assert corrected[0].tolist() == corrected[1].tolist()
    assert np.all(corrected[0] >= p)


def test_holm_lies_between_no_correction_and_bonferroni():
    p = np.random.default_rng(0).uniform(size=(100, 10)) ** 3
    assert np.all(holm(p) <= np.minimum(p * 10, 1))
