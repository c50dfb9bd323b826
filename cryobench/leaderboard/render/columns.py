"""Columns of a comparison as text, narrow or in full with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

from rich.cells import cell_len

from cryobench.leaderboard.render.boards import FRONT, FRONTS, OVERLAPS, Board
from cryobench.leaderboard.render.text import (
    NO_VALUE,
    aligned,
    cost,
    decimals_of,
    fixed_all,
    folded,
    one_line,
    p_value,
    signed,
)
from cryobench.record import CLEAN, COSTS

ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
COST_HEADERS = {
    "seconds_per_image": ("s per", "image"),
    "nfe": ("NFE",),
    "operator_calls": ("A", "calls"),
    "peak_memory_mib": ("peak", "MiB"),
}
DIFFERENCE = "diff_leader"
OF_OTHER = "_other"
"""The end of the names of metrics that are estimated from the other half."""
INTERVAL = "[95% interval]"


class TextColumn(NamedTuple):
    """A column as text: the lines of its header, and one cell per row. one_line: the header in one line, if it differs
    from the joined lines."""

    name: str
    header: Sequence[str]
    cells: Sequence[str]
    one_line: str = ""

    @property
    def title(self) -> str:
        return self.one_line or " ".join(self.header)

    @property
    def width(self) -> int:
        return max(cell_len(line) for text in (*self.header, *self.cells) for line in text.split("\n"))


def makers(board: Board, solver_width: int = 10**6) -> dict[str, Callable[[bool], TextColumn]]:
    """Functions that make the columns, by name: narrow (False), or in full (True) with intervals if there are any.

    In order: rank, solver, the ranking column, the difference to the leader, other metrics, costs."""
    found: dict[str, Callable[[bool], TextColumn]] = {
        column["name"]: partial(_metric, board, column, 4 if column["name"] == board.by else 3)
        for column in board.metrics
    }
    found |= {name: partial(_cost, board, name) for name in COSTS}
    found[DIFFERENCE] = partial(_difference, board)
    ordered = {name: found[name] for name in _ordered(tuple(found), board.by)}
    return {"rank": lambda full: _rank(board), "solver": lambda full: _solver(board, solver_width), **ordered}


@cache  # comparisons have the same columns
def _ordered(names: Sequence[str], by: str) -> list[str]:
    details = {name for name in names for other in names if name.startswith(f"{other}_")}
    return sorted(names, key=lambda name: _place(name, by, name in details))


def _place(name: str, by: str, detail: bool) -> int:
    """The ranking metric comes first, then the difference in it, then the same metric against another image (clean,
    measured, or estimated from the other half), other metrics, costs, details (`frc_area` of `frc`), other metrics
    against the clean image."""
    if name == DIFFERENCE:
        return 1
    if _subject(name) == _subject(by):
        return 0 if name == by else 2
    return 6 if name.endswith(CLEAN) else 4 if name in COSTS else 5 if detail else 3


def _subject(name: str) -> str:
    """The name of a metric without the image that it compares with."""
    return name.removesuffix(CLEAN).removesuffix(OF_OTHER)


def _rank(board: Board) -> TextColumn:
    """Ranks; shared ones are marked by `=`, the others padded by a blank. The letters of the rows follow."""
    ends = ("=", " ") if any(board.columns["tied"]) else ("", "")
    ranks = zip(board.columns["rank"], board.columns["tied"], strict=True)
    cells = [NO_VALUE + ends[1] if rank is None else f"{rank}{ends[not tied]}" for rank, tied in ranks]
    texts = [letters or "" for letters in board.columns["letters"]]
    if any(texts):
        width = max(map(len, texts))
        cells = [
            f"{cell.rjust(max(map(len, cells)))} {text.ljust(width)}" for cell, text in zip(cells, texts, strict=True)
        ]
    return TextColumn("rank", ("#",), cells)


def _solver(board: Board, width: int) -> TextColumn:
    """Solver specs in lines of at most `width`, with marks for the floor and for what a prior was trained on."""
    cells = [
        folded(one_line(solver) + (" (floor)" if floor else "") + OVERLAPS[seen or ""].partition(" ")[0], width)
        for solver, floor, seen in zip(*(board.columns[name] for name in ("solver", "floor", "overlap")), strict=True)
    ]
    return TextColumn("solver", ("solver",), cells)


def _metric(board: Board, column: Mapping[str, str], digits: int, full: bool) -> TextColumn:
    """The means of a metric with `digits` significant digits; in full with intervals `[lo, hi]`, if there are any."""
    name, ends = column["name"], (ARROWS.get(column["direction"], ""), column["unit"])
    decimals = decimals_of(board.columns[name], digits)
    means = aligned(fixed_all(board.columns[name], decimals))
    intervals = _intervals(board, name, partial(fixed_all, decimals=decimals)) if full else []
    if not any(intervals):
        return TextColumn(name, _short_header(name, *ends), means, _header(name, *ends))
    cells = [f"{mean} {interval}" for mean, interval in zip(means, intervals, strict=True)]
    return TextColumn(name, (_header(name, *ends), INTERVAL), cells)


def _intervals(board: Board, name: str, written: Callable[[list[float]], list[str]]) -> list[str]:
    """`[lo, hi]`, padded to one width; all '' where no row has one."""
    los, his = (board.columns[f"{name}_{end}"] for end in ("lo", "hi"))
    if all(map(math.isnan, los)):
        return [""] * len(board)
    ends = zip(aligned(written(los)), aligned(written(his)), los, strict=True)
    return aligned([NO_VALUE if math.isnan(value) else f"[{lo}, {hi}]" for lo, hi, value in ends])


def _difference(board: Board, full: bool) -> TextColumn:
    """The paired difference between each row and the first; in full with interval and p-value."""
    decimals = decimals_of(board.columns[board.by], 4)

    def written(values: list[float]) -> list[str]:
        return [signed(value, decimals) for value in values]

    means = aligned(written(board.columns[DIFFERENCE]))
    if not full:
        return TextColumn(DIFFERENCE, ("to the", "first"), means)
    intervals = [text.replace(NO_VALUE, " ") for text in _intervals(board, DIFFERENCE, written)]
    tests = [text.rjust(7) if text else "" for text in map(p_value, board.columns["p_holm"])]
    parts = [part for part in (means, intervals, tests) if any(part)]
    cells = [" ".join(texts).rstrip() for texts in zip(*parts, strict=True)]
    header = " ".join(what for what, part in ((INTERVAL, intervals), ("p (Holm)", tests)) if any(part))
    return TextColumn(DIFFERENCE, ("difference to the first", header) if header else ("to the", "first"), cells)


def _header(name: str, arrow: str, unit: str) -> str:
    return one_line(f"{name} {arrow} {unit}")


@cache
def _short_header(name: str, arrow: str, unit: str) -> tuple[str, ...]:
    """The header folded at underscores into lines of about nine characters, words abbreviated."""
    ends = [end for end in (arrow, unit) if end]
    *first, last = [word if len(word) <= 10 else word[:4] + "." for word in name.split("_")]
    words = [*(word if word.endswith(".") else word + "_" for word in first), last]
    lines = [""]
    for word in [*words, *ends]:
        blank = " " if word in ends else ""
        if lines[-1] and (len(lines[-1] + blank + word) > 9 or lines[-1].endswith(".")):
            lines.append(word)
        else:
            lines[-1] += blank + word
    return tuple(map(one_line, lines))


def _cost(board: Board, name: str, full: bool) -> TextColumn:
    """A cost; marked where the row is on the Pareto front."""
    *first, last = COST_HEADERS[name]
    header = (*first, f"{last} {ARROWS['lower']}" if name == board.by else last)
    cells = [cost(value) for value in board.columns[name]]
    marks = [board.columns[mark] for mark, against in FRONTS.items() if against == name]
    if marks and any(marks[0]):
        cells = [f"{cell} {FRONT if on_front else ' '}" for cell, on_front in zip(cells, marks[0], strict=True)]
    return TextColumn(name, header, cells)


def text_columns(board: Board, in_full: Sequence[str] = ()) -> list[TextColumn]:
    """All columns with a value, those in `in_full` with intervals."""
    made = [make(name in in_full) for name, make in makers(board).items()]
    return [column for column in made if column.name in ("rank", "solver", board.by) or has_values(column)]


def has_values(column: TextColumn) -> bool:
    """Whether a row has a value, as no row has of the differences where there is only one."""
    return any(cell.strip() not in ("", NO_VALUE) for cell in column.cells)
