"""Formatting of numbers and text in tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from cryobench.text import printable

NO_VALUE = "–"
DECIMALS = 6
SMALLEST = [10.0 ** (1 - decimals) for decimals in range(DECIMALS + 1)]
"""By number of decimals: the smallest number that has two significant digits."""
LARGEST = 1e7
"""Numbers from this size on are in scientific notation."""


def decimals_of(values: Iterable[float], digits: int) -> int:
    """The number of decimals with which the median value has `digits` significant digits; at most `DECIMALS`."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value) and value)
    if not sizes:
        return 0
    return min(max(digits - 1 - math.floor(math.log10(sizes[len(sizes) // 2])), 0), DECIMALS)


def aligned(texts: Sequence[str]) -> list[str]:
    """Texts padded to one width."""
    width = max(map(len, texts))
    return [text.rjust(width) for text in texts]


def fixed_all(values: Sequence[float], decimals: int) -> list[str]:
    """`fixed` of each value, with a fast path for ordinary values."""
    sizes = list(map(abs, values))
    if SMALLEST[decimals] <= min(sizes) and max(sizes) < LARGEST and not math.isnan(sum(sizes)):
        return list(map(f"%.{decimals}f".__mod__, values))
    return [fixed(value, decimals) for value in values]


def fixed(value: float, decimals: int) -> str:
    """Fixed point with `decimals` decimals, or more if two significant digits of a value from 0.1 to 10 require it.
    Scientific notation with fewer than two significant digits, or more than seven before the point."""
    if SMALLEST[decimals] <= abs(value) < LARGEST:
        return f"{value:.{decimals}f}"
    if 0.1 <= abs(value) < 10:
        return f"{value:.{1 if abs(value) >= 1 else 2}f}"
    if math.isnan(value):
        return NO_VALUE
    return f"{value:g}" if math.isinf(value) or value == 0 else f"{value:.1e}"


def signed(value: float, decimals: int) -> str:
    """A difference with its sign and at least one significant digit."""
    if math.isfinite(value) and 0 < abs(value) < 0.5 * 10.0**-decimals:
        return f"{value:+.0e}"
    return " " if math.isnan(value) else f"{value:+.{decimals}f}"


def cost(value: float) -> str:
    """Two significant digits, because timings are not more reproducible; integers in full."""
    if math.isnan(value):
        return NO_VALUE
    if math.isinf(value) or value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return fixed(value, min(max(1 - math.floor(math.log10(abs(value))), 0), DECIMALS))


def p_value(p: float) -> str:
    """`p=0.012`; '' for NaN."""
    if math.isnan(p):
        return ""
    return "p<0.001" if p < 0.001 else f"p={p:.2f}" if p >= 0.1 else f"p={p:.2g}"


@lru_cache(maxsize=10_000)  # comparisons have the same solvers
def one_line(text: Any) -> str:
    """Text as one line of printable characters: reasons may contain line breaks, and labels terminal codes."""
    return printable(" ".join(str(text).split()))


@lru_cache(maxsize=10_000)
def folded(text: str, width: int) -> str:
    """Lines of at most `width`, broken after commas where possible."""
    lines = [""]
    for piece in text.replace(",", ",\0").split("\0"):
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append("")
        while len(piece) > width:
            lines[-1:] = [piece[:width], ""]
            piece = piece[width:]
        lines[-1] += piece
    return "\n".join(line for line in lines if line)
