"""`cryobench denoise`: whole micrographs without their noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryobench.cli.chunks import run_task, where_of
from cryobench.cli.options import (
    DeviceOption,
    DtypeOption,
    ExecutorOption,
    LiveOption,
    MemoryLimitOption,
    PresetsOption,
    QuietOption,
    ShardOption,
    ThreadsOption,
    TimeLimitOption,
    complete,
)


def denoise(
    micrographs: Annotated[
        list[str], typer.Argument(help="Micrographs, such as *.mrc, or specs of sources, with halves or without.")
    ],
    solver: Annotated[
        str, typer.Option("--solver", "-s", help="A solver spec, such as n2n:model=./FOLDER, gaussian or tv.",
                          autocompletion=complete("solvers"))
    ],
    out: Annotated[Path, typer.Option(help="Folder to write NAME.mrc of each micrograph to, or another --format.")],
    halves: Annotated[
        str, typer.Option(metavar="together|average", help="Of micrographs in two halves. together: denoise their "
                          "mean; average: denoise each, and average the results.")
    ] = "together",
    sigma: Annotated[
        float | None, typer.Option(help="Standard deviation of the noise, in the units of the file. [default: "
                                   "estimated from the halves, or from differences of neighbouring pixels]",
                                   show_default=False)
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="mrc|tif|ome.tif|zarr|npy", help="Suffix, and so format, of the files.")
    ] = "mrc",
    seed: Annotated[int, typer.Option(help="Seed of the solver.")] = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    presets: PresetsOption = None,
    executor: ExecutorOption = "local",
    threads: ThreadsOption = None,
    shard: ShardOption = None,
    time_limit: TimeLimitOption = None,
    memory_limit: MemoryLimitOption = None,
    live: LiveOption = False,
    force: Annotated[bool, typer.Option("--force", help="Denoise all of them again.")] = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Denoise whole micrographs. Each is written when it is finished; the same command continues with the others.

    A micrograph is scaled once, by its own mean and standard deviation, and written in its own units. Networks work in
    tiles whose results are those of the whole micrograph, most other solvers in windows that are blended (tiled).

    Example: cryobench denoise micrographs/*.mrc --solver n2n:model=./network --out denoised
    """
    from cryobench.cli.output import note
    from cryobench.measuring.denoise import DenoiseTask
    from cryobench.text import counted

    where = where_of(executor, device, threads, shard, time_limit, memory_limit)
    task = DenoiseTask(tuple(micrographs), solver, str(out), halves, sigma, seed, device, dtype, presets, format)
    work = task.open()
    for text in () if quiet else work.notes():
        note(text)
    work.start(force=force)
    complete = run_task(task, work, where, live=live, quiet=quiet)
    files = work.finish() if complete else []
    if not quiet:
        note(f"{counted(len(files), 'micrograph')} in {out}" if complete else
             f"{len(work.todo())} of {work.images} micrographs of {out} are missing")  # fmt: skip
