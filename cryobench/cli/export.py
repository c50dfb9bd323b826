"""`cryobench export`: the results of run folders as tables for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def export(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Results folders, or single run folders. [default: runs]")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write CSV, one row per image; '-' for stdout.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write the same table as Parquet.")] = None,
    benchopt: Annotated[
        Path | None, typer.Option(help="Write Parquet in the columns of benchopt 1.8 or later, for its plots.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="METRIC", help="Metric that --benchopt writes as objective_value, negated where higher is better."
        ),
    ] = "psnr",
) -> None:
    """Write the metrics of every image of every finished cell as tables for pandas, R or benchopt's plots.

    Example: cryobench export runs --csv images.csv --benchopt outputs/cryobench.parquet
    """
    from cryobench.cli.output import note
    from cryobench.errors import ParameterError
    from cryobench.files import check_writable_file, output_file

    stdout = csv is not None and str(csv) == "-"
    files = [file for file in (None if stdout else csv, parquet, benchopt) if file is not None]
    if not files and not stdout:
        raise ParameterError("nothing to write; give --csv FILE, --parquet FILE or --benchopt FILE")
    if len({file.resolve() for file in files}) < len(files):
        raise ParameterError("two tables would be written to the same file; give each its own file")
    for file in files:
        check_writable_file(file)
    if benchopt is not None and benchopt.suffix != ".parquet":
        raise ParameterError(f"--benchopt {benchopt}: benchopt requires a name that ends in .parquet")

    from cryobench.results import export
    from cryobench.results.tables import to_csv

    records = export.read_finished(runs or [Path("runs")], note)
    table = export.images_table(records) if csv is not None or parquet is not None else None
    benchopt_table = export.benchopt_table(records, by) if benchopt is not None else None  # before any file is written
    if table is not None and csv is not None:
        text = to_csv(table)
        if stdout:
            sys.stdout.write(text)
        else:
            with output_file(csv) as path:
                path.write_text(text, encoding="utf-8")
    if table is not None and parquet is not None:
        export.write_parquet(table, parquet)
    if benchopt_table is not None and benchopt is not None:
        export.write_benchopt(benchopt_table, benchopt)
    for file in files:
        note(f"{sum(len(record.images) for record in records)} images of {len(records)} cells in {file}")
