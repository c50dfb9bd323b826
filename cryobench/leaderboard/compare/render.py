"""What changed between two results, as Rich tables, CSV and JSON. Nothing is printed here."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cryobench.leaderboard.compare.change import NO_CHANGE, Change, Verdict
from cryobench.leaderboard.compare.changes import Changes

BAD = (Verdict.WORSE, Verdict.LOST, Verdict.SLOWER, Verdict.DEARER)
HEADER = ["", "solver", "column", "OLD", "NEW", "change [95% interval]"]
NO_VALUE = "–"
ASCII = str.maketrans({"·": "|", "–": "-"})


def rich_changes(found: Changes) -> RenderableType:
    """For a terminal: how many cells changed by column, each change beyond noise, and what a reader must know."""
    return _Report(found)


def to_csv(found: Changes) -> str:
    """A row for each column of each cell, numbers with all their digits, missing empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Change)])
    writer.writerows(asdict(change).values() for change in found.changes)
    return text.getvalue()


def to_json(found: Changes) -> str:
    """An object with the fields of `Changes`; missing is null and an infinite number, which JSON has not, "inf"."""
    told = asdict(found)
    told["changes"] = [{name: _plain(value) for name, value in change.items()} for change in told["changes"]]
    return json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class _Report:
    """The report for a terminal, which may know ASCII alone."""

    def __init__(self, found: Changes):
        self.found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(*_parts(self.found, options.ascii_only))


def _parts(found: Changes, ascii_only: bool) -> Iterator[RenderableType]:
    def text(line: str, style: str = "") -> Text:
        return Text(_ascii(line) if ascii_only else line, style=style)

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
    for remark in found.remarks:
        yield text(remark, "dim")
    count = len(found.regressions)
    yield text(f"{count or 'no'} regression{'' if count == 1 else 's'}", "bold")


def _counts(changes: Sequence[Change]) -> list[list[str]]:
    """For each column how many cells have which verdict; the first row is the header."""
    counted = Counter((change.column, change.verdict) for change in changes)
    verdicts = [verdict for verdict in Verdict if any(key[1] == verdict for key in counted)]
    columns = list(dict.fromkeys(change.column for change in changes))
    rows = [[column, *(str(counted[column, verdict] or NO_VALUE) for verdict in verdicts)] for column in columns]
    return [["cells", *verdicts], *rows]


def _beyond_noise(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """The changes that are more than noise, by what they were measured on, what got worse first."""
    found: dict[str, list[Change]] = {}
    for change in sorted(changes, key=lambda change: (not change.passed, change.verdict not in BAD)):
        if change.passed or change.verdict not in NO_CHANGE:
            parts = [change.operator, f"noise {change.noise}", f"{change.data}, {_images(change.n_images)}"]
            parts += [f"seed {change.seed}"]
            parts += [] if change.within == "image" else [f"within {change.within}"]
            parts += [] if change.dtype == "float32" else [change.dtype]
            found.setdefault(" · ".join(parts), []).append(change)
    return found


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _row(change: Change) -> list[str]:
    """The cells below `HEADER`."""
    interval = "" if change.lo is None else f" [{_signed(change.lo)}, {_signed(change.hi)}]"
    return [
        change.verdict + (" !" if change.passed else ""),
        change.solver,
        f"{change.column} {change.unit}".rstrip(),
        _number(change.old),
        _number(change.new),
        _signed(change.difference) + interval,
    ]


def _number(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:+.3g}"


def _table(rows: Sequence[Sequence[str]], text: Callable[[str], Text]) -> Table:
    """A table with a header. Solvers are folded where there is no room; numbers stand to the right."""
    head, *body = rows
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(head):
        numbers = all(row[place][-1:].isdigit() or row[place] == NO_VALUE for row in body)
        table.add_column(
            text(name),
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=name not in ("solver", *Verdict),
        )
    for row in body:
        table.add_row(*map(text, row), style="bold" if row[0].removesuffix(" !") in BAD else "")
    return table


def _ascii(text: str) -> str:
    """For an output that cannot encode more."""
    return text.translate(ASCII).encode("ascii", "replace").decode("ascii")
