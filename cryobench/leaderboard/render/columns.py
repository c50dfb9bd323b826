"""The columns of a comparison as text: narrow, or in full with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

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
INTERVAL = "[95% interval]"


@dataclass(frozen=True)
class Column:
    """A column as text: lines of its header, and one cell a row. title: the header where a line has room for it."""

    name: str
    header: tuple[str, ...]
    cells: tuple[str, ...]
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or " ".join(self.header))

    @property
    def width(self) -> int:
        return max(cell_len(line) for text in (*self.header, *self.cells) for line in text.split("\n"))


Maker = Callable[[bool], Column]
"""Makes a column: narrow (False), or in full with intervals (True) where it has any."""


def makers(board: Board, solver_width: int = 10**6) -> dict[str, Maker]:
    """By name: rank, solver, the ranking column, the difference to the leader, the other metrics and the costs."""
    found: dict[str, Maker] = {
        column["name"]: partial(_metric, board, column, 4 if column["name"] == board.by else 3)
        for column in board.metrics
    }
    found |= {name: partial(_cost, board, name) for name in COSTS}
    found[DIFFERENCE] = partial(_difference, board)
    ordered = {name: found[name] for name in _ordered(tuple(found), board.by)}
    return {"rank": lambda full: _rank(board), "solver": lambda full: _solver(board, solver_width), **ordered}


@cache  # the same columns stand in comparison after comparison
def _ordered(names: Sequence[str], by: str) -> list[str]:
    details = {name for name in names for other in names if name.startswith(f"{other}_")}
    return sorted(names, key=lambda name: _place(name, by, name in details))


def _place(name: str, by: str, detail: bool) -> int:
    """The ranking metric stands first, then the difference in it, then the same metric against the other image, clean
    or measured; details (`frc_area` of `frc`) come after the costs, what else was told against the clean image last."""
    if name == DIFFERENCE:
        return 1
    if name.removesuffix(CLEAN) == by.removesuffix(CLEAN):
        return 0 if name == by else 2
    return 6 if name.endswith(CLEAN) else 4 if name in COSTS else 5 if detail else 3


def _rank(board: Board) -> Column:
    """Ranks; one that is shared has a `=`, and then the others have a blank, to stand below each other."""
    ends = ("=", " ") if any(board.ran["tied"]) else ("", "")
    ranks = zip(board.ran["rank"], board.ran["tied"], strict=True)
    return Column(
        "rank", ("#",), tuple(NO_VALUE + ends[1] if rank is None else f"{rank}{ends[not tied]}" for rank, tied in ranks)
    )


def _solver(board: Board, width: int) -> Column:
    """Solver specs in lines of at most `width`, broken after commas where that is enough; the floor is called so."""
    cells = [
        folded(one_line(solver) + (" (floor)" if floor else "") + OVERLAPS[seen or ""].partition(" ")[0], width)
        for solver, floor, seen in zip(*(board.ran[name] for name in ("solver", "floor", "overlap")), strict=True)
    ]
    return Column("solver", ("solver",), tuple(cells))


def _metric(board: Board, column: Mapping[str, str], digits: int, full: bool) -> Column:
    """The means of a metric with `digits` significant digits; and with their intervals `[lo, hi]`, if there are any."""
    name, ends = column["name"], (ARROWS.get(column["direction"], ""), column["unit"])
    decimals = decimals_of(board.ran[name], digits)
    means = aligned(fixed_all(board.ran[name], decimals))
    intervals = _intervals(board, name, partial(fixed_all, decimals=decimals)) if full else []
    if not any(intervals):
        return Column(name, _short_header(name, *ends), tuple(means), _header(name, *ends))
    cells = tuple(f"{mean} {interval}" for mean, interval in zip(means, intervals, strict=True))
    return Column(name, (_header(name, *ends), INTERVAL), cells)


def _intervals(board: Board, name: str, written: Callable[[list[float]], list[str]]) -> list[str]:
    """`[lo, hi]`, padded to one width; all '' where no row has one."""
    los, his = (board.ran[f"{name}_{end}"] for end in ("lo", "hi"))
    if all(map(math.isnan, los)):
        return [""] * len(board)
    ends = zip(aligned(written(los)), aligned(written(his)), los, strict=True)
    return aligned([NO_VALUE if math.isnan(value) else f"[{lo}, {hi}]" for lo, hi, value in ends])


def _difference(board: Board, full: bool) -> Column:
    """The paired difference of each row to the first; in full with its interval and its p-value."""
    decimals = decimals_of(board.ran[board.by], 4)

    def written(values: list[float]) -> list[str]:
        return [signed(value, decimals) for value in values]

    means = aligned(written(board.ran[DIFFERENCE]))
    if not full:
        return Column(DIFFERENCE, ("to the", "first"), tuple(means))
    intervals = [text.replace(NO_VALUE, " ") for text in _intervals(board, DIFFERENCE, written)]
    tests = [text.rjust(7) if text else "" for text in map(p_value, board.ran["p_holm"])]
    parts = [part for part in (means, intervals, tests) if any(part)]
    cells = tuple(" ".join(texts).rstrip() for texts in zip(*parts, strict=True))
    told = " ".join(what for what, part in ((INTERVAL, intervals), ("p (Holm)", tests)) if any(part))
    return Column(DIFFERENCE, ("difference to the first", told) if told else ("to the", "first"), cells)


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


def _cost(board: Board, name: str, full: bool) -> Column:
    """What a cell cost; marked where it is on the Pareto front."""
    *first, last = COST_HEADERS[name]
    header = (*first, f"{last} {ARROWS['lower']}" if name == board.by else last)
    cells = [cost(value) for value in board.ran[name]]
    marks = [board.ran[mark] for mark, against in FRONTS.items() if against == name]
    if marks and any(marks[0]):
        cells = [f"{cell} {FRONT if on_front else ' '}" for cell, on_front in zip(cells, marks[0], strict=True)]
    return Column(name, header, tuple(cells))


def forms(board: Board, in_full: Sequence[str] = ()) -> list[Column]:
    """All columns, those named in full; without the difference to the first where there is no second."""
    made = [make(name in in_full) for name, make in makers(board).items()]
    return [column for column in made if column.name != DIFFERENCE or any(cell.strip() for cell in column.cells)]
