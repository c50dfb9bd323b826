"""Families of operators that differ in one parameter, for curves of quality against this parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from cryobench.errors import SpecError
from cryobench.spec import Spec, parse

Key = tuple[int, str]
"""A parameter: the index of its component in the composition, outermost first, and its name, '' for a bare value."""
TOLERANCE = 0.01
"""Relative difference up to which compressions count as equal, because rank(A) is an integer."""
COMPRESSION = "effective compression N / rank(A)"


class Family(NamedTuple):
    """Two or more operators that differ in one parameter. pattern: their spec with x for the parameter. values: its
    text in each operator, None for the default."""

    pattern: str
    values: dict[str, str | None]


class Axis(NamedTuple):
    """The abscissa of a curve, and its comparisons (number, x) by increasing x."""

    label: str
    points: list[tuple[int, float]]


def families(operators: Iterable[str]) -> list[Family]:
    """The families of operator specs. An operator may be in several or none; invalid specs are in none."""
    found: dict[tuple, dict[str, str | None]] = {}
    chains: dict[str, list[Spec]] = {}
    for text in dict.fromkeys(operators):
        with suppress(SpecError):
            chains[text] = _chain(parse(text))
    parameters = {text: _parameters(chain) for text, chain in chains.items()}
    for key in sorted({key for given in parameters.values() for key in given}):
        for text, given in parameters.items():
            common = frozenset(item for item in given.items() if item[0] != key)
            names = tuple(spec.name for spec in chains[text])
            found.setdefault((key, names, common), {})[text] = given.get(key)
    return [
        Family(_pattern(chains[next(text for text, value in values.items() if value is not None)], key), values)
        for (key, _, _), values in found.items()
        if len(set(values.values())) > 1
    ]


def axis(family: Family, places: Sequence[tuple[int, str, float | None]]) -> Axis | None:
    """The axis for comparisons (number, operator, effective compression) of a family; None if there is no curve.

    The effective compression if it distinguishes them, else the parameter if it is a number (such as block sizes with
    equal compression).
    """
    compressions = [(number, compression) for number, _, compression in places]
    parameters = [(number, _number(family.values[operator])) for number, operator, _ in places]
    for label, points in ((COMPRESSION, compressions), (f"x of {family.pattern}", parameters)):
        known = sorted(((number, x) for number, x in points if x is not None), key=lambda point: point[1])
        distinct = all(second - first > TOLERANCE * abs(second) for (_, first), (_, second) in pairwise(known))
        if len(known) == len(places) > 1 and distinct:
            return Axis(label, known)
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _chain(spec: Spec) -> list[Spec]:
    """The composed components, outermost first."""
    return [replace(spec, after=None), *(_chain(spec.after) if spec.after is not None else [])]


def _parameters(chain: Sequence[Spec]) -> dict[Key, str]:
    values = {(level, ""): spec.value for level, spec in enumerate(chain) if spec.value is not None}
    return values | {(level, name): text for level, spec in enumerate(chain) for name, text in spec.params}


def _pattern(chain: Sequence[Spec], key: Key) -> str:
    level, name = key
    params = tuple((own, "x" if own == name else text) for own, text in chain[level].params)
    changed = replace(chain[level], params=params) if name else replace(chain[level], value="x")
    return "@".join(map(str, [*chain[:level], changed, *chain[level + 1 :]]))
