"""The data of the page, for JSON: columns of numbers rather than rows of objects, to keep it small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cryobench.figures import common_size
from cryobench.leaderboard.page.families import axis, families
from cryobench.leaderboard.render.boards import Board, remarks
from cryobench.leaderboard.render.overall import TableBlock, sections
from cryobench.record import COSTS, Record

DIGITS = 6
"""Significant digits of a number."""
DOTS = 32
"""Rows with at most this many images have all their values, others the five numbers of a box plot."""
MAX_VALUES = 500_000
"""Maximum number of values for box plots over all rows and metrics; the ranking metric comes first."""
FILTERS = ("noise", "data", "within", "seed")
"""Fields by which comparisons can be selected."""
SHARED = ("operator", "noise", "data", "seed", "n_images", "compression", "within")
"""Columns in which the rows of a comparison are equal."""


def page_data(frame: pd.DataFrame, records: Sequence[Record | None], *, intervals: bool = True) -> dict[str, Any]:
    """Columns, comparisons, box plots and curves of a leaderboard.

    records: of each row, None where unknown. intervals: of all metrics, else only of the ranking metric. A text column
    consists of its distinct texts and the index of each row into them. role: 0 a solver, 1 the floor, 2 the ceiling.
    """
    by = frame.attrs["by"]
    metrics = [column["name"] for column in frame.attrs["columns"]]
    left_out = {*SHARED, *(name + end for name in metrics if name != by for end in ("_lo", "_hi") if not intervals)}
    columns: dict[str, Any] = {name: frame[name] for name in frame.columns if name not in left_out}
    texts = [name for name, column in columns.items() if not pd.api.types.is_numeric_dtype(column)]
    parts = list(sections(frame))
    boards = [board for part in parts for board in part.boards]
    references = [frame.index.get_level_values(name) for name in ("floor", "ceiling")]
    return {
        "by": by,
        "metrics": [dict(column) for column in frame.attrs["columns"]],
        "costs": [name for name in COSTS if name in columns],
        "texts": {name: _coded(columns[name]) for name in texts},
        "numbers": {
            name: numbers(column) for name, column in columns.items() if name not in texts and column.notna().any()
        },
        "role": [2 if ceiling else int(floor) for floor, ceiling in zip(*references, strict=True)],
        "comparisons": _comparisons(frame, boards, records),
        "curves": _curves(boards),
        "summaries": [_summary(part.overall) for part in parts if part.overall is not None],
        "dots": DOTS,
        "boxes": _boxes(by, metrics, records),
        "newest": max((str(record.environment.get("created", ""))[:10] for record in records if record), default=""),
    }


def numbers(values: Any) -> list[float | str | None]:
    """Numbers for JSON, to six significant digits: missing ones as null, infinite ones as text."""
    given = np.asarray(pd.array(values, dtype="Float64").to_numpy(dtype=float, na_value=np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** np.clip(DIGITS - 1 - np.floor(np.log10(np.abs(given))), -300, 300)
        short = np.where(given == 0, 0.0, np.round(given * scale) / scale)
    if np.isfinite(short).all():
        return short.tolist()
    special = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return [value if math.isfinite(value) else special.get(value) for value in short.tolist()]


def _coded(column: Any) -> dict[str, list[Any]]:
    """The distinct texts, and the index of each row into them; -1 for a missing text."""
    codes, distinct = pd.factorize(column)
    return {"distinct": [str(text) for text in distinct], "codes": codes.tolist()}


def _comparisons(
    frame: pd.DataFrame, boards: Sequence[Board], records: Sequence[Record | None]
) -> dict[str, list[Any]]:
    """The comparisons as columns, and `row`, the comparison of each row.

    pixel_size: Å, None where it is unknown or images differ. side: the shortest side of an image, in pixels. axes: 2
    for images, 3 for volumes.
    """
    codes, _ = pd.factorize(frame.index.get_level_values("group"))
    known: dict[int, Mapping[str, Any]] = {}
    for code, record in zip(codes.tolist(), records, strict=True):
        if record is not None and record.status == "ok":
            known.setdefault(code, record.problem)
    problems = [known.get(code, {}) for code in range(len(boards))]
    return {
        **{name: [board.title_parts[name].removeprefix(f"{name} ") for board in boards] for name in FILTERS},
        "operator": [board.title_parts["operator"] for board in boards],
        "compression": numbers([_compression(board) for board in boards]),
        "n_images": [int(board.columns["n_images"][0]) if len(board) else None for board in boards],
        "context": [_context(board) for board in boards],
        "remarks": [remarks(board, [*(column["name"] for column in board.metrics), *COSTS]) for board in boards],
        "pixel_size": [common_size(problem.get("pixel_size_angstrom") or [None]) for problem in problems],
        "side": [min(problem.get("image_shape") or [0]) for problem in problems],
        "axes": [len(problem.get("image_shape") or [0, 0]) for problem in problems],
        "row": codes.tolist(),
    }


def _compression(board: Board) -> float | None:
    return board.columns["compression"][0] if len(board) else None


def _context(board: Board) -> str:
    """The problem without the operator and its compression: `noise none · demo · 4 images · seed 0`."""
    return " · ".join(
        text for name, text in board.title_parts.items() if text and name not in ("operator", "compression")
    )


def _summary(overall: TableBlock) -> dict[str, Any]:
    heads = [" ".join(column.header) for column in overall.columns]
    rows = [list(row) for row in zip(*(column.cells for column in overall.columns), strict=True)]
    return {"title": overall.title, "heads": heads, "rows": rows, "remarks": list(overall.lines)}


def _curves(boards: Sequence[Board]) -> list[dict[str, Any]]:
    """Curves over comparisons that differ only in one parameter of the operator."""
    contexts: dict[str, list[int]] = {}
    for number, board in enumerate(boards):
        contexts.setdefault(_context(board), []).append(number)
    curves = []
    for family in families(board.title_parts["operator"] for board in boards):
        for context, members in contexts.items():
            of = {number: boards[number] for number in members}
            places = [(number, board.title_parts["operator"], _compression(board)) for number, board in of.items()]
            along = axis(family, [place for place in places if place[1] in family.values])
            if along is not None:
                curves.append({"family": family.pattern, "context": context, **along._asdict()})
    return curves


def _boxes(by: str, metrics: Sequence[str], records: Sequence[Record | None]) -> dict[str, list[list[Any] | None]]:
    """For each metric and row: the values of the images, in the order of the record, or the five numbers of a box."""
    found: dict[str, list[list[Any] | None]] = {}
    left = MAX_VALUES
    for name in sorted(metrics, key=lambda name: name != by):
        ran = [record.values.get(name) if record is not None and record.status == "ok" else None for record in records]
        boxes = [_box(row) if row else [] for row in ran]
        left -= sum(map(len, boxes))
        if left < 0:
            break
        flat = numbers([value for box in boxes for value in box])
        ends = np.cumsum([len(box) for box in boxes]).tolist()
        found[name] = [flat[end - len(box) : end] or None for box, end in zip(boxes, ends, strict=True)]
    return found


def _box(values: Sequence[float]) -> Sequence[float]:
    """The values; for more than `DOTS` values, the minimum, quartiles and maximum of the finite ones."""
    if len(values) <= DOTS:
        return values
    known = [value for value in values if math.isfinite(value)]
    return np.quantile(known, [0, 0.25, 0.5, 0.75, 1]).tolist() if known else []
