"""Where things are printed: results on stdout, notes on stderr. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import pandas as pd

    from cryobench.record import Record

FORMATS = ("rich", "csv", "md", "html", "json", "latex")
RICH = "rich"
FILE_WIDTH = 160
"""Characters a line, of tables drawn into a file."""


def note(message: str) -> None:
    """A remark for the person at the terminal, on stderr."""
    typer.echo(message, err=True)


@dataclass(frozen=True)
class Outputs:
    """In which format a leaderboard is printed, and which files of which formats are written."""

    printed: str
    files: Mapping[Path, str]

    @property
    def formats(self) -> set[str]:
        """All that are printed or written."""
        return {self.printed, *self.files.values()}


def check_outputs(csv: Path | None = None, as_json: bool = False, formats: Sequence[str] = ()) -> Outputs:
    """What `--format NAME` and `--format NAME=FILE` ask for; `--csv FILE` and `--json` are short for two of them.

    Refuses, before any work, what is no format, a second one for stdout, and a file that could not be written.
    """
    from cryobench.errors import ParameterError
    from cryobench.files import check_writable_file
    from cryobench.registry import did_you_mean

    asked = [("--format " + text, *text.partition("=")[::2]) for text in formats]
    asked += [(f"--csv {csv}", "csv", str(csv))] if csv is not None else []
    asked += [("--json", "json", "")] if as_json else []
    printed: dict[str, str] = {}
    files: dict[Path, str] = {}
    for option, name, file in asked:
        if name not in FORMATS:
            raise ParameterError(f"{option}: {name!r} is no format; {did_you_mean(name, FORMATS)}")
        if option.endswith("="):
            raise ParameterError(f"{option} names no file; give {option}FILE")
        if file in ("", "-"):
            printed[option] = name
        elif Path(file) in files:
            raise ParameterError(f"{option} would write {file} twice; give each format a file of its own")
        else:
            check_writable_file(Path(file))
            files[Path(file)] = name
    if len(printed) > 1:
        raise ParameterError(f"{' and '.join(printed)} would both write to stdout; give --format NAME=FILE for a file")
    return Outputs(next(iter(printed.values()), RICH), files)


def print_leaderboard(records: Sequence[Record], by: str, outputs: Outputs, find: Callable[[str], Path | None]) -> None:
    """The ranked table of records. find: as `show` wants it."""
    from cryobench.leaderboard.table import leaderboard

    show(leaderboard(records, by=by), outputs, records, find)


def show(frame: pd.DataFrame, outputs: Outputs, records: Sequence[Record], find: Callable[[str], Path | None]) -> None:
    """Write the files that were asked for, each whole, and print the leaderboard. find: the run folder of a hash, if
    there is one."""
    from cryobench.files import whole_file
    from cryobench.leaderboard import render

    def page(frame: pd.DataFrame) -> str:
        from cryobench.leaderboard.page import to_page

        return to_page(frame, records, find)

    written: dict[str, Callable[[pd.DataFrame], str]] = {
        "csv": render.to_csv,
        "md": render.to_markdown,
        "html": page,
        "json": render.to_json,
        "latex": render.to_latex,
        RICH: _drawn,
    }
    for file, name in outputs.files.items():
        with whole_file(file) as path:
            path.write_text(written[name](frame), encoding="utf-8")
    if outputs.printed == RICH:
        from rich.console import Console

        Console().print(render.rich_tables(frame))
    else:
        sys.stdout.write(written[outputs.printed](frame))


def _drawn(frame: pd.DataFrame) -> str:
    """The tables of a terminal as plain text."""
    from io import StringIO

    from rich.console import Console

    from cryobench.leaderboard.render import rich_tables

    text = StringIO()
    Console(file=text, width=FILE_WIDTH).print(rich_tables(frame))
    return text.getvalue()
