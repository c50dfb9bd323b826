"""Families of operators that differ in one parameter, over which quality is drawn as a curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from cryobench.errors import SpecError
from cryobench.spec import Spec, parse

Key = tuple[int, str]
"""A parameter: the index of its component in the composition, outermost first, and its name, '' for a bare value."""
SAME = 0.01
"""Relative difference up to which compressions are equal: N / rank(A) rounds."""
COMPRESSION = "effective compression N / rank(A)"


class Family(NamedTuple):
    """Two or more operators. pattern: their spec with x for the parameter. values: its text in each operator, None
    where it has its default."""

    pattern: str
    values: dict[str, str | None]


class Axis(NamedTuple):
    """The abscissa of a curve, and its comparisons (number, x) by increasing x."""

    label: str
    stands: list[tuple[int, float]]


def families(operators: Iterable[str]) -> list[Family]:
    """The families among operator specs. An operator may be in several or none; invalid specs are in none."""
    known = {text: spec for text in dict.fromkeys(operators) if (spec := _parsed(text)) is not None}
    parameters = {text: dict(_parameters(spec)) for text, spec in known.items()}
    keys = sorted({key for given in parameters.values() for key in given})
    found: dict[tuple, dict[str, str | None]] = {}
    for text, given in parameters.items():
        for key in keys:
            common = frozenset(item for item in given.items() if item[0] != key)
            found.setdefault((_components(known[text]), common, key), {})[text] = given.get(key)
    return [
        Family(_pattern(known[next(text for text, value in values.items() if value is not None)], key), values)
        for (_, _, key), values in found.items()
        if len(set(values.values())) > 1
    ]


def axis(family: Family, places: Sequence[tuple[int, str, float | None]]) -> Axis | None:
    """The axis for comparisons (number, operator, effective compression) of a family; None where there is no curve.

    The effective compression where it distinguishes them, else the parameter if it is a number, such as block sizes of
    equal compression.
    """
    compressions = [(number, compression) for number, _, compression in places]
    parameters = [(number, _number(family.values[operator])) for number, operator, _ in places]
    for label, stands in ((COMPRESSION, compressions), (f"x of {family.pattern}", parameters)):
        known = sorted(((number, x) for number, x in stands if x is not None), key=lambda stand: stand[1])
        distinct = all(second - first > SAME * abs(second) for (_, first), (_, second) in pairwise(known))
        if len(known) == len(places) > 1 and distinct:
            return Axis(label, known)
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parsed(text: str) -> Spec | None:
    try:
        return parse(text)
    except SpecError:
        return None


def _components(spec: Spec | None) -> tuple[str, ...]:
    return () if spec is None else (spec.name, *_components(spec.after))


def _parameters(spec: Spec, level: int = 0) -> Iterator[tuple[Key, str]]:
    if spec.value is not None:
        yield (level, ""), spec.value
    yield from (((level, name), text) for name, text in spec.params)
    if spec.after is not None:
        yield from _parameters(spec.after, level + 1)


def _pattern(spec: Spec, key: Key) -> str:
    level, name = key
    if level and spec.after is not None:
        return str(replace(spec, after=None)) + "@" + _pattern(spec.after, (level - 1, name))
    if not name:
        return str(replace(spec, value="x"))
    return str(replace(spec, params=tuple((key, "x" if key == name else text) for key, text in spec.params)))
