"""`cryobench sweep`: the grid of a suite file on many workers, and its published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.options import (
    BatchOption,
    ByOption,
    ColumnsOption,
    CsvOption,
    DeviceOption,
    ExecutorOption,
    FormatOption,
    JsonOption,
    MemoryLimitOption,
    PresetsOption,
    QuietOption,
    ShardOption,
    ThreadsOption,
    TimeLimitOption,
    WideOption,
    listed,
)

if TYPE_CHECKING:
    import pandas as pd

    from cryobench.plan.grid import Plan
    from cryobench.plan.suite import UnavailableGrid
    from cryobench.plan.suite_file import Reference, SuiteFile
    from cryobench.record import Record
    from cryobench.sweep.driver import SweepOptions


def _print_schema(requested: bool) -> None:
    if requested:
        typer.echo((Path(__file__).parents[1] / "plan" / "suite.schema.json").read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


def sweep(
    suite: Annotated[Path, typer.Argument(help="A suite (.yaml): solvers, operators, noises, data, images, seeds.")],
    out: Annotated[
        Path | None, typer.Option(help="Results folder. Cells saved there are not run again. [default: runs/SUITE]",
                                  show_default=False)
    ] = None,
    executor: ExecutorOption = "local",
    threads: ThreadsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells to run with estimated times, and exit.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed and skipped cells again.")
    ] = False,
    shard: ShardOption = None,
    time_limit: TimeLimitOption = None,
    memory_limit: MemoryLimitOption = None,
    live: Annotated[bool, typer.Option("--live", help="Show running cells, speed and best results.")] = False,
    by: ByOption = None,
    device: DeviceOption = "cpu",
    batch: BatchOption = "auto",
    save: Annotated[
        list[str] | None, typer.Option(help="Files to save, as in `run`. Repeat for more.",
                                       show_default=False)
    ] = None,
    presets: PresetsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Run saved cells again.")] = False,
    publish: Annotated[
        Path | None, typer.Option(help="Also write the leaderboard to SUITE.csv and SUITE.md in this folder.")
    ] = None,
    formats: FormatOption = None,
    csv: CsvOption = None,
    as_json: JsonOption = False,
    columns: ColumnsOption = None,
    wide: WideOption = False,
    quiet: QuietOption = False,
    schema: Annotated[
        bool, typer.Option("--schema", is_eager=True, callback=_print_schema,
                           help="Print the JSON schema of suites, for editors, and exit.")
    ] = False,
) -> None:  # fmt: skip
    """Run a suite: every solver on every operator, noise and data set in it. Finished cells are not run again.

    Example: cryobench sweep leaderboards/fourier.yaml --executor processes --publish leaderboards
    """
    from cryobench.cli.live import watching
    from cryobench.cli.output import check_outputs, note, show, stdout_for_results
    from cryobench.cli.running import collect, ranked_by
    from cryobench.errors import ParameterError
    from cryobench.files import check_writable_file
    from cryobench.hooks import Hooks
    from cryobench.leaderboard.filter import check_columns
    from cryobench.leaderboard.pooled import pooled_leaderboard
    from cryobench.leaderboard.table import leaderboard, measured_by
    from cryobench.plan import suite as suites
    from cryobench.plan.suite_file import read_suite
    from cryobench.registry import installed
    from cryobench.results.store import Results
    from cryobench.runner import result_name
    from cryobench.sweep.driver import SweepOptions, run, sharded
    from cryobench.workers.executors import check_reachable, parse_executor
    from cryobench.workers.job import parse_limits, parse_shard

    spec = parse_executor(executor)
    check_reachable(spec)
    limits = parse_limits(time_limit, memory_limit)
    part = None if shard is None else parse_shard(shard)
    if part is not None and publish is not None:
        raise ParameterError("--publish needs all results; run without --shard when all shards are done")
    outputs = check_outputs(csv, as_json, formats or (), listed(columns), wide)
    suite_file = read_suite(suite)
    # the workers' machines may have devices that this one lacks
    own_device = device if spec.kind in ("local", "processes") else "cpu"
    with stdout_for_results():
        plans, unavailable = suites.plans(suite_file, installed(), device=own_device, batch=batch, save=save or (),
                                          presets=presets)  # fmt: skip
        references = suites.references(suite_file, installed(), presets)
    ranking = ranked_by(by, plans) if plans else measured_by(by, ())
    if plans:
        check_columns(listed(columns), [name for plan in plans for name in plan.metric_columns])
    for text in () if quiet else dict.fromkeys(text for plan in plans for text in plan.notes):
        note(text)
    files = {} if publish is None else {ending: publish / f"{suite.stem}.{ending}" for ending in ("csv", "md")}
    for path in files.values():
        check_writable_file(path)
    store = Results(out or Path("runs") / suite.stem)
    options = SweepOptions(store, device, force=force, retry_failed=retry_failed, limits=limits)
    if part is not None:
        plans = sharded(plans, *part)
    cells = sum(len(plan.cells) for plan in plans)
    if dry_run:
        _print_dry_run(plans, unavailable, options)
        return
    store.check_writable()
    with watching(cells, ranking, live=live, quiet=quiet) as observer:
        with stdout_for_results():
            hooks = Hooks(observer.warn).load_installed()
        running = run(plans, options, spec, observer, hooks, threads=threads,
                      hook_options={"suite": str(suite), "executor": executor})  # fmt: skip
        records = collect(running, cells, store)
    planned = [cell for plan in plans for cell in plan.cells]
    places = {name: place for place, cell in enumerate(planned) for name in (cell.key, result_name(cell))}
    # the table must not depend on which cell finishes first
    records.sort(key=lambda record: places.get(record.hash, len(places)))
    if suite_file.pooled:
        records, frame = pooled_leaderboard(records, by=ranking)
    else:
        frame = leaderboard(records, by=ranking)
    published = _published(suite_file, frame, records, references, unavailable, files, by) if files else {}
    show(frame, outputs, records, store.find, published)
    if not quiet:
        note(observer.summary(store.given))
    for grid in unavailable:
        note(f"not run: {', '.join(grid.solvers)} on {', '.join(grid.operators)}: {grid.reason} ({grid.error})")
    if files:
        note(f"published in {' and '.join(map(str, files.values()))}")
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def _print_dry_run(plans: Sequence[Plan], unavailable: Sequence[UnavailableGrid], options: SweepOptions) -> None:
    """Print the numbers of cells to run and of saved cells, with times estimated from earlier records."""
    from rich.console import Console
    from rich.table import Table

    from cryobench.cli.output import note, rich_text, say
    from cryobench.cli.progress import duration
    from cryobench.leaderboard.cells import StoredRecords
    from cryobench.leaderboard.index import read_cells
    from cryobench.sweep.driver import split
    from cryobench.sweep.estimate import Times

    saved_records, todo = split(plans, options)
    times = Times(StoredRecords(read_cells([options.store.root], note)) if options.store.root.is_dir() else ())
    table = Table(box=None, header_style="bold")
    for name in ("solver", "to run", "saved", "failed or skipped", "estimated"):
        table.add_column(name, justify="left" if name == "solver" else "right")
    for solver in dict.fromkeys(
        [*(queued.cell.labels["solver"] for queued in todo), *(record.solver for record in saved_records)]
    ):
        own = [queued for queued in todo if queued.cell.labels["solver"] == solver]
        saved = [record.status == "ok" for record in saved_records if record.solver == solver]
        seconds, unknown = times.total(own)
        estimate = "" if not own else "unknown" if unknown == len(own) else duration(seconds)
        table.add_row(rich_text(solver), str(len(own)), str(sum(saved)), str(len(saved) - sum(saved)), estimate)
    Console().print(table)
    seconds, unknown = times.total(todo)
    say(f"{len(todo)} of {len(todo) + len(saved_records)} cells to run"
        + (f"; about {duration(seconds)} on one worker, from earlier cells" if unknown < len(todo) else "")
        + (f"; no estimate for {unknown} of them" if unknown else ""))  # fmt: skip
    for grid in unavailable:
        say(f"will not run: {', '.join(grid.solvers)} on {', '.join(grid.operators)}: {grid.reason} ({grid.error})")


def _published(
    suite: SuiteFile,
    frame: pd.DataFrame,
    records: Sequence[Record],
    references: Sequence[Reference],
    unavailable: Sequence[UnavailableGrid],
    files: Mapping[str, Path],
    by: str | None,
) -> dict[Path, str]:
    """The leaderboard as CSV and as a Markdown page, by file. by: the option `--by`, for the command in the page."""
    from datetime import UTC, datetime

    from cryobench.environment import hardware, version
    from cryobench.leaderboard.render import to_csv
    from cryobench.leaderboard.table import DEFAULT_BY
    from cryobench.sweep.published import published_numbers, report, with_published

    machine = hardware()
    devices = [str(machine[name]) for name in machine if name.startswith("cuda")]
    where = f"{machine['processor']} ({machine['cores']} cores){''.join(f', {device}' for device in devices)}"
    made = f"Made on {datetime.now(UTC):%Y-%m-%d} with cryobench {version()} on {where} by"
    ranked = "" if by is None and frame.attrs["by"] == DEFAULT_BY else f" --by {frame.attrs['by']}"
    command = f"cryobench sweep {suite.path}{ranked} --publish {files['md'].parent}"
    numbers = published_numbers(references, records, unavailable)
    return {
        files["csv"]: to_csv(with_published(frame, numbers)),
        files["md"]: report(suite, frame, numbers, unavailable, made, command),
    }
