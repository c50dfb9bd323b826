"""The leaderboard of a suite as a page, with published numbers for comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import pandas as pd

from cryobench.core import JointMetric
from cryobench.errors import CryobenchError
from cryobench.leaderboard.filter import with_metrics
from cryobench.leaderboard.render import escape_markdown, to_markdown
from cryobench.leaderboard.render.text import one_line
from cryobench.leaderboard.statistics.bootstrap import mean
from cryobench.plan.suite import UnavailableGrid
from cryobench.plan.suite_file import Reference, SuiteFile
from cryobench.record import CLEAN, Record, numbers_of
from cryobench.registry import installed
from cryobench.spec import parse
from cryobench.text import printable

NOT_RUN = "not run"
_HTML = re.compile(r"<(?=[a-zA-Z/!?])")
"""The beginning of HTML in the Markdown of a suite's description."""


class PublishedNumber(NamedTuple):
    """A published number or range, as text, and ours: a mean over images, or the reason for its absence.

    difference: ours minus the published number, or minus the nearer end of a range; 0 within the range.
    """

    solver: str
    operator: str
    metric: str
    published: str
    source: str
    measured: float | None
    difference: float | None
    status: str
    reason: str


def published_numbers(
    references: Sequence[Reference], records: Sequence[Record], unavailable: Sequence[UnavailableGrid]
) -> list[PublishedNumber]:
    """Each published number with ours, from the records of its cell. references: see `suite.references`."""
    found = []
    for reference in references:
        ours = [record for record in records if _matches(record, reference)]
        for metric, (least, greatest) in reference.values.items():
            text = f"{least:g}" if least == greatest else f"{least:g} to {greatest:g}"
            measured, *why = _measured(ours[0], metric) if ours else (None, NOT_RUN, _reason(reference, unavailable))
            difference = None if measured is None else measured - min(max(measured, least), greatest)
            cell = reference.solver, reference.operator, metric, text, reference.source
            found.append(PublishedNumber(*cell, measured, difference, *why))
    return found


def _matches(record: Record, reference: Reference) -> bool:
    same = all(getattr(record, name) == getattr(reference, name) for name in ("solver", "operator", "noise"))
    return same and fnmatchcase(record.problem.get("unpooled", record.data), reference.data)


def _reason(reference: Reference, unavailable: Sequence[UnavailableGrid]) -> str:
    reasons = (grid.reason for grid in unavailable
               if reference.solver in grid.solvers and reference.operator in grid.operators)  # fmt: skip
    return next(reasons, "no cell of this suite")


def _measured(record: Record, metric: str) -> tuple[float | None, str, str]:
    """The mean; where there is none, the status of the cell and the reason."""
    if record.status != "ok":
        return None, record.status, record.reason
    value = mean(numbers_of(record, metric) or ())
    return (value, "ok", "") if value is not None else (None, "ok", record.unmeasured.get(metric, "not measured"))


def with_published(frame: pd.DataFrame, numbers: Sequence[PublishedNumber]) -> pd.DataFrame:
    """A leaderboard with METRIC_published and METRIC_difference for each published number. Cells that were not run are
    rows at the end."""
    frame = frame.copy()
    not_run: dict[tuple[str, str], dict[str, str]] = {}
    for number in numbers:
        columns = {f"{number.metric}_published": number.published, f"{number.metric}_difference": number.difference}
        own = (frame["solver"] == number.solver) & (frame["operator"] == number.operator)
        for name, value in columns.items():
            if name not in frame:
                frame[name] = pd.Series(None, frame.index, dtype="str" if name.endswith("published") else "float64")
            frame.loc[own, name] = value
        if number.status == NOT_RUN:
            place = {"solver": number.solver, "operator": number.operator, "status": NOT_RUN, "reason": number.reason}
            not_run.setdefault((number.solver, number.operator), place).update(columns)
    return pd.concat([frame, pd.DataFrame(not_run.values())]) if not_run else frame


def report(
    suite: SuiteFile,
    frame: pd.DataFrame,
    numbers: Sequence[PublishedNumber],
    unavailable: Sequence[UnavailableGrid],
    made: str,
    command: str,
) -> str:
    """The results of a suite in Markdown: description, command, date and machine, and the leaderboard.

    made: machine, version and date, on one line.
    """
    about = ["", _HTML.sub("&lt;", printable(suite.about))] if suite.about else []
    lines = [f"# {escape_markdown(suite.title)}", *about, "", f"{escape_markdown(made)}:", ""]
    lines += [f"    {one_line(command)}", ""]
    if numbers:
        lines += ["## Beside published numbers", "", *_table(numbers), ""]
    lines += [escape_markdown(f"- not run: {', '.join(grid.solvers)} on {', '.join(grid.operators)}: {grid.reason}")
              for grid in unavailable]  # fmt: skip
    specs = {spec.text for grid in suite.grids for spec in grid.metrics}
    named = {name for spec in specs for name in _columns(spec)}
    names = [column["name"] for column in frame.attrs["columns"]]
    shown = with_metrics(frame, [name for name in names if name.removesuffix(CLEAN) in named]) if named else frame
    return "\n".join(lines).rstrip() + "\n\n" + to_markdown(shown)


def _columns(metric: str) -> set[str]:
    """The columns that a metric of a suite adds to its tables: that of its name. All if it has none of its name, as
    `energy_coverage`, and of one of all images together, which has no other table."""
    try:
        made = installed().make("metrics", metric)
    except CryobenchError:  # of a grid whose plugin is not installed
        return {parse(metric).name}
    names, own = {column.name for column in made.columns}, parse(metric).name
    return {own} if own in names and not isinstance(made, JointMetric) else names


def _table(numbers: Sequence[PublishedNumber]) -> Iterator[str]:
    yield "| solver | operator | metric | published | ours | difference | source |"
    yield "|:--|:--|:--|--:|--:|--:|:--|"
    for row in numbers:
        why = row.reason if row.status == "ok" else f"{row.status}: {row.reason}"
        ours = why if row.measured is None else f"{row.measured:.4g}"
        difference = "" if row.difference is None else f"{row.difference:+.3g}"
        plain = map(escape_markdown, (row.metric, row.published, ours, difference, row.source))
        yield f"| {' | '.join([_code(row.solver), _code(row.operator), *plain])} |"


def _code(text: str) -> str:
    """A text as code in a cell of a Markdown table; one with backticks is plain text."""
    text = one_line(text)
    return escape_markdown(text) if "`" in text else f"`{text}`".replace("|", "\\|")
