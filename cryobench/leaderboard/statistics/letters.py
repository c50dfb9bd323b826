"""Compact letter display: rows that share a letter do not differ significantly, and all other pairs do.

The algorithm is insert-and-absorb with a final sweep, of Piepho, "An algorithm for a letter-based representation of
all-pairwise comparisons", Journal of Computational and Graphical Statistics 13 (2004) 456-466. Each letter is a set of
rows, here the bits of an integer.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from functools import lru_cache

LETTERS = string.ascii_lowercase + string.ascii_uppercase
MAX_SETS = 200
"""Sets that are held while they are made; orderly tables have about as many as rows."""


@lru_cache(maxsize=10_000)  # comparisons of one suite often have the same pattern
def letters(rows: int, different: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """The letters of each row, such as ("a", "ab", "b"). different: the pairs of rows that differ significantly.

    The first row has "a"; the others follow in order of the first row that has them. All are empty where more than
    `LETTERS`, or `MAX_SETS` on the way, would be needed.
    """
    sets = _absorbed([(1 << rows) - 1])
    for one, other in different:
        both = 1 << one | 1 << other
        parts = [part for each in sets for part in _split(each, both, one, other)]
        if len(parts) > len(sets):
            sets = _absorbed(parts)
        if len(sets) > MAX_SETS:
            return ("",) * rows
    sets = _swept(sorted(sets, key=lambda each: [place for place in range(rows) if each >> place & 1]), rows)
    if len(sets) > len(LETTERS):
        return ("",) * rows
    return tuple(
        "".join(letter for letter, each in zip(LETTERS, sets, strict=False) if each >> row & 1) for row in range(rows)
    )


def _split(each: int, both: int, one: int, other: int) -> tuple[int, ...]:
    """A set without one or the other of two rows that differ, if it has both."""
    return (each & ~(1 << one), each & ~(1 << other)) if each & both == both else (each,)


def _absorbed(sets: Iterable[int]) -> list[int]:
    """The sets that are in no other."""
    kept: list[int] = []
    for each in sorted(set(sets), key=int.bit_count, reverse=True):
        if not any(each & larger == each for larger in kept):
            kept.append(each)
    return kept


def _swept(sets: Sequence[int], rows: int) -> list[int]:
    """The sets without those whose pairs, and rows, are all in others; the last ones are left out first."""
    kept = list(sets)
    for each in reversed(sets):
        others = [other for other in kept if other != each]
        members = [row for row in range(rows) if each >> row & 1]
        pairs = [1 << one | 1 << other for one in members for other in members]  # a row with itself too
        if all(any(other & pair == pair for other in others) for pair in pairs):
            kept = others
    return kept
