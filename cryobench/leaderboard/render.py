"""A leaderboard as Rich tables, CSV, JSON and HTML. Nothing is printed here.

Every comparison is one table under a title line. The metric that ranks comes first, with its interval; how many of
the other columns are shown follows from the width. CSV and JSON always hold them all.
"""

from __future__ import annotations

import html
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cryobench.leaderboard.overlap import IMAGES, NOTHING, STRUCTURE
from cryobench.leaderboard.table import COSTS, ceilings, floors, groups, metric_columns
from cryobench.record import CLEAN

GAP = 2  # blanks between columns
ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
COST_HEADERS = {
    "seconds_per_image": ("s per", "image"),
    "nfe": ("NFE",),
    "operator_calls": ("A", "calls"),
    "peak_memory_mib": ("peak", "MiB"),
}
ASCII = str.maketrans({"·": "|", "↑": "^", "↓": "v", "–": "-", "…": "...", "Å": "A", "†": "*", "‡": "**"})
NO_VALUE = "–"
CEILING = "ceiling: a bound on psnr to the measured image, made of the clean one; not ranked"
OVERLAPS = {
    NOTHING: "",
    IMAGES: "‡ its prior may have been trained on these very images: the same structure, split and seed",
    STRUCTURE: "† its prior was trained on other images of the same structure",
}


@dataclass(frozen=True)
class _Shown:
    """A column as text: lines of its header, and one cell a row."""

    name: str
    header: tuple[str, ...]
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        lines = [*self.header, *(line for cell in self.cells for line in cell.split("\n"))]
        return max(Text(line).cell_len for line in lines)


class _Tables:
    """A leaderboard that chooses its columns by the width it is given."""

    def __init__(self, frame: pd.DataFrame):
        self.frame = frame

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.frame.empty:
            yield Text("no results")
            return
        layout = _layout([_ran(group) for group in groups(self.frame)], options.max_width)
        for group in groups(self.frame):
            yield from _comparison(group, layout, options.ascii_only)
            yield Text()
        if layout.left_out:
            yield Text(f"not shown at this width, but in the CSV: {', '.join(layout.left_out)}", style="dim")


def rich_tables(frame: pd.DataFrame) -> RenderableType:
    """The leaderboard for a terminal: one table for each comparison, its skipped and failed cells below it."""
    return _Tables(frame)


def to_csv(frame: pd.DataFrame) -> str:
    """Every row and column, floats with all their digits (the shortest text that reads back equal), missing empty."""
    return frame.to_csv(index=False, lineterminator="\n")


def to_json(frame: pd.DataFrame) -> str:
    """A list with an object for each row; missing is null and an infinite number, which JSON has not, "inf"."""
    rows = [{name: _json_value(value) for name, value in row.items()} for row in frame.to_dict(orient="records")]
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_html(frame: pd.DataFrame) -> str:
    """The leaderboard for a notebook or web page: every column, with intervals, and no style of its own."""
    parts = [part for group in groups(frame) for part in _html_comparison(group)]
    return "\n".join(['<div class="cryobench-leaderboard">', *(parts or ["<p>no results</p>"]), "</div>"]) + "\n"


# --- what a comparison says, whatever it is written in ---------------------------------------------------------------


def _ran(group: pd.DataFrame) -> pd.DataFrame:
    return group.loc[group["status"] == "ok"]


def _title(group: pd.DataFrame) -> str:
    """`sumpool:16 · noise none · demo, 4 images · seed 0 · C = 4.00`."""
    first = group.iloc[0]
    images = group["n_images"].dropna()
    compression = group["compression"].dropna()
    count = f", {images.iloc[0]} image{'' if images.iloc[0] == 1 else 's'}" if len(images) else ""
    parts = [first["operator"], f"noise {first['noise']}", f"{first['data']}{count}", f"seed {first['seed']}"]
    dtype = group.index.get_level_values("dtype")[0]
    if dtype != "float32":
        parts.append(dtype)
    if len(compression):
        parts.append(f"C = {compression.iloc[0]:.2f}")
    return " · ".join(_one_line(part) for part in parts)


def _unranked_lines(group: pd.DataFrame) -> list[str]:
    """`skipped tv: why`, a line for each cell that has no result."""
    missing = group[group["status"] != "ok"]
    return [
        _one_line(f"{row['status']} {row['solver']}: {row['reason'] or 'no reason given'}")
        for _, row in missing.iterrows()
    ]


def _remarks(ran: pd.DataFrame, shown: Sequence[_Shown]) -> list[str]:
    """What a reader must know to read the table rightly."""
    remarks = []
    for what in ("device", "version"):
        found = list(dict.fromkeys(ran[what].dropna()))
        if len(found) > 1:
            remarks.append(f"rows come from more than one {what}: {', '.join(found)}")
    remarks += [OVERLAPS[seen] for seen in (IMAGES, STRUCTURE) if seen in set(ran["overlap"])]
    if any(ceilings(ran)):
        remarks.append(CEILING)
    metrics = {column["name"] for column in metric_columns(ran)}
    means = ran[[column.name for column in shown if column.name in metrics]].isna().to_numpy()
    if means[[not ceiling for ceiling in ceilings(ran)]].any():
        remarks.append(f"{NO_VALUE} no mean: not measured, or not defined for every image")
    return remarks


def _columns(ran: pd.DataFrame, solver_width: int) -> list[tuple[_Shown, _Shown]]:
    """Rank, solver, the ranking column, the other metrics and the costs; each narrow, and in full with interval."""
    by = ran.attrs["by"]
    same = [_rank_column(ran), _solver_column(ran, solver_width)]
    pairs = [_metric_columns(ran, column, digits=4 if column["name"] == by else 3) for column in metric_columns(ran)]
    costs = [_cost_column(ran, name, ranking=name == by) for name in COSTS]
    pairs += [(column, column) for column in costs]
    return [*((column, column) for column in same), *sorted(pairs, key=lambda pair: _place(pair[0].name, by))]


def _place(name: str, by: str) -> int:
    """The ranking metric stands first, then the same metric against the other image, clean or measured; what else was
    told against the clean image comes last."""
    if name.removesuffix(CLEAN) == by.removesuffix(CLEAN):
        return 0 if name == by else 1
    return 3 if name.endswith(CLEAN) else 2


def _rank_column(ran: pd.DataFrame) -> _Shown:
    return _Shown("rank", ("#",), tuple(NO_VALUE if pd.isna(rank) else str(rank) for rank in ran["rank"]))


def _metric_columns(ran: pd.DataFrame, column: dict[str, str], digits: int) -> tuple[_Shown, _Shown]:
    """The means of a metric with `digits` significant digits; and with their intervals `[lo, hi]`, if there are any."""
    name = column["name"]
    decimals = _decimals(ran[name], digits)
    means, los, his = (_aligned(ran[key], decimals) for key in (name, f"{name}_lo", f"{name}_hi"))
    narrow = _Shown(name, _metric_header(column, short=True), tuple(means))
    if ran[f"{name}_lo"].isna().to_numpy().all():
        return narrow, narrow
    intervals = [NO_VALUE if NO_VALUE in lo else f"[{lo}, {hi}]" for lo, hi in zip(los, his, strict=True)]
    width = max(map(len, intervals))
    cells = tuple(f"{mean} {interval:>{width}}" for mean, interval in zip(means, intervals, strict=True))
    return narrow, _Shown(name, (*_metric_header(column, short=False), "[95% interval]"), cells)


def _metric_header(column: dict[str, str], *, short: bool) -> tuple[str, ...]:
    """Name, arrow and unit; `short` folds at underscores into lines of about nine characters, and abbreviates."""
    ends = [end for end in (ARROWS.get(column["direction"], ""), column["unit"]) if end]
    if not short:
        return (_one_line(" ".join([column["name"], *ends])),)
    *first, last = [word if len(word) <= 10 else word[:4] + "." for word in column["name"].split("_")]
    words = [*(word if word.endswith(".") else word + "_" for word in first), last]
    lines = [""]
    for word in [*words, *ends]:
        blank = " " if word in ends else ""
        if lines[-1] and (len(lines[-1] + blank + word) > 9 or lines[-1].endswith(".")):
            lines.append(word)
        else:
            lines[-1] += blank + word
    return tuple(map(_one_line, lines))


def _cost_column(ran: pd.DataFrame, name: str, ranking: bool) -> _Shown:
    *first, last = COST_HEADERS[name]
    header = (*first, f"{last} {ARROWS['lower']}" if ranking else last)
    return _Shown(name, header, tuple(_cost(value) for value in ran[name]))


def _solver_column(ran: pd.DataFrame, width: int) -> _Shown:
    """Solver specs in lines of at most `width`, broken after commas where that is enough; the floor is called so."""
    cells = [
        _folded(_one_line(solver) + (" (floor)" if floor else "") + OVERLAPS[seen].partition(" ")[0], width)
        for solver, floor, seen in zip(ran["solver"], floors(ran), ran["overlap"].fillna(""), strict=True)
    ]
    return _Shown("solver", ("solver",), tuple(cells))


# --- numbers and text -------------------------------------------------------------------------------------------------


def _decimals(values: Iterable[float], digits: int) -> int:
    """How many decimals give a typical one of these values `digits` significant digits; at most six."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if not sizes:
        return 0
    return min(max(digits - 1 - math.floor(math.log10(statistics.median(sizes))), 0), 6)


def _aligned(values: Iterable[float], decimals: int) -> list[str]:
    """Fixed-point texts, padded to one width."""
    texts = [_fixed(value, decimals) for value in values]
    width = max(map(len, texts))
    return [text.rjust(width) for text in texts]


def _fixed(value: float, decimals: int) -> str:
    """Fixed point; scientific where that would show fewer than two digits, or more than seven before the point."""
    if math.isnan(value):
        return NO_VALUE
    if math.isinf(value) or value == 0:
        return f"{value:g}"
    return f"{value:.{decimals}f}" if 10.0 ** (1 - decimals) <= abs(value) < 1e7 else f"{value:.1e}"


def _cost(value: float) -> str:
    """Two significant digits, as timings do not repeat better; the whole number where it has more."""
    if math.isnan(value):
        return NO_VALUE
    if math.isinf(value) or value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return _fixed(value, _decimals([value], 2))


def _one_line(text: Any) -> str:
    """Text as one line: a reason may hold line breaks, and a label from a file even terminal codes."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())


def _folded(text: str, width: int) -> str:
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


# --- Rich -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Which columns all tables have (as narrow: 0, in full: 1), how wide they are, and which had no room."""

    columns: dict[str, int]
    widths: dict[str, int]
    left_out: list[str]
    solver_width: int

    def shown(self, ran: pd.DataFrame) -> list[_Shown]:
        pairs = {pair[0].name: pair for pair in _columns(ran, self.solver_width)}
        return [pairs[name][form] for name, form in self.columns.items()]


def _layout(tables: Sequence[pd.DataFrame], width: int) -> _Layout:
    """Columns that fit into `width` in every table, so that the tables of a leaderboard align.

    Rank, solver and the ranking column always stay. Then come the time, the other metrics as means, and the other
    costs, each where it still fits; what room is left holds the intervals of further metrics.
    """
    solver_width = max(16, width // 4)
    rows = [_columns(ran, solver_width) for ran in tables if len(ran)]
    if not rows:
        return _Layout({}, {}, [], solver_width)
    sizes = {  # by name: the widths of both forms
        pairs[0][0].name: tuple(max(pair[form].width for pair in pairs) for form in (0, 1))
        for pairs in zip(*rows, strict=True)
    }
    rank, solver, ranking, *others = sizes
    chosen = {rank: 0, solver: 0, ranking: 1}
    room = width - sum(sizes[name][form] + GAP for name, form in chosen.items()) + GAP
    for name in sorted(others, key=lambda name: name != "seconds_per_image"):
        if sizes[name][0] + GAP <= room:
            chosen[name] = 0
            room -= sizes[name][0] + GAP
    for name in others:
        if name in chosen and sizes[name][1] - sizes[name][0] <= room:
            chosen[name] = 1
            room -= sizes[name][1] - sizes[name][0]
    columns = {name: chosen[name] for name in sizes if name in chosen}
    widths = {name: sizes[name][form] for name, form in columns.items()}
    return _Layout(columns, widths, [name for name in others if name not in chosen], solver_width)


def _comparison(group: pd.DataFrame, layout: _Layout, ascii_only: bool) -> Iterator[RenderableType]:
    def text(line: str, style: str = "") -> Text:
        return Text(_ascii(line) if ascii_only else line, style=style)

    yield text(_title(group), "bold")
    ran = _ran(group)
    if len(ran):
        shown = layout.shown(ran)
        yield _rich_table(ran, [_ascii_column(column) for column in shown] if ascii_only else shown, layout.widths)
        for remark in _remarks(ran, shown):
            yield text(remark, "dim")
    for line in _unranked_lines(group):
        yield text(line)


def _rich_table(ran: pd.DataFrame, shown: Sequence[_Shown], widths: Mapping[str, int]) -> Table:
    """One row a cell; the best is bold, floor and ceiling are dim, which the rank and their names say too."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    height = max(len(column.header) for column in shown)
    for column in shown:
        justify = "left" if column.name == "solver" else "right"
        table.add_column(
            _rich_header(column, widths[column.name], height), justify=justify, min_width=widths[column.name]
        )
    for place, (rank, *reference) in enumerate(zip(ran["rank"], floors(ran), ceilings(ran), strict=True)):
        style = "bold" if not pd.isna(rank) and rank == 1 else "dim" if any(reference) else ""
        table.add_row(*(Text(column.cells[place], overflow="fold") for column in shown), style=style)
    return table


def _rich_header(column: _Shown, width: int, height: int) -> Text:
    """A header at the bottom of `height` lines; a name stands over its means, `[95% interval]` over the intervals."""
    *first, last = column.header
    over_means = last.startswith("[95%")
    lines = [*[""] * (height - len(column.header)), *first, last.rjust(width) if over_means else last]
    return Text("\n".join(lines), justify="left" if over_means or column.name == "solver" else "right")


def _ascii_column(column: _Shown) -> _Shown:
    return replace(column, header=tuple(map(_ascii, column.header)), cells=tuple(map(_ascii, column.cells)))


def _ascii(text: str) -> str:
    """For an output that cannot encode more."""
    return text.translate(ASCII).encode("ascii", "replace").decode("ascii")


# --- JSON and HTML ----------------------------------------------------------------------------------------------------


def _json_value(value: Any) -> Any:
    if pd.isna(value):
        return None
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _html_comparison(group: pd.DataFrame) -> Iterator[str]:
    yield f"<h4>{html.escape(_title(group))}</h4>"
    ran = _ran(group)
    remarks: list[str] = []
    if len(ran):
        shown = [full for _, full in _columns(ran, solver_width=10**6)]
        remarks = _remarks(ran, shown)
        yield from _html_table(shown)
    for line in [*remarks, *_unranked_lines(group)]:
        yield f"<p>{html.escape(line)}</p>"


def _html_table(shown: Sequence[_Shown]) -> Iterator[str]:
    heads = "".join(f"<th>{html.escape(_joined(column.header))}</th>" for column in shown)
    yield f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>"
    for cells in zip(*(column.cells for column in shown), strict=True):
        yield "<tr>" + "".join(f"<td>{html.escape(cell.strip())}</td>" for cell in cells) + "</tr>"
    yield "</tbody>\n</table>"


def _joined(header: Sequence[str]) -> str:
    """A folded header in one line."""
    return " ".join(header)
