"""A leaderboard in Markdown, with tables as GitHub reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from cryobench.leaderboard.render.boards import remarks
from cryobench.leaderboard.render.columns import DIFFERENCE, Column, forms
from cryobench.leaderboard.render.overall import Section, sections

ESCAPES = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|#~"})


def to_markdown(frame: pd.DataFrame) -> str:
    """The leaderboard with all columns, intervals only of what ranks and of the difference in it."""
    lines = [line for part in sections(frame) for line in _section(part, (frame.attrs["by"], DIFFERENCE))]
    return "\n".join(lines or ["no results", ""])


def _section(part: Section, in_full: Sequence[str]) -> Iterator[str]:
    if part.heading:
        yield from (f"## {_escaped(part.heading)}", "")
    for board in part.boards:
        yield from (f"### {_escaped(board.title)}", "")
        told = list(board.unranked)
        if len(board):
            shown = forms(board, in_full)
            yield from _table(shown)
            told = [*remarks(board, [column.name for column in shown]), *told]
        yield from _list(told)
    if part.overall is not None:
        yield from ("### all comparisons" + (f" of {_escaped(part.heading)}" if part.heading else ""), "")
        yield from _table(part.overall.columns)
        yield from _list(part.overall.remarks)


def _table(shown: Sequence[Column]) -> Iterator[str]:
    yield _row(_escaped(column.title) for column in shown)
    yield "|" + "|".join(":--" if column.name == "solver" else "--:" for column in shown) + "|"
    columns = [map(_escaped if column.name == "solver" else str.strip, column.cells) for column in shown]
    yield from map(_row, zip(*columns, strict=True))
    yield ""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _list(lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield from (f"- {_escaped(line)}" for line in lines)
        yield ""


def _escaped(text: str) -> str:
    return text.translate(ESCAPES)
