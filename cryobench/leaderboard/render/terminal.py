"""A leaderboard for a terminal: Rich tables whose columns depend on the width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cryobench.leaderboard.render.boards import Board
from cryobench.leaderboard.render.columns import DIFFERENCE, INTERVAL, TextColumn, has_values, makers
from cryobench.leaderboard.render.overall import Section, TableBlock, blocks, sections
from cryobench.text import counted, printable

GAP = 2  # blanks between columns
ASCII = str.maketrans({"·": "|", "↑": "^", "↓": "v", "–": "-", "…": "...", "Å": "A", "†": "*", "‡": "**", "◆": "+"})
MAX_ROWS = 1000
"""Maximum number of rows shown; more would take long and are hard to read in a terminal."""


def rich_tables(frame: pd.DataFrame, columns: Sequence[str] = (), requested: Sequence[str] = ()) -> RenderableType:
    """One table for each comparison, its skipped and failed cells below it.

    columns: names or globs of the columns to show beside rank, solver and ranking column; all by default. Those that
    do not fit into the width are counted below. requested: names of metrics that are shown before others.

    Comparisons beyond `MAX_ROWS` rows are counted but not shown; average ranks are over all.
    """
    return Deferred(lambda options: _parts(frame, options, columns, requested))


class Deferred:
    """A Rich renderable whose parts depend on the width and encoding of the output."""

    def __init__(self, parts: Callable[[ConsoleOptions], Iterable[RenderableType]]):
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts(options)


def encoder(options: ConsoleOptions) -> Callable[[str], str]:
    """Converts text to printable characters that the output can encode."""
    if not options.ascii_only:
        return printable
    return lambda text: printable(text).translate(ASCII).encode("ascii", "replace").decode("ascii")


def _parts(
    frame: pd.DataFrame, options: ConsoleOptions, columns: Sequence[str], requested: Sequence[str]
) -> Iterator[RenderableType]:
    if frame.empty:
        yield Text("no results")
        return
    parts, hidden = _first(sections(frame))
    layout = _layout(
        [board for part in parts for board in part.boards if len(board)], options.max_width, columns, requested
    )
    for block in blocks(parts, layout.shown):
        yield from _rendered(block, layout, encoder(options))
    yield from (Text(line, style="dim") for line in (hidden, _left_out(layout.left_out, options.max_width)) if line)


def _first(parts: Iterable[Section]) -> tuple[list[Section], str]:
    """The sections with the comparisons that are shown (at least one), and a remark on the others."""
    shown: list[Section] = []
    hidden: list[Board] = []
    room = MAX_ROWS
    for part in parts:
        boards: list[Board] = []
        for board in part.boards:
            fits = (board.n_rows <= room and not hidden) or not (shown or boards)
            (boards if fits else hidden).append(board)
            room -= board.n_rows
        shown.append(part._replace(boards=boards))
    rows = sum(board.n_rows for board in hidden)
    return shown, "" if not hidden else (
        f"not shown: {rows} more rows of {len(hidden)} more comparisons; choose with --operator, --noise, --data or "
        "--solvers, or write all of them with --format csv=FILE"
    )


def _left_out(names: Sequence[str], width: int) -> str:
    """One line on the columns that do not fit: their names if it has room for them, else their number."""
    if not names:
        return ""
    named = f"not shown: {', '.join(names)}; --wide shows all"
    if len(named) <= width:
        return named
    return f"not shown: {counted(len(names), 'column')}; --wide shows all, --columns NAME,... some"


class _Layout(NamedTuple):
    """The columns of all tables and whether they are in full, their widths, and the columns that do not fit."""

    columns: Mapping[str, bool]
    widths: Mapping[str, int]
    left_out: Sequence[str]
    solver_width: int

    def shown(self, board: Board) -> list[TextColumn]:
        made = makers(board, self.solver_width)
        return [made[name](full) for name, full in self.columns.items()]


def _layout(
    boards: Sequence[Board], width: int, patterns: Sequence[str] = (), requested: Sequence[str] = ()
) -> _Layout:
    """Columns that fit into `width` in every table, so that all tables align.

    Rank, solver and the ranking column are always shown. If they fit, these are added in order: time, difference to
    the leader, requested metrics, the interval of the difference, the other columns, the intervals of other metrics.
    patterns: of the names of those that may be added, all by default.
    """
    solver_width = max(16, width // 4)
    made = [makers(board, solver_width) for board in boards]
    if not made:
        return _Layout({}, {}, [], solver_width)
    always = ("rank", "solver", boards[0].by)
    sizes = {
        name: tuple(max(make[name](full).width for make in made) for full in (False, True))
        for name in made[0]
        if name in always or any(has_values(make[name](False)) for make in made)
    }
    rank, solver, ranking, *others = sizes
    if patterns:
        others = [name for name in others if any(fnmatchcase(name, pattern) for pattern in patterns)]
    chosen = {rank: False, solver: False, ranking: True}
    room = width - sum(sizes[name][full] + GAP for name, full in chosen.items()) + GAP
    preferred = [("seconds_per_image", False), (DIFFERENCE, False), *((name, False) for name in requested)]
    preferred += [(DIFFERENCE, True)]
    for name, full in [*preferred, *((name, full) for full in (False, True) for name in others)]:
        current = chosen.get(name)
        if name not in others or (current is None if full else current is not None):
            continue
        more = sizes[name][full] - (-GAP if current is None else sizes[name][current])
        if more <= room:
            chosen[name] = full
            room -= more
    solver_width = max(solver_width, sizes[solver][False] + room)  # fewer names are folded
    sizes[solver] = (max(makers(board, solver_width)[solver](False).width for board in boards),) * 2
    columns = {name: chosen[name] for name in sizes if name in chosen}
    widths = {name: sizes[name][full] for name, full in columns.items()}
    return _Layout(columns, widths, [name for name in others if name not in chosen], solver_width)


def _rendered(block: str | TableBlock, layout: _Layout, encoded: Callable[[str], str]) -> Iterator[Text | Table]:
    """A heading or table with its remarks. encoded: converts text to characters that the output can encode."""
    if isinstance(block, str):
        yield Text(f"{encoded(block)}\n", style="bold underline")
        return
    yield Text(encoded(block.title), style="bold")
    if block.columns:
        board = block.board
        styles = [""] * len(block.columns[0].cells) if board is None else [_style(board, k) for k in range(len(board))]
        yield _table(block.columns, {} if board is None else layout.widths, styles, encoded)
    yield from (Text(encoded(line), style="dim") for line in block.lines)
    yield Text()


def _style(board: Board, place: int) -> str:
    """The best rows are bold, floor and ceiling are dim; ranks and names show this without styles."""
    if board.columns["rank"][place] == 1:
        return "bold"
    return "dim" if board.columns["floor"][place] or board.columns["ceiling"][place] else ""


def _table(
    shown: Sequence[TextColumn], widths: Mapping[str, int], styles: Sequence[str], encoded: Callable[[str], str]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    height = max(len(column.header) for column in shown)
    for column in shown:
        width = widths.get(column.name, column.width)
        justify = "left" if column.name == "solver" else "right"
        table.add_column(
            Text(encoded(_header(column, width, height)), justify=_side(column)), justify=justify, min_width=width
        )
    for place, style in enumerate(styles):
        table.add_row(*(Text(encoded(column.cells[place]), overflow="fold") for column in shown), style=style)
    return table


def _header(column: TextColumn, width: int, height: int) -> str:
    """A header at the bottom of `height` lines; the name is above the means, `[95% interval]` above the intervals."""
    *first, last = column.header
    lines = [*[""] * (height - len(column.header)), *first, last.rjust(width) if _over_means(column) else last]
    return "\n".join(lines)


def _side(column: TextColumn) -> Literal["left", "right"]:
    return "left" if column.name == "solver" or _over_means(column) else "right"


def _over_means(column: TextColumn) -> bool:
    return column.header[-1].startswith(INTERVAL)
