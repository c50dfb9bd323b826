"""`cryobench movies`: from the movies of a detector to micrographs in two halves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryobench.cli.chunks import run_task, where_of
from cryobench.cli.options import (
    ExecutorOption,
    ForceOption,
    LiveOption,
    MemoryLimitOption,
    QuietOption,
    ShardOption,
    ThreadsOption,
    TimeLimitOption,
)

movies_app = typer.Typer(help="Sum the frames of movies.", no_args_is_help=True, rich_markup_mode=None)


@movies_app.callback()
def _group() -> None: ...


@movies_app.command("sum")
def sum_movies(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN...", help="Movies (.mrc, .mrcs, .tif, .tiff, .eer), folders of them, or "
                                  "patterns in quotes."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write a pair of halves for each movie to.")],
    gain: Annotated[str | None, typer.Option(help="Gain reference: .mrc, .tif or .gain.")] = None,
    gain_mode: Annotated[
        str, typer.Option(metavar="auto|multiply|divide", help="auto: divide EER movies and by .gain files, multiply "
                          "others.")
    ] = "auto",
    rotate: Annotated[
        int, typer.Option(metavar="0|90|180|270", help="Degrees to turn the gain reference anticlockwise.")
    ] = 0,
    flip: Annotated[
        str, typer.Option(metavar="none|ud|lr", help="Then reverse the rows (ud) or columns (lr) of it.")
    ] = "none",
    defects: Annotated[
        str | None, typer.Option(help="Bad pixels: lines `x y width height`, or an image that is not zero there.")
    ] = None,
    hot: Annotated[
        float, typer.Option(help="Standard deviations from which a pixel of the sum of all frames is hot or dead; 0: "
                            "none is.")
    ] = 6.0,
    group: Annotated[int, typer.Option(help="Frames that are summed to one first, for EER.")] = 1,
    bin: Annotated[float, typer.Option("--bin", help="Binning by cropping in Fourier space.")] = 1.0,
    align: Annotated[bool, typer.Option("--align", help="Align the frames rigidly.")] = False,
    weight: Annotated[bool, typer.Option("--weight", help="Weight frames by exposure; needs --dose.")] = False,
    dose: Annotated[float | None, typer.Option(help="e/Å² of a frame, after --group.")] = None,
    pre_dose: Annotated[float, typer.Option(help="e/Å² before the first frame.")] = 0.0,
    voltage: Annotated[int, typer.Option(help="kV, 300 or 200, for the exposure weights.")] = 300,
    pixel_size: Annotated[
        float | None, typer.Option(help="Å per pixel of a frame as stored. [default: that of the file]",
                                   show_default=False)
    ] = None,
    executor: ExecutorOption = "local",
    threads: ThreadsOption = None,
    shard: ShardOption = None,
    time_limit: TimeLimitOption = None,
    memory_limit: MemoryLimitOption = None,
    force: ForceOption = False,
    live: LiveOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Sum the odd and the even frames of each movie; write both halves to a folder, a source of --data and of `train`.

    The same command continues a folder that is incomplete, or adds movies.

    Example: cryobench movies sum "movies/*.tif" --gain gain.mrc --dose 1.2 --out pairs
    """
    given = locals()
    from dataclasses import fields

    from cryobench.cli.output import note
    from cryobench.io.movies.settings import MovieSettings
    from cryobench.movies.task import SumTask

    settings = MovieSettings(**{field.name: given[field.name] for field in fields(MovieSettings)})
    where = where_of(executor, "cpu", threads, shard, time_limit, memory_limit)
    work = SumTask(tuple(inputs), settings, str(out)).open()
    work.start(force=force)
    complete = run_task(work.task, work, where, live=live, quiet=quiet)
    if complete:
        work.finish()
    if not quiet:
        rest = "" if complete else f"; {len(work.todo())} are missing"
        note(f"{work.images} micrograph{'s' if work.images > 1 else ''} in {out}{rest}")
