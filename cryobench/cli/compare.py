"""`cryobench compare`: changes between two results, for users and for CI."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cryobench.record import Record


class Format(StrEnum):
    """Output format."""

    rich = "rich"
    csv = "csv"
    json = "json"


def compare(
    old: Annotated[
        Path, typer.Argument(help="The baseline: results folder, single run folder, or a published leaderboard (.csv).")
    ],
    new: Annotated[Path, typer.Argument(help="Results folder, or single run folder: the new results.")],
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Columns to compare, such as psnr,ssim,seconds. [default: all, including costs]"
        ),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="THRESHOLDS",
            help="Changes that count as regressions, such as psnr:-0.1,seconds:+20%. "
            "[default: any metric significantly worse]",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Relative change up to which a cost (seconds, calls, memory) is unchanged.")
    ] = 0.2,
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.rich,
) -> None:
    """List the cells that are significantly better, worse or slower in NEW than in OLD.

    Exit code 1 on a regression: a metric that is significantly worse (paired by image, corrected for the number of
    tests), a cell that no longer runs, a metric that no longer has a value. With --fail-on: a mean that changed beyond
    a threshold, unless its 95% interval contains 0, and a cell that no longer runs.

    A published leaderboard (OLD.csv) has no values of images: nothing is paired or tested, and thresholds of --fail-on
    apply to the means alone.
    """
    from cryobench.cli.output import note
    from cryobench.errors import ResultsError
    from cryobench.leaderboard.compare import render
    from cryobench.leaderboard.compare.changes import changes
    from cryobench.leaderboard.compare.published import changes_from_table, read_table

    columns = None if metrics is None else [name.strip() for name in metrics.split(",")]
    options = {"columns": columns, "fail_on": fail_on, "tolerance": tolerance}
    if new.is_file():
        raise ResultsError(f"NEW must be a results folder, got the file {new}; only OLD may be a published leaderboard")
    if old.is_file():
        found = changes_from_table(read_table(old), _records(new), **options)
    else:
        found = changes(_records(old), _records(new), **options)
    if format is Format.rich:
        from rich.console import Console

        Console().print(render.rich_changes(found))
    else:
        sys.stdout.write(render.to_csv(found) if format is Format.csv else render.to_json(found))
        for regression in found.regressions:
            note(f"regression: {regression}")
    if found.regressions:
        raise typer.Exit(1)


def _records(folder: Path) -> list[Record]:
    """The records of a results folder; other folders are reported and skipped."""
    from cryobench.cli.output import note
    from cryobench.errors import ResultsError
    from cryobench.results.store import Results

    records = Results(folder).read_all(report=note)
    if not records:
        raise ResultsError(f"no finished cells in {folder}; `cryobench run` creates them")
    return records
