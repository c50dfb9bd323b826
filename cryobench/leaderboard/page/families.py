"""Operators that differ in one parameter alone: along such a family a quality is a curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from cryobench.errors import SpecError
from cryobench.spec import Spec, parse

Key = tuple[int, str]
"""A parameter: in which of the composed components, counted from the outermost, and its name, '' for a bare value."""
SAME = 0.01
"""Compressions that differ relatively by less are one: N / rank(A) rounds."""
COMPRESSION = "effective compression N / rank(A)"


@dataclass(frozen=True)
class Family:
    """Two or more operators. pattern: their spec, with x for what differs. values: the text of it in each, None where
    it is not given and its default holds."""

    pattern: str
    values: dict[str, str | None]


class Place(NamedTuple):
    """A comparison on an operator: its number, and the effective compression, where it is known."""

    number: int
    operator: str
    compression: float | None


class Axis(NamedTuple):
    """What a curve runs along, and the comparisons on it: (number, x), by increasing x."""

    label: str
    stands: list[tuple[int, float]]


def families(operators: Iterable[str]) -> list[Family]:
    """The families among operator specs. An operator may be in several, and in none; so is what is no spec."""
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


def axis(family: Family, places: Sequence[Place]) -> Axis | None:
    """How these comparisons, on operators of the family, lie along a curve; None where they do not.

    Along the effective compression where that tells them apart, else along the parameter where that is a number: block
    sizes of one compression, say.
    """
    compressions = [(place.number, place.compression) for place in places]
    numbers = [(place.number, _number(family.values[place.operator])) for place in places]
    for label, stands in ((COMPRESSION, compressions), (f"x of {family.pattern}", numbers)):
        known = sorted(((number, x) for number, x in stands if x is not None), key=lambda stand: stand[1])
        if len(known) == len(places) > 1 and _apart([x for _, x in known]):
            return Axis(label, known)
    return None


def _apart(rising: Sequence[float]) -> bool:
    return all(second - first > SAME * abs(second) for first, second in pairwise(rising))


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
    for name, text in spec.params:
        yield (level, name), text
    if spec.after is not None:
        yield from _parameters(spec.after, level + 1)


def _pattern(spec: Spec, key: Key) -> str:
    level, name = key
    if level and spec.after is not None:
        return str(replace(spec, after=None)) + "@" + _pattern(spec.after, (level - 1, name))
    if not name:
        return str(replace(spec, value="x"))
    return str(replace(spec, params=tuple((key, "x" if key == name else text) for key, text in spec.params)))
