"""Comparisons under headings, and what several of them say together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from cryobench.leaderboard.render.boards import Board, boards
from cryobench.leaderboard.render.columns import Column
from cryobench.leaderboard.render.text import NO_VALUE, one_line, p_value
from cryobench.leaderboard.statistics.friedman import Block, Summary, summarise
from cryobench.leaderboard.statistics.power import LEVEL
from cryobench.record import COSTS


@dataclass(frozen=True)
class Overall:
    """Solvers over comparisons, as columns of text and sentences."""

    columns: Sequence[Column]
    remarks: Sequence[str]


@dataclass(frozen=True)
class Section:
    """Comparisons that share what the leaderboard is grouped by. heading: '' where it is not grouped."""

    heading: str
    boards: Sequence[Board]
    overall: Overall | None


def sections(frame: pd.DataFrame) -> Iterator[Section]:
    """The comparisons of a leaderboard under their headings, each with its summary if it has several comparisons."""
    by = frame.attrs.get("group_by")
    higher = _higher(frame)
    for heading, members in groupby(boards(frame), key=lambda board: board.of[by] or f"{by} not known" if by else ""):
        found = list(members)
        yield Section(heading, found, _overall(found, higher))


def _higher(frame: pd.DataFrame) -> bool:
    directions = {column["name"]: column["direction"] for column in frame.attrs["columns"]}
    return directions.get(frame.attrs["by"]) != "lower" and frame.attrs["by"] not in COSTS


def _overall(found: Sequence[Board], higher: bool) -> Overall | None:
    blocks = [Block(board.subject, _scores(board)) for board in found if len(board)]
    if len({block.label for block in blocks}) < 2:
        return None
    floors = [s for board in found for s, floor in zip(board.ran["solver"], board.ran["floor"], strict=True) if floor]
    summary = summarise(blocks, higher=higher, floor=floors[0] if floors else None)
    if summary.p is None or summary.critical_difference is None:
        return None  # the comparisons have too little in common
    return Overall(
        _columns(summary, set(floors)), _remarks(summary, found[0].by, summary.p, summary.critical_difference)
    )


def _scores(board: Board) -> dict[str, float | None]:
    """The mean of each solver. Of several rows of one solver, of different versions say, the first counts."""
    scores: dict[str, float | None] = {}
    columns = (board.ran[name] for name in ("solver", "ceiling", "rank", board.by))
    for solver, ceiling, rank, mean in zip(*columns, strict=True):
        if not ceiling:
            scores.setdefault(solver, None if rank is None else mean)
    return scores


def _columns(summary: Summary, floors: set[str]) -> list[Column]:
    rows = summary.standings
    ranks = [NO_VALUE if row.average_rank is None else f"{row.average_rank:.2f}" for row in rows]
    beats = [f"{row.beats_floor} of {row.with_floor}" if row.with_floor else NO_VALUE for row in rows]
    names = [one_line(row.solver) + (" (floor)" if row.solver in floors else "") for row in rows]
    return [
        Column("solver", ("solver",), tuple(names)),
        Column("average_rank", ("average", "rank"), tuple(ranks)),
        Column("n_blocks", ("has", "results in"), tuple(str(row.n_blocks) for row in rows)),
        Column("beats_floor", ("mean above", "the floor in"), tuple(beats)),
    ]


def _remarks(summary: Summary, by: str, p: float, critical: float) -> list[str]:
    differ = p <= LEVEL
    told = [
        f"average rank in {by} over {summary.n_blocks} comparisons (the seeds of one count once); Friedman "
        f"{p_value(p)}: " + ("the solvers differ" if differ else "no difference between solvers is shown")
    ]
    if differ:
        told.append(f"average ranks that are {critical:.2f} apart or more differ (Nemenyi, {LEVEL})")
        told += [f"not told apart: {', '.join(map(one_line, group))}" for group in summary.groups]
    if summary.left_out:
        told.append(f"{len(summary.left_out)} further comparisons lack a solver, and are not in the average ranks")
    return told
