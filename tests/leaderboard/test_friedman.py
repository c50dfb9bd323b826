import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobench.leaderboard.statistics.friedman import Block, critical_difference, friedman, summarise

# Demšar (2006), Table 5(a): q at the level 0.05 for 2 to 10 classifiers
PUBLISHED = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


def blocks(scores: np.ndarray, names: str = "abcdefghij") -> list[Block]:
    return [Block(f"block {place}", dict(zip(names, row, strict=False))) for place, row in enumerate(scores.tolist())]


@pytest.mark.parametrize(("n_solvers", "q"), PUBLISHED.items())
def test_the_critical_difference_is_that_of_the_published_table(n_solvers, q):
    for n_blocks in (4, 14):  # four solvers on 14 blocks are his example, with a difference of 1.25
        wanted = q * math.sqrt(n_solvers * (n_solvers + 1) / (6 * n_blocks))
        assert critical_difference(n_solvers, n_blocks) == pytest.approx(wanted, rel=4e-4)  # three decimals are printed


@settings(deadline=None)
@given(st.integers(3, 6), st.integers(2, 12), st.integers(0, 100), st.sampled_from([0, 1, 6]))
def test_friedman_equals_scipys(n_solvers, n_blocks, seed, digits):
    scores = np.round(np.random.default_rng(seed).normal(size=(n_blocks, n_solvers)) + np.arange(n_solvers), digits)
    statistic, p = friedman(scipy.stats.rankdata(scores, axis=1))
    if (scores == scores[:, :1]).all():
        assert (statistic, p) == (0, 1)
        return
    theirs = scipy.stats.friedmanchisquare(*scores.T)
    assert (statistic, p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)


def test_two_solvers():
    """For two solvers Friedman's statistic is that of the sign test without correction: (wins - losses)^2 / n."""
    scores = np.array([[1.0, 2.0]] * 7 + [[2.0, 1.0]] * 2)
    assert friedman(scipy.stats.rankdata(scores, axis=1))[0] == pytest.approx((7 - 2) ** 2 / 9)


def test_friedman_holds_its_level():
    ranks = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(1.0, 6), (2000, 10, 5)), axis=2)
    assert np.mean([friedman(board)[1] <= 0.05 for board in ranks]) < 0.06


def test_average_ranks_and_wins():
    scores = np.array([[20.0, 25.0, 30.0], [20.0, 19.0, 30.0], [20.0, 22.0, 21.0]])
    found = summarise(blocks(scores, ["pinv", "dct", "tv"]), higher=True)
    assert {each.solver: each.average_rank for each in found.solvers} == pytest.approx(
        {"tv": 4 / 3, "dct": 2.0, "pinv": 8 / 3}
    )
    assert [each.solver for each in found.solvers] == ["tv", "dct", "pinv"]
    assert [(each.beats_floor, each.with_floor) for each in found.solvers] == [(3, 3), (2, 3), (0, 0)]
    assert (found.n_blocks, found.left_out, found.reason) == (3, [], "")


def test_lower_is_better_is_the_negative_of_higher():
    scores = np.random.default_rng(0).normal(size=(6, 4))
    up, down = (summarise(blocks(sign * scores), higher=sign > 0, floor="a") for sign in (1, -1))
    assert up == down


def test_blocks_of_one_label_count_once():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(4, 3))
    seeds = [Block(label, {name: value + shift for name, value in values.items()})
             for label, values in blocks(scores) for shift in (-1.0, 0.0, 1.0)]  # fmt: skip
    once, thrice = summarise(blocks(scores), higher=True, floor="a"), summarise(seeds, higher=True, floor="a")
    assert thrice.n_blocks == once.n_blocks == 4
    assert (thrice.statistic, thrice.groups) == (once.statistic, once.groups)
    assert [row.beats_floor for row in thrice.solvers] == [row.beats_floor for row in once.solvers]


def test_a_solver_without_a_score_for_one_seed_has_none_for_the_label():
    found = summarise([Block("x", {"a": 1.0, "b": 2.0}), Block("x", {"a": 1.0, "b": None})], higher=True)
    assert {row.solver: row.n_blocks for row in found.solvers} == {"a": 1, "b": 0}


def test_a_solver_that_skips_most_blocks_is_excluded_rather_than_the_blocks():
    scores = np.random.default_rng(2).normal(size=(8, 3)) + np.array([0, 1, 2])
    with_specialist = [
        Block(label, values | ({"wiener": 9.0} if place < 2 else {}))
        for place, (label, values) in enumerate(blocks(scores))
    ]
    found, without = (summarise(given, higher=True, floor="a") for given in (with_specialist, blocks(scores)))
    assert found.n_blocks == 8
    assert (found.statistic, found.p, found.groups) == (without.statistic, without.p, without.groups)
    assert found.solvers[:3] == without.solvers
    specialist = found.solvers[3]
    assert (specialist.solver, specialist.average_rank, specialist.n_blocks) == ("wiener", None, 2)
    assert (specialist.beats_floor, specialist.with_floor) == (2, 2)


def test_a_block_skipped_by_one_of_many_solvers_is_excluded():
    given = blocks(np.random.default_rng(2).normal(size=(8, 5)))
    given[3] = Block("block 3", dict(given[3].scores) | {"c": None})
    given[4] = Block("block 4", dict(given[4].scores) | {"c": math.nan})
    found = summarise(given, higher=True)
    assert (found.n_blocks, found.left_out) == (6, ["block 3", "block 4"])
    assert all(each.average_rank is not None for each in found.solvers)


def test_groups_are_runs_within_the_critical_difference():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(12, 6)) + np.array([0, 0.3, 1.5, 2, 5, 5.3])
    found = summarise(blocks(scores), higher=True)
    rank = {each.solver: each.average_rank for each in found.solvers}
    order = [each.solver for each in found.solvers]
    assert found.p <= 0.05
    together = {frozenset(pair) for group in found.groups for pair in _pairs(group)}
    close = {frozenset((a, b)) for a, b in _pairs(order) if abs(rank[a] - rank[b]) < found.critical_difference}
    assert together == close != set()
    assert all(not set(one) <= set(other) for one in found.groups for other in found.groups if one != other)
    assert all(order.index(one[0]) < order.index(other[0]) for one, other in pairwise(found.groups))


def _pairs(names):
    return [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]


def test_without_a_significant_friedman_test_all_solvers_are_one_group():
    scores = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 3.0, 1.0]])
    found = summarise(blocks(scores), higher=True)
    assert found.p > 0.05
    assert [set(group) for group in found.groups] == [{"a", "b", "c"}]


@pytest.mark.parametrize(
    "given",
    [
        [],
        [Block("x", {"a": 1.0, "b": 2.0})],
        [Block("x", {"a": 1.0}), Block("y", {"a": 2.0})],
        [Block("x", {"a": 1.0}), Block("y", {"b": 2.0})],
        [Block("x", {}), Block("y", {})],
    ],
)
def test_nothing_to_summarise(given):
    found = summarise(given, higher=True, floor="a")
    assert (found.n_blocks, found.statistic, found.p, found.critical_difference, found.groups) == (0, *[None] * 3, [])
    assert "two" in found.reason
    assert all(each.average_rank is None for each in found.solvers)


def test_solvers_are_excluded_until_half_of_the_blocks_are_complete():
    """Two groups of solvers without common blocks: one group is ranked, with the floor, on its own blocks."""
    kinds = [{"floor": 1.0, "a": 2.0, "b": 3.0}, {"floor": 1.0, "c": 2.0}]
    found = summarise([Block(str(place), kinds[place % 2]) for place in range(8)], higher=True, floor="floor")
    ranked = {each.solver for each in found.solvers if each.average_rank is not None}
    assert (ranked, found.n_blocks) == ({"floor", "a", "b"}, 4)
    assert found.left_out == ["1", "3", "5", "7"]


def test_exact_images_are_ranked_first_and_share():
    given = blocks(np.array([[math.inf, math.inf, 1.0], [math.inf, math.inf, 2.0]]))
    found = summarise(given, higher=True)
    assert [each.average_rank for each in found.solvers] == [1.5, 1.5, 3.0]
