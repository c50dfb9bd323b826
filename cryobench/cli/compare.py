"""`cryobench compare`: what changed between two results, for people and for a CI."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cryobench.record import Record


class Format(StrEnum):
    """How the changes are printed."""

    rich = "rich"
    csv = "csv"
    json = "json"


def compare(
    old: Annotated[Path, typer.Argument(help="Results folder, or single run folder, of before.")],
    new: Annotated[Path, typer.Argument(help="Results folder, or single run folder, of now.")],
    metrics: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Columns to compare, such as psnr,ssim,seconds. [default: all, costs too]"),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="THRESHOLDS",
            help="What counts as a regression, such as psnr:-0.1,seconds:+20%. "
            "[default: any metric significantly worse]",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Relative change of a cost (seconds, calls, memory) that is no change.")
    ] = 0.2,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.rich,
) -> None:
    """Tell which cells of OLD got better, worse or slower in NEW, beyond noise.

    Exit code 1 on a regression: a metric significantly worse (paired by image, corrected for the number of tests), a
    cell that ran and no longer does, a metric that lost its number. With --fail-on: a mean that moved beyond a
    threshold, unless its 95% interval says that it may be chance; and a cell that no longer runs.
    """
    from cryobench.cli.output import note
    from cryobench.leaderboard.compare import render
    from cryobench.leaderboard.compare.changes import changes

    columns = None if metrics is None else [name.strip() for name in metrics.split(",")]
    found = changes(_records(old), _records(new), columns=columns, fail_on=fail_on, tolerance=tolerance)
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
    """The records of a results folder; what is none is named and skipped."""
    from cryobench.cli.output import note
    from cryobench.errors import ResultsError
    from cryobench.results.store import Results

    records = Results(folder).read_all(report=note)
    if not records:
        raise ResultsError(f"no finished cells in {folder}; `cryobench run` makes some")
    return records
