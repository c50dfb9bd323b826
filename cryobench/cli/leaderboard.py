"""`cryobench leaderboard`: the ranked table of results folders."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.options import ByOption, ColumnsOption, CsvOption, FormatOption, JsonOption, WideOption, listed

if TYPE_CHECKING:
    from cryobench.record import Record


def leaderboard(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Results folders, or single run folders. [default: runs]")
    ] = None,
    formats: FormatOption = None,
    by: ByOption = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Metric columns to show in addition to --by; globs.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="operator|noise|data|compression", help="Group the tables, with average ranks per group."),
    ] = None,
    solvers: Annotated[
        str | None,
        typer.Option(metavar="GLOB,...", help="Solvers to show, such as dct or tv:* (? matches the comma in a spec). "
                     "Floor and ceiling are always shown."),
    ] = None,
    operator: Annotated[
        list[str] | None, typer.Option("--operator", "-o", metavar="GLOB", help="Operators to show. Repeat for more.",
                                       show_default=False)
    ] = None,
    noise: Annotated[
        list[str] | None, typer.Option("--noise", "-n", metavar="GLOB", help="Noises to show. Repeat for more.",
                                       show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", metavar="GLOB", help="Data sets to show. Repeat for more.",
                                       show_default=False)
    ] = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="Pool data sets of the same label, such as seeds of a simulation.")
    ] = False,
    csv: CsvOption = None,
    as_json: JsonOption = False,
    columns: ColumnsOption = None,
    wide: WideOption = False,
) -> None:  # fmt: skip
    """Rank the finished cells of one or more results folders.

    Example: cryobench leaderboard runs --by ssim --solvers 'dct,tv*' --format rich --format html=board.html
    """
    from cryobench.cli.output import check_outputs, note, show
    from cryobench.errors import ResultsError
    from cryobench.leaderboard import table
    from cryobench.leaderboard.cells import StoredRecords
    from cryobench.leaderboard.filter import check_columns, choose, grouped, with_metrics
    from cryobench.leaderboard.index import read_cells, run_folder_finder
    from cryobench.leaderboard.pooled import pooled_leaderboard

    outputs = check_outputs(csv, as_json, formats or (), listed(columns), wide)
    folders = runs or [Path("runs")]
    with _collector_paused():
        cells = read_cells(folders, note)
        if not cells.num_rows:
            raise ResultsError(f"no finished cells in {', '.join(map(str, folders))}; `cryobench run` creates them")
        patterns = {"solver": listed(solvers), "operator": operator or (), "noise": noise or (), "data": data or ()}
        cells = choose(cells, patterns)
        shown: Iterable[Record] = StoredRecords(cells)
        if pool:
            shown, frame = pooled_leaderboard(list(shown), by=by)
        else:
            frame = table.leaderboard(cells, by=by)
        if group_by is not None:
            frame = grouped(frame, group_by)
        if metrics is not None:
            frame = with_metrics(frame, listed(metrics))
        check_columns(outputs.columns, [column["name"] for column in frame.attrs["columns"]])
        show(frame, outputs, shown, run_folder_finder(cells))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Disable garbage collection. A large leaderboard has millions of small objects, and searching them for cycles
    would take a fifth of the run time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
