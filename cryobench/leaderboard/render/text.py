"""Numbers and text as a table shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

NO_VALUE = "–"
DECIMALS = 6
SMALLEST = [10.0 ** (1 - decimals) for decimals in range(DECIMALS + 1)]
"""The smallest number that so many decimals show with two digits."""
LARGEST = 1e7
"""Smaller numbers are written out."""


def decimals_of(values: Iterable[float], digits: int) -> int:
    """How many decimals give a typical one of these values `digits` significant digits; at most `DECIMALS`."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value) and value)
    if not sizes:
        return 0
    return min(max(digits - 1 - math.floor(math.log10(sizes[len(sizes) // 2])), 0), DECIMALS)


def aligned(texts: Sequence[str]) -> list[str]:
    """Texts padded to one width."""
    width = max(map(len, texts))
    return [text.rjust(width) for text in texts]


def fixed_all(values: Sequence[float], decimals: int) -> list[str]:
    """`fixed` of each; in one go where none of them is special."""
    sizes = list(map(abs, values))
    if SMALLEST[decimals] <= min(sizes) and max(sizes) < LARGEST and not math.isnan(sum(sizes)):
        return list(map(f"%.{decimals}f".__mod__, values))
    return [fixed(value, decimals) for value in values]


def fixed(value: float, decimals: int) -> str:
    """Fixed point with so many decimals, or with more from 0.1 up where these are needed for two digits; scientific
    where it would show fewer digits still, or more than seven before the point."""
    if SMALLEST[decimals] <= abs(value) < LARGEST:
        return f"{value:.{decimals}f}"
    if 0.1 <= abs(value) < 10:
        return f"{value:.{1 if abs(value) >= 1 else 2}f}"
    if math.isnan(value):
        return NO_VALUE
    return f"{value:g}" if math.isinf(value) or value == 0 else f"{value:.1e}"


def signed(value: float, decimals: int) -> str:
    """A difference: its sign, and at least one significant digit."""
    if math.isfinite(value) and 0 < abs(value) < 0.5 * 10.0**-decimals:
        return f"{value:+.0e}"
    return " " if math.isnan(value) else f"{value:+.{decimals}f}"


def cost(value: float) -> str:
    """Two significant digits, as timings do not repeat better; the whole number where it has more."""
    if math.isnan(value):
        return NO_VALUE
    if math.isinf(value) or value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return fixed(value, min(max(1 - math.floor(math.log10(abs(value))), 0), DECIMALS))


def p_value(p: float) -> str:
    """`p=0.012`; '' for none."""
    if math.isnan(p):
        return ""
    return "p<0.001" if p < 0.001 else f"p={p:.2f}" if p >= 0.1 else f"p={p:.2g}"


@lru_cache(maxsize=10_000)  # the same solvers stand in comparison after comparison
def one_line(text: Any) -> str:
    """Text as one line: a reason may hold line breaks, and a label from a file even terminal codes."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())


@lru_cache(maxsize=10_000)
def folded(text: str, width: int) -> str:
    """Lines of at most `width`, broken after commas where that is enough."""
    lines = [""]
    for piece in text.replace(",", ",\0").split("\0"):
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append("")
        while len(piece) > width:
            lines[-1:] = [piece[:width], ""]
            piece = piece[width:]
        lines[-1] += piece
    return "\n".join(line for line in lines if line)
