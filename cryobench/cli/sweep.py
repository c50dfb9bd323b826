"""`cryobench sweep`: the grid of a suite file on many workers, and its published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.options import (
    BatchOption,
    ByOption,
    CsvOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    PresetsOption,
    QuietOption,
)

if TYPE_CHECKING:
    import pandas as pd

    from cryobench.plan.grid import Plan
    from cryobench.plan.suite import Absent
    from cryobench.plan.suite_file import Reference, SuiteFile
    from cryobench.record import Record
    from cryobench.sweep.driver import Order


def _print_schema(wanted: bool) -> None:
    if wanted:
        typer.echo((Path(__file__).parents[1] / "plan" / "suite.schema.json").read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


def sweep(
    suite: Annotated[Path, typer.Argument(help="A suite (.yaml): solvers, operators, noises, data, images, seeds.")],
    out: Annotated[
        Path | None, typer.Option(help="Results folder. A cell found there is not run again. [default: runs/SUITE]",
                                  show_default=False)
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", "-e", metavar="WHERE",
                          help="local; processes[:N], one for each GPU or core; dask[:N], dask://HOST:PORT; "
                          "slurm:FILE.yaml.")
    ] = "local",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each worker. [default: the cores shared out]",
                                 show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run, and how long it may take.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again what failed or was skipped before.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Only part K of N, for machines that share nothing but a folder.")
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option(metavar="90|10m|2h", help="Stop a cell that takes longer; it has then failed.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="500M|8G", help="Stop a cell whose process takes more (on the host).")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Show what runs, how fast, and what is best so far.")] = False,
    by: ByOption = "psnr",
    device: DeviceOption = "cpu",
    batch: BatchOption = "auto",
    save: Annotated[
        list[str] | None, typer.Option(help="As in `run`: reconstructions, figures. Repeat for more.",
                                       show_default=False)
    ] = None,
    presets: PresetsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Run cells again that are there already.")] = False,
    publish: Annotated[
        Path | None, typer.Option(help="Also write the results to SUITE.csv and SUITE.md in this folder.")
    ] = None,
    formats: FormatOption = None,
    csv: CsvOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    schema: Annotated[
        bool, typer.Option("--schema", is_eager=True, callback=_print_schema,
                           help="Print the JSON schema of suites, for editors, and exit.")
    ] = False,
) -> None:  # fmt: skip
    """Run a suite: every solver on every operator, noise and data set it lists. What is finished is not run again.

    Example: cryobench sweep leaderboards/fourier.yaml --executor processes --publish leaderboards
    """
    from cryobench.cli.live import watching
    from cryobench.cli.output import check_outputs, note, show
    from cryobench.cli.running import check_by, collect
    from cryobench.errors import ParameterError
    from cryobench.files import check_writable_file
    from cryobench.hooks import Hooks
    from cryobench.leaderboard.table import leaderboard
    from cryobench.plan import suite as suites
    from cryobench.plan.suite_file import read_suite
    from cryobench.registry import installed
    from cryobench.results.store import Results
    from cryobench.sweep.driver import Order, run, sharded
    from cryobench.sweep.executors import check_reachable, parse_executor
    from cryobench.sweep.job import parse_limits, parse_shard

    wanted = parse_executor(executor)
    check_reachable(wanted)
    limits = parse_limits(time_limit, memory_limit)
    part = None if shard is None else parse_shard(shard)
    if part is not None and publish is not None:
        raise ParameterError("--publish is for whole results: when all shards are done, run it without --shard")
    outputs = check_outputs(csv, as_json, formats or ())
    asked = read_suite(suite)
    # other machines have devices of their own, which this one need not have
    own_device = device if wanted.kind in ("local", "processes") else "cpu"
    plans, absent = suites.plans(asked, installed(), device=own_device, batch=batch, save=save or (),
                                  presets=presets)  # fmt: skip
    references = suites.references(asked, installed(), presets)
    if plans:
        check_by(by, plans)
    files = {} if publish is None else {ending: publish / f"{suite.stem}.{ending}" for ending in ("csv", "md")}
    for path in files.values():
        check_writable_file(path)
    store = Results(out or Path("runs") / suite.stem)
    order = Order(store, device, force=force, retry_failed=retry_failed, limits=limits)
    if part is not None:
        plans = sharded(plans, *part)
    cells = sum(len(plan.cells) for plan in plans)
    if dry_run:
        _tell(plans, absent, order)
        return
    store.check_writable()
    with watching(cells, by, live=live, quiet=quiet) as observer:
        hooks = Hooks(observer.warn).load_installed()
        told = {"suite": str(suite), "executor": executor}
        records = collect(run(plans, order, wanted, observer, hooks, threads=threads, options=told), cells, store)
    places = {cell.hash: place for place, cell in enumerate(cell for plan in plans for cell in plan.cells)}
    records.sort(key=lambda record: places[record.hash])  # a table does not tell who was first
    frame = leaderboard(records, by=by)
    show(frame, outputs, records, store.find)
    if not quiet:
        note(observer.summary(store.root))
    for grid in absent:
        note(f"not run: {', '.join(grid.solvers)} on {', '.join(grid.operators)}: {grid.reason} ({grid.error})")
    if files:
        _publish(asked, frame, records, references, absent, files)
        note(f"published in {' and '.join(map(str, files.values()))}")
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def _tell(plans: Sequence[Plan], absent: Sequence[Absent], order: Order) -> None:
    """What would be run, what is there already, and how long it may take by earlier records."""
    from rich.console import Console
    from rich.table import Table

    from cryobench.cli.output import note
    from cryobench.cli.progress import duration
    from cryobench.leaderboard.cells import StoredRecords
    from cryobench.leaderboard.index import read_cells
    from cryobench.sweep.driver import split
    from cryobench.sweep.estimate import Times

    known, tasks = split(plans, order)
    times = Times(StoredRecords(read_cells([order.store.root], note)) if order.store.root.is_dir() else ())
    table = Table(box=None, header_style="bold")
    for name in ("solver", "to run", "there", "failed or skipped", "estimated"):
        table.add_column(name, justify="left" if name == "solver" else "right")
    for solver in dict.fromkeys([*(task.cell.labels["solver"] for task in tasks), *(one.solver for one in known)]):
        own = [task for task in tasks if task.cell.labels["solver"] == solver]
        there = [record.status == "ok" for record in known if record.solver == solver]
        seconds, unknown = times.total(own)
        estimate = "" if not own else "not known" if unknown == len(own) else duration(seconds)
        table.add_row(solver, str(len(own)), str(sum(there)), str(len(there) - sum(there)), estimate)
    Console().print(table)
    seconds, unknown = times.total(tasks)
    print(f"{len(tasks)} of {len(tasks) + len(known)} cells to run"
          + (f"; about {duration(seconds)} on one worker, by earlier cells" if unknown < len(tasks) else "")
          + (f"; nothing is known of {unknown} of them" if unknown else ""))  # fmt: skip
    for grid in absent:
        print(f"not to be run: {', '.join(grid.solvers)} on {', '.join(grid.operators)}: {grid.reason} ({grid.error})")


def _publish(
    suite: SuiteFile,
    frame: pd.DataFrame,
    records: Sequence[Record],
    references: Sequence[Reference],
    absent: Sequence[Absent],
    files: Mapping[str, Path],
) -> None:
    """Write the leaderboard as CSV and as a page, each whole."""
    from datetime import UTC, datetime

    from cryobench.environment import hardware, version
    from cryobench.files import whole_file
    from cryobench.leaderboard.published import beside, report, with_published
    from cryobench.leaderboard.render import to_csv

    machine = hardware()
    devices = [str(machine[name]) for name in machine if name.startswith("cuda")]
    where = f"{machine['processor']} ({machine['cores']} cores){''.join(f', {device}' for device in devices)}"
    made = f"Made on {datetime.now(UTC):%Y-%m-%d} with cryobench {version()} on {where} by"
    command = f"cryobench sweep {suite.path} --publish {files['md'].parent}"
    numbers = beside(references, records, absent)
    texts = {"csv": to_csv(with_published(frame, numbers)), "md": report(suite, frame, numbers, absent, made, command)}
    for ending, path in files.items():
        with whole_file(path) as beside_it:
            beside_it.write_text(texts[ending], encoding="utf-8")
