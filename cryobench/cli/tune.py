"""`cryobench tune`: the best parameters of solvers on validation images, saved as a preset."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryobench.cli.options import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    PresetsOption,
    QuietOption,
    SizeOption,
    complete,
)

if TYPE_CHECKING:
    from cryobench.cli.output import Outputs
    from cryobench.plan.grid import Request
    from cryobench.registry import Registry
    from cryobench.tuning.problems import TuningTask
    from cryobench.tuning.search import Outcome, Tuning
    from cryobench.tuning.trial import Trial


def tune(
    suite: Annotated[
        Path | None, typer.Argument(help="A suite (.yaml) with solvers, operators, noises, size and data.",
                                    show_default=False)
    ] = None,
    preset: Annotated[str, typer.Option(help="Name of the preset to create or extend, used as SOLVER@NAME.")] = "",
    solver: Annotated[
        list[str] | None,
        typer.Option("--solver", "-s", help="A solver spec. Stated parameters are fixed. Repeat for more. "
                     "[default: those of the suite]", autocompletion=complete("solvers"), show_default=False),
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option("--operator", "-o", help="An operator spec. Repeat for more.",
                     autocompletion=complete("operators"), show_default=False),
    ] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option("--noise", "-n", help="A noise spec. Repeat for more. [default: none]",
                     autocompletion=complete("noises"), show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Source of the validation images. Repeat for more. [default: those of the "
                     "suite]", show_default=False),
    ] = None,
    images: Annotated[
        str, typer.Option(help="Validation images, counted from 0, such as 16:24; not test images.")
    ] = "",
    size: SizeOption = None,
    scaling: Annotated[
        str | None, typer.Option(metavar="minmax|none|meanstd|p95|relion", help="Scaling of the intensities, as in "
                                 "`run`. [default: minmax]", show_default=False)
    ] = None,
    by: Annotated[str, typer.Option("--by", help="Metric column to optimise.")] = "psnr",
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="Spec of the metric, if it is not a default "
                                       "metric.", autocompletion=complete("metrics"), show_default=False)
    ] = None,
    within: Annotated[
        str | None, typer.Option(metavar="image|circle|circle:Å", help="Region of the metric, as in `run`.",
                                 show_default=False)
    ] = None,
    strategy: Annotated[str, typer.Option(help="tpe, random, or grid: a grid over the ranges.")] = "tpe",
    grid_points: Annotated[int, typer.Option(help="Values per parameter with --strategy grid.")] = 5,
    trials: Annotated[
        int | None, typer.Option(help="Trials for each solver, the default setting first. [default: 20]",
                                 show_default=False)
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Network evaluations for each solver (images times NFE), instead of --trials.",
                                 show_default=False)
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Stop trials that are worse than the median.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    problem_seed: Annotated[
        list[int] | None, typer.Option(help="Seed of masks, noise and solvers. Repeat for more. [default: 0]",
                                       show_default=False)
    ] = None,
    presets: PresetsOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    batch: BatchOption = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Run saved trials again.")
    ] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the table as CSV, one row per solver; '-' for stdout.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Find the best parameters of solvers on validation images with equal budgets, and save them as a preset.

    Example: cryobench tune -s dct -o sumpool:4 --images 16:24 --preset pixel-c4, then cryobench run -s dct@pixel-c4
    """
    from cryobench.tuning import check_installed

    check_installed()
    from cryobench.cli.output import check_outputs, note, stdout_for_results
    from cryobench.cli.running import INTERRUPTED
    from cryobench.errors import ParameterError
    from cryobench.plan.dataset import data_options
    from cryobench.plan.grid import DEFAULT_METRICS, Loaded, Request
    from cryobench.plan.presets import preset_file, presets_folder
    from cryobench.registry import installed
    from cryobench.tuning.objective import measure_of
    from cryobench.tuning.search import TRIALS, Budget, Search, Tuning

    if not preset:
        raise ParameterError("tune needs --preset, a name for the result, such as pixel-c4")
    if not images:
        raise ParameterError("tune needs --images, the validation images, such as 16:24; not test images")
    from_suite = {"--operator": operator, "--noise": noise, "--size": size, "--within": within,
                "--scaling": scaling, "--problem-seed": problem_seed}  # fmt: skip
    for option, given in from_suite.items():
        if suite is not None and given is not None:
            raise ParameterError(f"a suite and {option} cannot be combined; give one of them")
    outputs = check_outputs(csv_file, as_json)
    registry, folder = installed(), presets_folder(presets)
    path = preset_file(preset, folder)
    search = Search(
        preset, folder, measure_of(by, metric or DEFAULT_METRICS, registry), strategy=strategy, points=grid_points,
        budget=Budget(TRIALS if trials is None and evaluations is None else trials, evaluations), seed=seed,
        prune=prune, force=force,
    )  # fmt: skip
    request = Request(
        solvers=solver or (),
        operators=operator or (),
        noises=noise or ("none",),
        data=data or (() if suite is not None else ("demo",)),
        data_options=data_options(size=size),
        within=within or "image",
        scaling=scaling or "minmax",
        images=images,
        seeds=tuple(dict.fromkeys(problem_seed or (0,))),
        dtype=dtype,
        device=device,
        batch=batch,
    )
    loaded: Loaded = {}
    with stdout_for_results():
        tunings = [Tuning(task, search, registry, loaded) for task in _tasks(suite, request, registry)]
    for tuning in tunings:
        with tuning.lock():
            pass  # fail before any work if trials cannot be saved or another process tunes the solver
    outcomes: list[Outcome] = []
    with stdout_for_results():
        for tuning in tunings:
            with _reporting(tuning, quiet) as report:
                outcomes.append(tuning.run(report))
            if outcomes[-1].interrupted:
                break
    _show(outcomes, by, outputs)
    for outcome in outcomes:
        for left in outcome.left_out:
            note(f"{outcome.solver} was not tuned on {left}")
    if not quiet and any(outcome.best is not None for outcome in outcomes):
        note(f"saved in {path}; use a setting as {tunings[0].task.name}@{preset}")
    if outcomes[-1].interrupted:
        note("stopped; the same command continues from there")
        raise typer.Exit(INTERRUPTED)
    if any(outcome.reason for outcome in outcomes):
        raise typer.Exit(1)


def _tasks(suite: Path | None, request: Request, registry: Registry) -> list[TuningTask]:
    """The tasks of a suite or of the options; notes the solvers of a suite that are not tuned."""
    from cryobench.cli.output import note
    from cryobench.errors import ParameterError
    from cryobench.plan.suite_file import read_suite
    from cryobench.tuning.problems import from_request, from_suite

    if suite is not None:
        tasks, left_out = from_suite(read_suite(suite), request, registry)
        for message in left_out:
            note(f"not tuned: {message}")
        return tasks
    for option, given in {"--solver": request.solvers, "--operator": request.operators}.items():
        if not given:
            raise ParameterError(f"tune needs a suite, or at least one {option}")
    return from_request(request, registry)


@contextlib.contextmanager
def _reporting(tuning: Tuning, quiet: bool) -> Iterator[Callable[[Sequence[Trial]], None]]:
    """A function that shows progress: a bar on a terminal, a line per new trial elsewhere, nothing if quiet."""
    from rich.console import Console

    from cryobench.cli.output import note
    from cryobench.cli.progress import counted

    budget = tuning.search.budget
    total = budget.trials or budget.evaluations or 0
    lines = not quiet and not Console(stderr=True).is_terminal
    with counted(f"tuning {tuning.task.solver}", total, quiet) as update:

        def report(done: Sequence[Trial]) -> None:
            update(len(done) if budget.trials else round(sum(trial.evaluations for trial in done)), total)
            if lines and not done[-1].reused:
                note(f"{tuning.task.solver}, trial {len(done)}: {done[-1]}")

        yield report


def _rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row of plain values per solver. The setting is written as in a spec."""
    return [
        {
            "solver": outcome.solver,
            "default": outcome.default,
            "best": outcome.best,
            "setting": ",".join(f"{key}={text}" for key, text in outcome.setting.items()),
            "trials": outcome.trials,
            "pruned": outcome.pruned,
            "failed": outcome.failed,
            "evaluations": outcome.evaluations,
            "seconds": outcome.seconds,
            "reason": outcome.reason,
        }
        for outcome in outcomes
    ]


def _show(outcomes: Sequence[Outcome], by: str, outputs: Outputs) -> None:
    """Print the table, then write the requested files."""
    from cryobench.cli.output import RICH, print_and_write
    from cryobench.text import json_text

    rows = _rows(outcomes)
    rendered = {"csv": _as_csv, "json": lambda rows: json_text(rows, indent=1) + "\n"}

    def print_table() -> None:
        if outputs.printed == RICH:
            _print(rows, by)
        else:
            sys.stdout.write(rendered[outputs.printed](rows))

    print_and_write(print_table, {file: partial(rendered[name], rows) for file, name in outputs.files.items()})


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    import pandas as pd

    from cryobench.results.tables import to_csv

    return to_csv(pd.DataFrame(rows, dtype=object))


def _print(rows: Sequence[dict[str, Any]], by: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from cryobench.cli.output import rich_text

    has_evaluations, has_reasons = (any(row[name] for row in rows) for name in ("evaluations", "reason"))
    headings = ["default", "best", "trials", *(["evaluations"] if has_evaluations else []), "s"]
    table = Table(box=None, pad_edge=False, header_style="dim", title=rich_text(f"{by} on the validation images"),
                  title_justify="left", title_style="")  # fmt: skip
    table.add_column("solver", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best setting", overflow="fold")
    if has_reasons:
        table.add_column("reason", overflow="fold")
    for row in rows:
        scores = ["" if row[name] is None else f"{row[name]:.4g}" for name in ("default", "best")]
        spent = [
            str(row["trials"]),
            *([f"{row['evaluations']:.0f}"] if has_evaluations else []),
            f"{row['seconds']:.1f}",
        ]
        texts = [row["solver"], *scores, *spent, row["setting"], *([row["reason"]] if has_reasons else [])]
        table.add_row(*map(rich_text, texts))
    Console().print(table)
