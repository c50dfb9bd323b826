"""Comparisons under headings, and average ranks over several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import pandas as pd

from cryobench.leaderboard.render.boards import Board, boards, remarks
from cryobench.leaderboard.render.columns import TextColumn
from cryobench.leaderboard.render.text import NO_VALUE, one_line, p_value
from cryobench.leaderboard.statistics.friedman import AverageRanks, Block, summarise
from cryobench.leaderboard.statistics.power import LEVEL
from cryobench.record import COSTS
from cryobench.text import counted


class TableBlock(NamedTuple):
    """One table of a rendering. columns: empty where there are no results. lines: remarks, and one line for each cell
    without a result. board: None for average ranks."""

    title: str
    columns: Sequence[TextColumn]
    lines: Sequence[str]
    board: Board | None = None


class Section(NamedTuple):
    """Comparisons with the same value of the grouping column. heading: '' if the leaderboard is not grouped. overall:
    None for a single comparison, and if solvers have too few comparisons in common."""

    heading: str
    boards: Sequence[Board]
    overall: TableBlock | None


def sections(frame: pd.DataFrame) -> Iterator[Section]:
    """The comparisons of a leaderboard under their headings, with average ranks where there are several."""
    by = frame.attrs.get("group_by")
    directions = {column["name"]: column["direction"] for column in frame.attrs["columns"]}
    higher = directions.get(frame.attrs["by"]) != "lower" and frame.attrs["by"] not in COSTS

    def heading_of(board: Board) -> str:
        return board.title_parts[by] or f"{by} not known" if by else ""

    for heading, members in groupby(boards(frame), key=heading_of):
        found = list(members)
        yield Section(heading, found, _overall(heading, found, higher))


def _overall(heading: str, found: Sequence[Board], higher: bool) -> TableBlock | None:
    blocks = [Block(board.subject, _scores(board)) for board in found if len(board)]
    if len({block.label for block in blocks}) < 2:
        return None
    rows = (row for board in found for row in zip(board.columns["solver"], board.columns["floor"], strict=True))
    floors = {solver for solver, floor in rows if floor}
    # operators may have different floors; wins over one of them would leave out the tables of the others
    summary = summarise(blocks, higher=higher, floor=next(iter(floors)) if len(floors) == 1 else None)
    if summary.reason:
        return None
    title = "all comparisons" + (f" of {heading}" if heading else "")
    return TableBlock(title, _columns(summary, floors), list(_remarks(summary, found[0].by)))


def _scores(board: Board) -> dict[str, float | None]:
    """The mean of each solver. If a solver has several rows (such as different versions), the first is used."""
    scores: dict[str, float | None] = {}
    columns = (board.columns[name] for name in ("solver", "ceiling", "rank", board.by))
    for solver, ceiling, rank, mean in zip(*columns, strict=True):
        if not ceiling:
            scores.setdefault(solver, None if rank is None else mean)
    return scores


def _columns(summary: AverageRanks, floors: set[str]) -> list[TextColumn]:
    rows = summary.solvers
    ranks = [NO_VALUE if row.average_rank is None else f"{row.average_rank:.2f}" for row in rows]
    beats = [f"{row.beats_floor} of {row.with_floor}" if row.with_floor else NO_VALUE for row in rows]
    names = [one_line(row.solver) + (" (floor)" if row.solver in floors else "") for row in rows]
    return [
        TextColumn("solver", ("solver",), names),
        TextColumn("average_rank", ("average", "rank"), ranks),
        TextColumn("n_blocks", ("has", "results in"), [str(row.n_blocks) for row in rows]),
        TextColumn("beats_floor", ("mean above", "the floor in"), beats),
    ]


def _remarks(summary: AverageRanks, by: str) -> Iterator[str]:
    assert summary.p is not None
    differ = summary.p <= LEVEL
    yield (
        f"average rank in {by} over {summary.n_blocks} comparisons (seeds of one problem count once); Friedman "
        f"{p_value(summary.p)}: {'' if differ else 'no '}significant difference between solvers"
    )
    if differ:
        yield f"critical difference of average ranks: {summary.critical_difference:.2f} (Nemenyi, {LEVEL})"
        yield from (f"no significant difference: {', '.join(map(one_line, group))}" for group in summary.groups)
    if summary.left_out:
        many = len(summary.left_out)
        yield f"not in the average ranks: {counted(many, 'comparison')} that lack{'s' if many == 1 else ''} a solver"


def blocks(parts: Iterable[Section], columns_of: Callable[[Board], list[TextColumn]]) -> Iterator[str | TableBlock]:
    """Headings and tables in order."""
    for part in parts:
        if part.heading:
            yield part.heading
        for board in part.boards:
            columns = columns_of(board) if len(board) else []
            shown = remarks(board, [column.name for column in columns]) if columns else []
            yield TableBlock(board.title, columns, [*map(one_line, shown), *board.unranked], board)
        if part.overall is not None:
            yield part.overall
