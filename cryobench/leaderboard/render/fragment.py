"""A leaderboard as a fragment of HTML, for a notebook or a page of one's own."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from cryobench.leaderboard.render.boards import remarks
from cryobench.leaderboard.render.columns import DIFFERENCE, Column, forms
from cryobench.leaderboard.render.overall import Section, sections
from cryobench.leaderboard.table import metric_columns


def to_html(frame: pd.DataFrame) -> str:
    """The leaderboard with every column, all with intervals, and no style of its own."""
    in_full = [DIFFERENCE, *(column["name"] for column in metric_columns(frame))]
    parts = [line for part in sections(frame) for line in _section(part, in_full)]
    return "\n".join(['<div class="cryobench-leaderboard">', *(parts or ["<p>no results</p>"]), "</div>"]) + "\n"


def _section(part: Section, in_full: Sequence[str]) -> Iterator[str]:
    if part.heading:
        yield f"<h3>{html.escape(part.heading)}</h3>"
    for board in part.boards:
        yield f"<h4>{html.escape(board.title)}</h4>"
        if len(board):
            shown = forms(board, in_full)
            yield from _table(shown)
            yield from _paragraphs(remarks(board, [column.name for column in shown]))
        yield from _paragraphs(board.unranked)
    if part.overall is not None:
        yield "<h4>all comparisons</h4>"
        yield from _table(part.overall.columns)
        yield from _paragraphs(part.overall.remarks)


def _table(shown: Sequence[Column]) -> Iterator[str]:
    heads = "".join(f"<th>{html.escape(column.title)}</th>" for column in shown)
    yield f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>"
    for cells in zip(*(column.cells for column in shown), strict=True):
        yield "<tr>" + "".join(f"<td>{html.escape(cell.strip())}</td>" for cell in cells) + "</tr>"
    yield "</tbody>\n</table>"


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    return (f"<p>{html.escape(line)}</p>" for line in lines)
