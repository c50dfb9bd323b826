"""A leaderboard in LaTeX, for a paper: tables by booktabs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from cryobench.leaderboard.render.boards import remarks
from cryobench.leaderboard.render.columns import DIFFERENCE, Column, forms
from cryobench.leaderboard.render.overall import Section, sections

SPELLED = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "[": "{[}",  # after \\ it would be read as a length
        "·": r"\textperiodcentered{}",
        "–": "--",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "Å": r"\AA{}",
        "†": r"\textdagger{}",
        "‡": r"\textdaggerdbl{}",
        "◆": r"$\diamond$",
    }
)
SPECIAL = frozenset(map(chr, SPELLED))


def to_latex(frame: pd.DataFrame) -> str:
    """A `table` for each comparison, all columns, intervals only of what ranks and of the difference in it."""
    lines = [line for part in sections(frame) for line in _section(part, (frame.attrs["by"], DIFFERENCE))]
    return "\n".join([r"% in the preamble: \usepackage{booktabs}", *(lines or ["no results"])]) + "\n"


def _section(part: Section, in_full: Sequence[str]) -> Iterator[str]:
    if part.heading:
        yield f"\\subsection*{{{_spelled(part.heading)}}}"
    for board in part.boards:
        shown = forms(board, in_full) if len(board) else []
        told = remarks(board, [column.name for column in shown]) if shown else []
        yield from _float(board.title, shown, [*told, *board.unranked])
    if part.overall is not None:
        yield from _float("all comparisons", part.overall.columns, part.overall.remarks)


def _float(title: str, shown: Sequence[Column], told: Sequence[str]) -> Iterator[str]:
    yield r"\begin{table}"
    yield f"\\caption{{{_spelled(title)}}}"
    if shown:
        yield r"\begin{tabular}{" + "".join("l" if column.name == "solver" else "r" for column in shown) + "}"
        yield r"\toprule"
        yield _row(_spelled(column.title) for column in shown)
        yield r"\midrule"
        yield from map(_row, zip(*map(_cells, shown), strict=True))
        yield r"\bottomrule"
        yield r"\end{tabular}"
    yield from (f"\\par\\footnotesize {_spelled(line)}" for line in told)
    yield r"\end{table}"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cells(column: Column) -> Iterator[str]:
    """The cells of a column; most hold numbers and nothing that must be spelled."""
    plain = SPECIAL.isdisjoint("".join(column.cells))
    return map(str.strip if plain else _spelled, column.cells)


def _spelled(text: str) -> str:
    return text.strip().translate(SPELLED)
