"""Thresholds of regressions: `psnr:-0.1,seconds:+20%`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from cryobench.errors import ParameterError
from cryobench.registry import did_you_mean

ALIASES = {"seconds": "seconds_per_image"}
_CHANGE = re.compile(r"([+-])(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)(%?)", re.IGNORECASE)


class Threshold(NamedTuple):
    """A limit for the change of a column's mean for the worse. sign: -1 for a drop, 1 for a rise. amount: in the unit
    of the column, or relative to the old mean."""

    column: str
    sign: int
    amount: float
    relative: bool

    def __str__(self) -> str:
        amount = f"{100 * self.amount:g}%" if self.relative else f"{self.amount:g}"
        return f"{self.column}:{'+' if self.sign > 0 else '-'}{amount}"

    def passed_by(self, old: float, new: float) -> bool:
        """Whether the change from old to new exceeds the threshold."""
        limit = self.amount * (1 if not self.relative else abs(old) if math.isfinite(old) else 0)
        return self.sign * (new - old) > limit  # False for equal infinities, whose difference is NaN


def thresholds(text: str, directions: Mapping[str, str]) -> list[Threshold]:
    """The thresholds in a text such as `psnr:-0.1,seconds:+20%`. directions: of each column: higher, lower or none.

    Raises `ParameterError` for an unknown column, an invalid change, and an improvement.
    """
    return [_threshold(part.strip(), directions) for part in text.split(",")]


def _threshold(text: str, directions: Mapping[str, str]) -> Threshold:
    name, _, change = text.rpartition(":")
    found = _CHANGE.fullmatch(change)
    if not name or not found:
        raise ParameterError(f"invalid threshold {text!r}; give NAME:-0.1, NAME:+0.1, NAME:-5% or NAME:+5%")
    column = known_column(name, directions)
    sign, amount, percent = found.groups()
    worse = {"higher": "-", "lower": "+"}.get(directions[column], sign)
    if sign != worse:
        raise ParameterError(f"{text!r} is an improvement: {name} gets worse with '{worse}'; write {worse}")
    return Threshold(column, -1 if sign == "-" else 1, float(amount) / (100 if percent else 1), bool(percent))


def known_column(name: str, directions: Mapping[str, str]) -> str:
    """The full name of a column. Raises `ParameterError` if it is not in both results."""
    column = ALIASES.get(name, name)
    if column not in directions:
        raise ParameterError(f"no column {name!r} in both results; {did_you_mean(name, directions)}")
    return column
