"""`cryobench run`: runs solvers on operators and prints a leaderboard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cryobench.cli.options import (
    AsStackOption,
    BatchOption,
    ByOption,
    ColumnsOption,
    CsvOption,
    DataRootOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    HalvesOption,
    InvertOption,
    JsonOption,
    PresetsOption,
    ProtocolOption,
    QuietOption,
    ScalingOption,
    SizeOption,
    WideOption,
    WithinOption,
    complete,
    listed,
)


def run(
    solver: Annotated[
        list[str] | None,
        typer.Option("--solver", "-s", help="A solver spec, such as dct or dct:0.1. Repeat for more.",
                     autocompletion=complete("solvers")),
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option("--operator", "-o", help="An operator spec, such as sumpool:16 or fourier:0.5. Repeat for more.",
                     autocompletion=complete("operators")),
    ] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option("--noise", "-n", help="A noise spec, such as gaussian:rel=0.05. Repeat for more. [default: none]",
                     autocompletion=complete("noises"), show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="An image file (.mrc .mrcs .star .cs .pt .npy) or a source spec. Repeat "
                     "for more. [default: demo]", show_default=False),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Images to use, counted from 0, such as 0:8 or 3,7,9. [default: the first 4]",
                                 show_default=False)
    ] = None,
    size: SizeOption = None,
    as_stack: AsStackOption = False,
    data_root: DataRootOption = None,
    invert: InvertOption = False,
    scaling: ScalingOption = "minmax",
    halves: HalvesOption = "first",
    protocol: ProtocolOption = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", help="A metric spec. Repeat for more. [default: the fast ones]",
                     autocompletion=complete("metrics"), show_default=False),
    ] = None,
    within: WithinOption = "image",
    by: ByOption = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of masks, noise and solvers. Repeat for more. [default: 0]", show_default=False),
    ] = None,
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="Add the floor of the operator to every table, pinv for most.")
    ] = True,
    ceiling: Annotated[
        bool, typer.Option("--ceiling", help="Add the best expected PSNR for exact measurements of simulated images.")
    ] = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    batch: BatchOption = "auto",
    out: Annotated[Path, typer.Option(help="Results folder. Finished cells in it are reused.")] = Path("runs"),
    save: Annotated[
        list[str] | None,
        typer.Option(help="Also save reconstructions (.mrcs, and their deviation if the solver estimates it), the same "
                     "as tif, ome.tif or zarr (images or one volume), maps (.mrc, with --metric map), figures, or a "
                     "single figure: panel, errors, frc (.png), views (.npz, for the HTML page) or animation (.gif, of "
                     "the first image). Repeat for more.", show_default=False),
    ] = None,
    presets: PresetsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished cells again.")] = False,
    formats: FormatOption = None,
    csv: CsvOption = None,
    as_json: JsonOption = False,
    columns: ColumnsOption = None,
    wide: WideOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Run every solver on every operator and print a leaderboard.

    Example: cryobench run -s dct -o sumpool:16 -o fourier:0.5 --data particles.star --images 0:8
    """
    from cryobench import runner
    from cryobench.cli.output import check_outputs, note, show, stdout_for_results
    from cryobench.cli.progress import ProgressObserver
    from cryobench.cli.running import collect, next_step, ranked_by
    from cryobench.hooks import Hooks
    from cryobench.leaderboard.filter import check_columns
    from cryobench.leaderboard.table import leaderboard
    from cryobench.plan import grid
    from cryobench.plan.dataset import data_options
    from cryobench.registry import installed
    from cryobench.results.store import Results

    request = grid.Request(
        solvers=solver or (),
        operators=operator or (),
        noises=noise or ("none",),
        data=data or ("demo",),
        data_options=data_options(size=size, as_stack=as_stack, data_root=data_root, invert=invert),
        metrics=metric or grid.DEFAULT_METRICS,
        within=within,
        images=images,
        scaling=scaling,
        halves=halves,
        protocol=protocol,
        seeds=tuple(dict.fromkeys(seed or (0,))),
        dtype=dtype,
        device=device,
        batch=batch,
        floor=floor,
        ceiling=ceiling,
        save=save or (),
        presets=presets,
    )  # fmt: skip
    with stdout_for_results():
        plan = grid.plan(request, installed())
    by = ranked_by(by, [plan])
    check_columns(listed(columns), list(plan.metric_columns))
    for text in () if quiet else plan.notes:
        note(text)
    outputs = check_outputs(csv, as_json, formats or (), listed(columns), wide)
    outputs = replace(outputs, requested=tuple(plan.metric_columns) if metric else ())
    store = Results(out)
    store.check_writable()
    with stdout_for_results():
        hooks = Hooks(lambda message: note(f"warning: {message}")).load_installed()
    with ProgressObserver(len(plan.cells), quiet) as observer:
        records = collect(runner.run(plan, hooks, store=store, force=force, observer=observer), len(plan.cells), store)
    frame = leaderboard(records, by=by)
    show(frame, outputs, records, store.find)
    if not quiet:
        note(observer.summary(store.given))
        if advice := next_step(frame, outputs, store.given, min(cell.dataset.available for cell in plan.cells)):
            note(f"next: {advice}")
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)
