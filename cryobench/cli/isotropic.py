"""`cryobench isotropic`: an anisotropic volume with sections between its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryobench.cli.chunks import refuse_existing, run_task, where_of
from cryobench.cli.options import (
    DeviceOption,
    DtypeOption,
    ExecutorOption,
    ForceOption,
    LiveOption,
    MemoryLimitOption,
    PresetsOption,
    QuietOption,
    ShardOption,
    ThreadsOption,
    TimeLimitOption,
    complete,
)


def isotropic(
    volume: Annotated[
        str, typer.Argument(help="MRC, TIFF, .npy or OME-Zarr volume, or volume:FOLDER,sections=true.")
    ],
    factor: Annotated[
        int, typer.Option("--factor", "-f", help="Distance of the sections in sections of the result: factor - 1 are "
                          "written between neighbours.")
    ],
    solver: Annotated[
        str, typer.Option("--solver", "-s", help="A spec of a solver that fills gaps, such as flow or interpolate.",
                          autocompletion=complete("solvers"))
    ],
    out: Annotated[Path, typer.Option(help="Volume to write, .mrc, .tif, .ome.tif or .zarr (OME-Zarr).")],
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
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Fill the gaps between the sections of a volume.

    One gap is read, filled and written at a time; the sections of the volume are kept as they are. The same command
    continues a volume that is incomplete. If the solver estimates the standard deviation of each voxel, it is written
    to NAME_deviation.mrc (.tif, .zarr).

    Example: cryobench isotropic cell.tif --factor 4 --solver flow --out isotropic.ome.tif
    """
    from cryobench.cli.output import note
    from cryobench.measuring.isotropic import IsotropicTask, unfinished
    from cryobench.measuring.tasks import deviation_path

    where = where_of(executor, device, threads, shard, time_limit, memory_limit)
    task = IsotropicTask(volume, factor, solver, str(out), seed, device, dtype, presets)
    work = task.open()
    refuse_existing(force or unfinished(out), out, deviation_path(out), folders=work.folder)
    for text in () if quiet else work.notes():
        note(text)
    work.start(force=force)
    complete = run_task(task, work, where, live=live, quiet=quiet)
    files = work.finish() if complete else []
    if not quiet:
        size = " x ".join(map(str, work.shape))
        note(f"{size} voxels in {' and '.join(map(str, files))}" if complete else
             f"{len(work.todo())} of {len(work.parts)} gaps of {out} are missing")  # fmt: skip
