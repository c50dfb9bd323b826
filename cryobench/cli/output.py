"""Output: results on stdout, notes on stderr. Does not import torch.

Text that is not written here (names, reasons, file contents) may hold terminal codes: everything that is printed passes
`printable`, `rich_text` or the renderers of tables.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cryobench.text import printable

if TYPE_CHECKING:
    import pandas as pd
    from rich.text import Text

    from cryobench.record import Record

FORMATS = ("rich", "csv", "md", "html", "json", "latex", "png")
RICH, PNG = "rich", "png"
FILE_WIDTH = 160
"""Characters per line of tables in a file."""
UNLIMITED = 10_000
"""Characters per line where all columns are shown."""


def note(message: str) -> None:
    """Print a message to stderr."""
    typer.echo(printable(message), err=True)


def say(text: str) -> None:
    """Print text to stdout."""
    typer.echo(printable(text))


def rich_text(text: str, style: str = "") -> Text:
    """Text for Rich, without markup."""
    from rich.text import Text

    return Text(printable(text), style=style)


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
    """The format in which a leaderboard is printed, and the files to write with their formats.

    columns: names or globs of the columns of Rich tables, all by default. wide: whether they are shown in any width.
    requested: names of metrics that are shown before others.
    """

    printed: str
    files: Mapping[Path, str]
    columns: Sequence[str] = ()
    wide: bool = False
    requested: Sequence[str] = ()

    @property
    def formats(self) -> set[str]:
        """All formats that are printed or written."""
        return {self.printed, *self.files.values()}


def check_outputs(
    csv: Path | None = None,
    as_json: bool = False,
    formats: Sequence[str] = (),
    columns: Sequence[str] = (),
    wide: bool = False,
) -> Outputs:
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
        if file in ("", "-") and name == PNG:
            raise ParameterError(f"{option}: a figure is not printed; give --format png=board.png")
        if name == PNG and Path(file).suffix not in ("", ".png"):
            raise ParameterError(f"{option}: the figure is a PNG; give a file that ends with .png")
        if file in ("", "-"):
            printed[option] = name
        elif Path(file) in files:
            raise ParameterError(f"{option} would write {file} twice; give each format its own file")
        else:
            check_writable_file(Path(file))
            files[Path(file)] = name
    if len(printed) > 1:
        raise ParameterError(f"{' and '.join(printed)} would both write to stdout; give --format NAME=FILE for a file")
    return Outputs(next(iter(printed.values()), RICH), files, tuple(columns), wide)


def show(
    frame: pd.DataFrame,
    outputs: Outputs,
    records: Iterable[Record],
    find: Callable[[str], Path | None],
    others: Mapping[Path, str] | None = None,
) -> None:
    """Print the leaderboard, then write the requested files, each atomically, and `others`, texts by file.

    find: returns the run folder of a hash, or None. Raises `ResultsError` if files cannot be written; the others are.
    """
    from cryobench.leaderboard import render

    def figure(frame: pd.DataFrame) -> bytes:
        from cryobench.leaderboard.render.chart import to_png

        return to_png(frame)

    def page(frame: pd.DataFrame) -> str:
        from cryobench.leaderboard.page import to_page

        return to_page(frame, records, find)

    printed: dict[str, Callable[[pd.DataFrame], str]] = {
        "csv": render.to_csv,
        "md": render.to_markdown,
        "html": page,
        "json": render.to_json,
        "latex": render.to_latex,
        RICH: lambda frame: _drawn(frame, outputs),
    }

    def print_table() -> None:
        if outputs.printed == RICH:
            from rich.console import Console

            Console(width=UNLIMITED if outputs.wide else None).print(
                render.rich_tables(frame, outputs.columns, outputs.requested)
            )
        else:
            sys.stdout.write(printed[outputs.printed](frame))

    rendered: dict[str, Callable[[pd.DataFrame], str | bytes]] = {**printed, PNG: figure}
    files = {file: partial(rendered[name], frame) for file, name in outputs.files.items()}
    print_and_write(print_table, files | {file: partial(str, text) for file, text in (others or {}).items()})


def print_and_write(print_table: Callable[[], None], files: Mapping[Path, Callable[[], str | bytes]]) -> None:
    """Print a table, then write files, each atomically, even if stdout or one of the files cannot be written.

    files: functions that return the content of each. Raises `ResultsError` that names the files that cannot be written.
    """
    from cryobench.errors import ResultsError
    from cryobench.files import output_file

    errors: list[ResultsError] = []
    try:
        print_table()
        sys.stdout.flush()
    finally:
        for file, content in files.items():
            try:
                with output_file(file) as path:
                    found = content()
                    path.write_bytes(found.encode("utf-8") if isinstance(found, str) else found)
            except ResultsError as error:
                errors.append(error)
    if errors:
        raise ResultsError("; ".join(map(str, errors)))


def _drawn(frame: pd.DataFrame, outputs: Outputs) -> str:
    """The Rich tables as plain text."""
    from io import StringIO

    from rich.console import Console

    from cryobench.leaderboard.render import rich_tables

    text = StringIO()
    width = UNLIMITED if outputs.wide else FILE_WIDTH
    Console(file=text, width=width).print(rich_tables(frame, outputs.columns, outputs.requested))
    return text.getvalue()
