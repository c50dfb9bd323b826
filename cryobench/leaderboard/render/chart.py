"""A leaderboard as a figure: for each comparison the means with their intervals, and quality against time."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cryobench.figures.style import BLUE, GREEN, GREY, LABEL_LENGTH, VERMILION, shortened
from cryobench.leaderboard.render.boards import LETTERED, OVERLAPS, Board, boards
from cryobench.leaderboard.render.columns import ARROWS, COST_HEADERS
from cryobench.leaderboard.render.text import one_line
from cryobench.record import COSTS
from cryobench.text import counted

MAX_COMPARISONS, MAX_ROWS = 12, 200
"""The first comparisons are drawn, with at most so many rows together, and at least the first one."""
WIDTH, ROW, ABOVE, FOOT = 10.0, 0.21, 1.15, 0.3
"""Inches: of the figure, the height of a row, of title and axis of a comparison, and of the remarks."""
COST = "seconds_per_image"


class Chart(Figure):
    """A Matplotlib figure that notebooks show."""

    def _repr_png_(self) -> bytes:
        return png(self)


def chart(frame: pd.DataFrame) -> Chart:
    """The chart of a leaderboard (`table.leaderboard`).

    Left: the mean of the ranking metric of each row with its 95% interval, in the order of the table, and a dashed line
    at the floor. Right: the mean against seconds per image, with the Pareto front; the numbers are those of the rows.
    There is no right part where rows are ranked by a cost. Values that are not finite are not drawn.
    """
    shown, rest = _first(board for board in boards(frame) if len(board))
    heights = [ABOVE + ROW * len(board) for board in shown] or [1.0]
    figure = Chart(figsize=(WIDTH, sum(heights) + FOOT), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if not shown:
        figure.text(0.5, 0.5, "no results", ha="center", va="center")
        return figure
    by_cost = shown[0].by in COSTS
    axes = figure.subplots(len(shown), 1 if by_cost else 2, squeeze=False, height_ratios=heights)
    for board, own in zip(shown, axes, strict=True):
        _dots(own[0], board)
        if not by_cost:
            _costs(own[1], board)
    bars = "" if by_cost else f"bars: 95% intervals of means over {shown[0].unit}s"
    lettered = LETTERED if any(any(board.columns["letters"]) for board in shown) else ""
    seen = [remark for kind, remark in OVERLAPS.items() if any(kind in board.columns["overlap"] for board in shown)]
    figure.supxlabel("; ".join(text for text in (bars, lettered, *seen, rest) if text), fontsize=8, color=GREY)
    return figure


def to_png(frame: pd.DataFrame) -> bytes:
    """The chart of a leaderboard as PNG."""
    return png(chart(frame))


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # such letters of names are boxes
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _first(found: Iterable[Board]) -> tuple[list[Board], str]:
    """The comparisons that are drawn, and a remark on the others."""
    shown: list[Board] = []
    left_out = rows = 0
    for board in found:
        rows += len(board)
        if not shown or (len(shown) < MAX_COMPARISONS and rows <= MAX_ROWS and not left_out):
            shown.append(board)
        else:
            left_out += 1
    remark = f"not drawn: {counted(left_out, 'more comparison')}; choose with --operator, --noise, --data or --solvers"
    return shown, remark if left_out else ""


def _dots(axis: Axes, board: Board) -> None:
    """Means and intervals from top to bottom."""
    columns, rows = board.columns, range(len(board))
    ends = (
        ([math.nan] * len(board),) * 2 if board.by in COSTS else (columns[f"{board.by}_{end}"] for end in ("lo", "hi"))
    )
    for row, mean, lo, hi in zip(rows, columns[board.by], *ends, strict=True):
        if math.isfinite(mean):
            axis.plot(mean, row, **_marker(board, row))
            if math.isfinite(lo) and math.isfinite(hi):
                axis.plot([lo, hi], [row, row], color=_colour(board, row), linewidth=1.6, solid_capstyle="butt")
    for mean, floor in zip(columns[board.by], columns["floor"], strict=True):
        if floor and math.isfinite(mean):
            axis.axvline(mean, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    axis.set_yticks(rows, [_label(board, row) for row in rows], fontsize=8, parse_math=False)
    axis.set_ylim(len(board) - 0.4, -0.6)
    axis.set_xlabel(_axis_label(board), fontsize=8, parse_math=False)
    axis.set_title(_title(board.title), fontsize=9, loc="left", parse_math=False)
    _finish(axis)


def _costs(axis: Axes, board: Board) -> None:
    """Means against seconds per image, with the front from its cheapest row to its best one."""
    columns = board.columns
    drawn = [
        row
        for row, (mean, cost) in enumerate(zip(columns[board.by], columns[COST], strict=True))
        if math.isfinite(mean) and math.isfinite(cost) and cost > 0
    ]
    front = sorted((columns[COST][row], columns[board.by][row]) for row in drawn if columns["pareto_seconds"][row])
    if len(front) > 1:
        axis.step(*zip(*front, strict=True), where="post", color=VERMILION, linewidth=1.2, zorder=1,
                  label="Pareto front")  # fmt: skip
        axis.legend(fontsize=7, frameon=False, loc="best")
    for row in drawn:
        x, y = columns[COST][row], columns[board.by][row]
        axis.plot(x, y, **_marker(board, row))
        axis.annotate(_number(board, row), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
    if drawn:
        axis.set_xscale("log")
        axis.margins(0.12)
    else:
        axis.text(0.5, 0.5, "no times", ha="center", va="center", transform=axis.transAxes, fontsize=8, color=GREY)
        axis.set(xticks=[], yticks=[])
    axis.set_xlabel("seconds per image", fontsize=8)
    axis.set_ylabel(_axis_label(board), fontsize=8, parse_math=False)
    _finish(axis)


def _marker(board: Board, row: int) -> dict[str, Any]:
    """Solvers are filled circles, the floor is a hollow one, the ceiling a diamond."""
    hollow = board.columns["floor"][row]
    shape = "D" if board.columns["ceiling"][row] else "o"
    colour = _colour(board, row)
    return {"marker": shape, "markersize": 5, "color": colour, "markerfacecolor": "white" if hollow else colour,
            "linestyle": "none", "zorder": 3}  # fmt: skip


def _colour(board: Board, row: int) -> str:
    return GREEN if board.columns["ceiling"][row] else GREY if board.columns["floor"][row] else BLUE


def _number(board: Board, row: int) -> str:
    """The place of a row in the table; the ceiling has none."""
    return "" if board.columns["ceiling"][row] else str(row + 1)


def _label(board: Board, row: int) -> str:
    columns = board.columns
    role = (" (floor)" if columns["floor"][row] else "") + OVERLAPS[columns["overlap"][row] or ""].partition(" ")[0]
    letters = f"  {columns['letters'][row]}" if columns["letters"][row] else ""
    return f"{shortened(one_line(columns['solver'][row]))}{role}{letters}  {_number(board, row):>2}"


def _axis_label(board: Board) -> str:
    """`psnr ↑ dB`."""
    if board.by in COSTS:
        return f"{' '.join(COST_HEADERS[board.by])} {ARROWS['lower']}"
    column = next(column for column in board.metrics if column["name"] == board.by)
    return one_line(f"{board.by} {ARROWS.get(column['direction'], '')} {column['unit']}")


def _title(title: str) -> str:
    """A title on one line of the figure."""
    longest = 4 * LABEL_LENGTH
    return title if len(title) <= longest else f"{title[: longest - 1]}…"


def _finish(axis: Axes) -> None:
    axis.tick_params(labelsize=8, length=2)
    axis.grid(axis="x", linewidth=0.4, alpha=0.5)
    axis.spines[["top", "right"]].set_visible(False)
