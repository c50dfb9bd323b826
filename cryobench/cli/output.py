"""Output: results on stdout, notes on stderr. Does not import torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
"""Characters per line of tables in a file."""


def note(message: str) -> None:
    """Print a message to stderr."""
    typer.echo(message, err=True)


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """A block in which what plugins print, from Python or C, goes to stderr and does not mix with the results."""
    _flush()
    try:
        copy = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of the two is closed
        copy = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        if copy is not None:
            os.dup2(copy, 1)
            os.close(copy)


def _flush() -> None:
    """Flush the buffers of stdout, of Python and of the C library."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            with contextlib.suppress(ValueError, OSError):  # closed, or on a full disk
                stream.flush()
    ctypes.CDLL(None).fflush(None)


@dataclass(frozen=True)
class Outputs:
    """The format in which a leaderboard is printed, and the files to write with their formats."""

    printed: str
    files: Mapping[Path, str]

    @property
    def formats(self) -> set[str]:
        """All formats that are printed or written."""
        return {self.printed, *self.files.values()}


def check_outputs(csv: Path | None = None, as_json: bool = False, formats: Sequence[str] = ()) -> Outputs:
    """The outputs of `--format NAME` and `--format NAME=FILE`; `--csv FILE` and `--json` are short forms.

    Raises `ParameterError` for an unknown format or a second one for stdout, `ResultsError` for a file that cannot be
    written.
    """
    from cryobench.errors import ParameterError
    from cryobench.files import check_writable_file
    from cryobench.registry import did_you_mean

    requested = [("--format " + text, *text.partition("=")[::2]) for text in formats]
    requested += [(f"--csv {csv}", "csv", str(csv))] if csv is not None else []
    requested += [("--json", "json", "")] if as_json else []
    printed: dict[str, str] = {}
    files: dict[Path, str] = {}
    for option, name, file in requested:
        if name not in FORMATS:
            raise ParameterError(f"{option}: {name!r} is not a format; {did_you_mean(name, FORMATS)}")
        if option.endswith("="):
            raise ParameterError(f"{option} needs a file; give {option}FILE")
        if file in ("", "-"):
            printed[option] = name
        elif Path(file) in files:
            raise ParameterError(f"{option} would write {file} twice; give each format its own file")
        else:
            check_writable_file(Path(file))
            files[Path(file)] = name
    if len(printed) > 1:
        raise ParameterError(f"{' and '.join(printed)} would both write to stdout; give --format NAME=FILE for a file")
    return Outputs(next(iter(printed.values()), RICH), files)


def print_leaderboard(records: Sequence[Record], by: str, outputs: Outputs, find: Callable[[str], Path | None]) -> None:
    """Rank records and show the leaderboard. find: see `show`."""
    from cryobench.leaderboard.table import leaderboard

    show(leaderboard(records, by=by), outputs, records, find)


def show(frame: pd.DataFrame, outputs: Outputs, records: Iterable[Record], find: Callable[[str], Path | None]) -> None:
    """Write the requested files, each atomically, and print the leaderboard. find: returns the run folder of a hash, or
    None."""
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
    """The Rich tables as plain text."""
    from io import StringIO

    from rich.console import Console

    from cryobench.leaderboard.render import rich_tables

    text = StringIO()
    Console(file=text, width=FILE_WIDTH).print(rich_tables(frame))
    return text.getvalue()
