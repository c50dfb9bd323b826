"""Changes between two results as Rich tables, CSV and JSON. Nothing is printed here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, get_args

import pandas as pd
from rich import box
from rich.console import ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from cryobench.leaderboard.compare.change import FOR_THE_WORSE, NO_CHANGE, Change, ChangeKind
from cryobench.leaderboard.compare.changes import Changes
from cryobench.leaderboard.render.terminal import Deferred, encoder
from cryobench.leaderboard.render.text import NO_VALUE
from cryobench.results import tables
from cryobench.text import counted, json_text

HEADER = ["", "solver", "column", "OLD", "NEW", "change [95% interval]"]


def rich_changes(found: Changes) -> RenderableType:
    """For a terminal: counts by column, each change beyond noise, and remarks."""
    return Deferred(lambda options: _parts(found, options))


def to_csv(found: Changes) -> str:
    """One row for each column of each cell; numbers with all their digits, missing ones empty."""
    return tables.to_csv(pd.DataFrame(found.changes, columns=list(Change.__dataclass_fields__), dtype=object))


def to_json(found: Changes) -> str:
    """An object with the fields of `Changes`. Missing values are null; infinity, which JSON lacks, is "inf"."""
    data = asdict(found)
    data["changes"] = [{name: _json(value) for name, value in change.items()} for change in data["changes"]]
    return json_text(data, indent=2, allow_nan=False) + "\n"


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _parts(found: Changes, options: ConsoleOptions) -> Iterator[RenderableType]:
    encode = encoder(options)

    def text(line: str, style: str = "") -> Text:
        return Text(encode(line), style=style)

    if found.changes:
        yield _table(_counts(found.changes), text)
        yield Text()
    for where, changes in _beyond_noise(found.changes).items():
        yield text(where, "bold")
        yield _table([HEADER, *map(_row, changes)], text)
        yield Text()
    if any(change.passed for change in found.changes):
        yield text("! beyond a threshold of --fail-on")
    for title, lines in (
        ("no longer runs", found.broken),
        ("runs now", found.mended),
        ("only in OLD", found.only_old),
        ("only in NEW", found.only_new),
    ):
        yield from (text(f"{title}: {line}", "bold" if lines is found.broken else "") for line in lines)
    yield from (text(remark, "dim") for remark in found.remarks)
    yield text(counted(len(found.regressions), "regression") if found.regressions else "no regressions", "bold")


def _counts(changes: Sequence[Change]) -> list[list[str]]:
    """For each column, the number of cells with each kind of change; the first row is the header."""
    number = Counter((change.column, change.verdict) for change in changes)
    kinds = [kind for kind in get_args(ChangeKind) if any(key[1] == kind for key in number)]
    columns = dict.fromkeys(change.column for change in changes)
    return [["cells", *kinds], *([name, *(str(number[name, kind] or NO_VALUE) for kind in kinds)] for name in columns)]


def _beyond_noise(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """The changes beyond noise by problem; changes for the worse first."""
    found: dict[str, list[Change]] = {}
    for change in sorted(changes, key=lambda change: (not change.passed, change.verdict not in FOR_THE_WORSE)):
        if change.passed or change.verdict not in NO_CHANGE:
            parts = [change.operator, f"noise {change.noise}", f"{change.data}, {counted(change.n_images, 'image')}"]
            parts += [f"seed {change.seed}"]
            parts += [] if change.within == "image" else [f"within {change.within}"]
            parts += [] if change.dtype == "float32" else [change.dtype]
            found.setdefault(" · ".join(parts), []).append(change)
    return found


def _row(change: Change) -> list[str]:
    """The cells below `HEADER`."""
    old, new = (NO_VALUE if value is None else f"{value:.4g}" for value in (change.old, change.new))
    interval = "" if change.lo is None else f" [{change.lo:+.3g}, {change.hi:+.3g}]"
    difference = NO_VALUE if change.difference is None else f"{change.difference:+.3g}{interval}"
    unit = f"{change.column} {change.unit}".rstrip()
    return [change.verdict + (" !" if change.passed else ""), change.solver, unit, old, new, difference]


def _table(rows: Sequence[Sequence[str]], text: Callable[[str], Text]) -> Table:
    """A table with a header. Solvers are wrapped if necessary; numbers are aligned right."""
    head, *body = rows
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(head):
        numbers = all(row[place][-1:].isdigit() or row[place] == NO_VALUE for row in body)
        wrap = name in ("solver", *get_args(ChangeKind))
        table.add_column(text(name), justify="right" if numbers else "left", overflow="fold", no_wrap=not wrap)
    for row in body:
        table.add_row(*map(text, row), style="bold" if row[0].removesuffix(" !") in FOR_THE_WORSE else "")
    return table
