"""Where things are printed: results on stdout, notes on stderr. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from cryobench.record import Record


def note(message: str) -> None:
    """A remark for the person at the terminal, on stderr."""
    typer.echo(message, err=True)


def check_outputs(csv: Path | None, as_json: bool) -> None:
    """Refuse, before any work, a table that could not be written."""
    from cryobench.errors import ParameterError
    from cryobench.files import check_writable_file

    if csv is not None and str(csv) != "-":
        check_writable_file(csv)
    elif csv is not None and as_json:
        raise ParameterError("--json and --csv - would both write to stdout; give --csv a file")


def print_leaderboard(records: Sequence[Record], by: str, csv: Path | None, as_json: bool) -> None:
    """The ranked table: as rich tables, or as CSV or JSON where that is asked for on stdout; also to a CSV file."""
    from rich.console import Console

    from cryobench.files import whole_file
    from cryobench.leaderboard import render, table

    frame = table.leaderboard(records, by=by)
    if csv is not None and str(csv) != "-":
        with whole_file(csv) as path:
            path.write_text(render.to_csv(frame), encoding="utf-8")
    if as_json:
        typer.echo(render.to_json(frame))
    elif csv is not None and str(csv) == "-":
        sys.stdout.write(render.to_csv(frame))
    else:
        Console().print(render.rich_tables(frame))
