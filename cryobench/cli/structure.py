"""`cryobench structure`: what the images of each solver are worth as a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.options import (
    BatchOption,
    DataRootOption,
    DeviceOption,
    DtypeOption,
    InvertOption,
    PresetsOption,
    QuietOption,
    ScalingOption,
    SizeOption,
    complete,
)

if TYPE_CHECKING:
    import pandas as pd

    from cryobench.leaderboard.structure import Part
    from cryobench.record import Record
    from cryobench.results.store import Results


def structure(
    solver: Annotated[
        list[str],
        typer.Option("--solver", "-s", help="A solver spec, such as hqs, or direct (volumes from the measurements). "
                     "Repeat for more.", autocompletion=complete("solvers")),
    ],
    operator: Annotated[
        list[str],
        typer.Option("--operator", "-o", help="An operator of images, such as sumpool:4,count=4. Repeat for more.",
                     autocompletion=complete("operators")),
    ],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Particles of one structure with known poses: simulate:..., or a table "
                          "(.star, .cs) of a refinement."),
    ],
    noise: Annotated[
        list[str] | None, typer.Option("--noise", "-n", help="A noise spec. Repeat for more. [default: none]",
                                       show_default=False)
    ] = None,
    particles: Annotated[
        list[int] | None,
        typer.Option("--particles", "-p", min=4, help="Number of particles, the first ones. Repeat for a curve. "
                     "[default: all]", show_default=False),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", metavar="noise|STRUCTURE", help="Controls of simulated particles, on as many images: "
                     "noise alone, or another structure. Repeat for both. [default: noise]", show_default=False),
    ] = None,
    controls: Annotated[bool, typer.Option("--controls/--no-controls", help="Run the controls.")] = True,
    full: Annotated[
        bool, typer.Option("--full/--no-full", help="Add the map of all pixels of the particles as a reference.")
    ] = True,
    size: SizeOption = None,
    data_root: DataRootOption = None,
    invert: InvertOption = False,
    scaling: ScalingOption = "minmax",
    seed: Annotated[int, typer.Option(help="Seed of masks, noise and solvers.")] = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    batch: BatchOption = "auto",
    out: Annotated[Path, typer.Option(help="Results folder. Finished cells in it are reused.")] = Path("runs"),
    save: Annotated[
        list[str] | None, typer.Option(help="Also save maps (with half maps and mask, .mrc), reconstructions or others "
                                       "of `run`. Repeat for more.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="New folder for the table and the curves; --force replaces it.")
    ] = None,
    presets: PresetsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished cells again.")] = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Compare the maps that the images of each solver give, with their controls, beside the errors of the images.

    Every solver reconstructs all particles; their images give a map with the known poses. The control on noise alone
    shows what the solver makes of nothing: a map whose halves agree is the prior's. Cells are those of `cryobench run
    --metric map` and are found again in the results folder.

    Example: cryobench structure -s pinv -s tv -s direct -o sumpool:4,count=4 -d simulate:6zu5,size=64,count=1000
    """
    from cryobench import runner
    from cryobench.cli.output import note, stdout_for_results
    from cryobench.cli.progress import ProgressObserver
    from cryobench.cli.running import collect
    from cryobench.hooks import Hooks
    from cryobench.leaderboard.structure import Part, structure_table
    from cryobench.measuring.postprocess import check_folder
    from cryobench.plan import grid
    from cryobench.plan.dataset import data_options
    from cryobench.plan.structure import StructureRequest, plans
    from cryobench.registry import installed
    from cryobench.results.store import Results

    base = grid.Request(
        solvers=solver, operators=operator, noises=noise or ("none",), data=(data,), metrics=("psnr", "map"),
        data_options=data_options(size=size, data_root=data_root, invert=invert),
        scaling=scaling, seeds=(seed,), dtype=dtype, device=device, batch=batch, save=save or (), presets=presets,
    )  # fmt: skip
    wanted = tuple(dict.fromkeys(control if control is not None else ("noise",))) if controls else ()
    request = StructureRequest(base, tuple(sorted(set(particles or ()))), wanted, stated=control is not None, full=full)
    if report is not None:
        check_folder(report, force=force, names=_report_names())
    with stdout_for_results():
        planned, remarks = plans(request, installed())
    store = Results(out)
    store.check_writable()
    for text in () if quiet else dict.fromkeys([*remarks, *(text for own in planned for text in own.plan.notes)]):
        note(text)
    with stdout_for_results():
        hooks = Hooks(lambda message: note(f"warning: {message}")).load_installed()
    cells, parts = sum(len(own.plan.cells) for own in planned), []

    def every() -> Iterator[Record]:
        for own in planned:
            for record in runner.run(own.plan, hooks, store=store, force=force, observer=observer):
                parts.append(Part(own.part, record))
                yield record

    with ProgressObserver(cells, quiet) as observer:
        records = collect(every(), cells, store)
    frame = structure_table(parts)
    _print(frame, records[0].data)
    if report is not None:
        _write(frame, parts, report, records[0].data, store)
    if not quiet:
        note(observer.summary(store.given) + (f"; table and curves in {report}" if report is not None else ""))
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def _report_names() -> list[str]:
    """The names that files of a report may have."""
    figures = [f"{name}_{number}.png" for name in ("fsc", "particles") for number in range(1, 1000)]
    return ["structure.csv", "structure.md", *figures]


def _print(frame: pd.DataFrame, data: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from cryobench.cli.output import rich_text
    from cryobench.leaderboard.structure import MEANING, heading, problems, shown, texts

    console = Console()
    names = shown(frame)
    for key, own in problems(frame):
        title = rich_text(f"{heading(key)} · {data}")
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("solver", overflow="fold")
        for name in names:
            table.add_column(rich_text(name.replace("_", " ")), justify="right", no_wrap=False)
        for solver, cells in zip(own["solver"], texts(own, names), strict=True):
            style = "bold" if cells[0] == "1" else ""
            table.add_row(*(rich_text(text, style) for text in (solver, *cells)))
        console.print(table)
        for reason in dict.fromkeys(own["reason"]):
            solvers = own["solver"][own["reason"] == reason]
            if reason:
                console.print(rich_text(f"{', '.join(solvers)}: {reason}"))
    for name in names:
        console.print(rich_text(f"{name.replace('_', ' ')}: {MEANING[name]}", "dim"))


def _write(frame: pd.DataFrame, parts: Sequence[Part], folder: Path, data: str, store: Results) -> None:
    """The table as CSV and Markdown, and figures of the curves of each of its problems."""
    from cryobench.figures.curves import resolution_by_particles, structure_correlations
    from cryobench.io.writing import written_folder
    from cryobench.leaderboard.structure import by_particles, curves_of, heading, markdown
    from cryobench.results.tables import to_csv

    with written_folder(folder) as temporary:
        (temporary / "structure.csv").write_text(to_csv(frame), encoding="utf-8")
        (temporary / "structure.md").write_text(markdown(frame, data), encoding="utf-8")
        for number, (key, own) in enumerate(curves_of(parts, store).items(), 1):
            structure_correlations(own.curves, own.frequency, title=heading(key), path=temporary / f"fsc_{number}.png")
        for number, ((operator, noise, seed), lines) in enumerate(by_particles(frame).items(), 1):
            title = f"{operator} · noise {noise} · seed {seed}"
            resolution_by_particles(lines, title=title, path=temporary / f"particles_{number}.png")
