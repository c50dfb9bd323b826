"""Compact letter display: against its definition, by brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from cryobench.leaderboard.statistics.letters import letters


def shares(found: tuple[str, ...], one: int, other: int) -> bool:
    return bool(set(found[one]) & set(found[other]))


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_two_rows_share_a_letter_if_and_only_if_they_do_not_differ_in_every_graph(rows):
    pairs = list(combinations(range(rows), 2))
    for pattern in range(2 ** len(pairs)):
        different = tuple(pair for place, pair in enumerate(pairs) if pattern >> place & 1)
        found = letters(rows, different)
        assert all(found)
        for pair in pairs:
            assert shares(found, *pair) == (pair not in different), (different, found)


def test_larger_tables_fulfil_the_definition_and_no_letter_can_be_left_out():
    rng = np.random.default_rng(0)
    for trial in range(300):
        rows = int(rng.integers(5, 12))
        if trial % 2:  # an orderly table: differences above a threshold
            means = np.sort(rng.normal(size=rows))[::-1]
            different = tuple((i, j) for i, j in combinations(range(rows), 2) if means[i] - means[j] > 0.8)
        else:
            different = tuple(pair for pair in combinations(range(rows), 2) if rng.random() < 0.5)
        found = letters(rows, different)
        for pair in combinations(range(rows), 2):
            assert shares(found, *pair) == (pair not in different), (different, found)
        for letter in set("".join(found)):
            fewer = tuple(text.replace(letter, "") for text in found)
            kept = all(shares(fewer, *pair) == (pair not in different) for pair in combinations(range(rows), 2))
            assert not (kept and all(fewer)), (different, found, letter)


def test_letters_are_in_the_order_of_rows():
    assert letters(3, ((0, 2),)) == ("a", "ab", "b")
    assert letters(4, ((0, 1), (0, 2), (0, 3))) == ("a", "b", "b", "b")
    assert letters(3, ()) == ("a", "a", "a")
    assert letters(5, ((0, 3), (0, 4), (1, 4))) == ("a", "ab", "abc", "bc", "c")


def test_more_letters_than_the_alphabet_has_are_left_out():
    rows = 24  # twelve pairs that differ, each of one row and its partner: 2^12 sets
    assert letters(rows, tuple((2 * k, 2 * k + 1) for k in range(12))) == ("",) * rows
