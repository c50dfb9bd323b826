"""`cryobench leaderboard`: the table of what is in results folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryobench.cli.options import ByOption, CsvOption, JsonOption


def leaderboard(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Results folders, or single run folders. [default: runs]")
    ] = None,
    by: ByOption = "psnr",
    csv: CsvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the finished cells of one or more results folders."""
    from cryobench.cli.output import check_outputs, note, print_leaderboard
    from cryobench.errors import ResultsError
    from cryobench.results import Results

    check_outputs(csv, as_json)
    folders = runs or [Path("runs")]
    found = {record.hash: record for folder in folders for record in Results(folder).read_all(report=note)}
    records = list(found.values())
    if not records:
        raise ResultsError(f"no finished cells in {', '.join(map(str, folders))}; `cryobench run` makes some")
    print_leaderboard(records, by, csv, as_json)
