"""`cryobench measure` and `cryobench reconstruct`: from images to measurements, and back without the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.chunks import refuse_existing, run_task, where_of
from cryobench.cli.options import (
    AsStackOption,
    DataRootOption,
    DeviceOption,
    DtypeOption,
    ExecutorOption,
    ForceOption,
    InvertOption,
    LiveOption,
    MemoryLimitOption,
    PresetsOption,
    QuietOption,
    ScalingOption,
    ShardOption,
    SizeOption,
    ThreadsOption,
    TimeLimitOption,
    complete,
)

if TYPE_CHECKING:
    from cryobench.measuring.particle_maps import MapTask


def measure(
    operator: Annotated[
        str, typer.Option("--operator", "-o", help="An operator spec, such as sumpool:16.",
                          autocompletion=complete("operators")),
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="An image file or a source spec.")],
    out: Annotated[Path, typer.Option(help="Folder to write the measurements to, or a file if it ends in .npz.")],
    noise: Annotated[
        str, typer.Option("--noise", "-n", help="A noise spec.", autocompletion=complete("noises"))
    ] = "none",
    images: Annotated[str | None, typer.Option(help="Images to measure, counted from 0. [default: all]")] = None,
    scaling: ScalingOption = "minmax",
    normalize: Annotated[str | None, typer.Option(hidden=True)] = None,
    radius: Annotated[
        float | None, typer.Option(help="Radius of the particle in pixels, for relion. [default: that of the data]",
                                   show_default=False)
    ] = None,
    invert: InvertOption = False,
    seed: Annotated[int, typer.Option(help="Seed of masks and noise.")] = 0,
    size: SizeOption = None,
    as_stack: AsStackOption = False,
    data_root: DataRootOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Images in each file of a folder. [default: about 32 MiB of images]",
                                 show_default=False)
    ] = None,
    executor: ExecutorOption = "local",
    threads: ThreadsOption = None,
    shard: ShardOption = None,
    time_limit: TimeLimitOption = None,
    memory_limit: MemoryLimitOption = None,
    live: LiveOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Measure images with an operator. The same command continues a folder that is incomplete.

    Example: cryobench measure -o sumpool:4 -n gaussian:rel=0.05 --data particles.star --out measured
    """
    from cryobench.cli.output import note
    from cryobench.errors import ParameterError
    from cryobench.io.selection import parse_images
    from cryobench.measuring.measure import Acquisition
    from cryobench.measuring.measure import measure as acquire
    from cryobench.measuring.tasks import MeasureTask
    from cryobench.plan.dataset import data_options, open_stack
    from cryobench.registry import installed

    if normalize is not None:
        raise ParameterError(f"--normalize is now called --scaling; give --scaling {normalize}")
    options = data_options(size=size, as_stack=as_stack, data_root=data_root)
    acquisition = Acquisition(operator, noise, scaling, radius, invert, seed, dtype, device)
    if out.suffix != ".npz":
        if out.suffix or out.is_file():
            raise ParameterError(f"--out {out}: give the name of a folder, without a suffix, or of a file .npz")
        where = where_of(executor, device, threads, shard, time_limit, memory_limit)
        task = MeasureTask(acquisition, data, tuple(options.items()), images, str(out), chunk)
        work = task.open()
        work.start(force=force)
        complete = run_task(task, work, where, live=live, quiet=quiet)
        if complete:
            work.finish()
        if not quiet:
            rest = "" if complete else f"; {len(work.todo())} of {len(work.parts)} chunks are missing"
            note(f"{work.images} images in {out}{rest}: {work.summary}")
        return
    if live or (executor, threads, shard, time_limit, memory_limit, chunk) != ("local", None, None, None, None, None):
        raise ParameterError(f"--out {out}: a single file is written by one process; give the name of a folder for "
                             "--executor, --threads, --shard, limits, --chunk and --live")  # fmt: skip
    refuse_existing(force, out)
    stack = open_stack(data, options, installed())
    indices = parse_images(images, len(stack), len(stack), label=stack.label)
    measured = acquire(acquisition, stack, indices, installed())
    measured.save(out)
    M, h, w = measured.y.shape[1:]
    note(f"{len(indices)} images in {out}: y is {M} x {h} x {w} for each, C = {measured.about['compression']:.3g}")


def reconstruct(
    measurements: Annotated[
        Path,
        typer.Argument(
            help="What `measure` wrote, or a .npz with arrays y [B, M, h, w] and masks [M, H, W]; for a map, "
            "a table of particles with poses (.star, .cs)."
        ),
    ],
    solver: Annotated[
        str, typer.Option("--solver", "-s", help="A solver spec, such as dct.", autocompletion=complete("solvers"))
    ],
    out: Annotated[
        Path,
        typer.Option(help="Stack to write, .mrcs; a .star file of the same name is written too. Of a map: folder."),
    ],
    volume: Annotated[
        bool, typer.Option("--volume", help="Reconstruct a map directly from measurements of particles with poses.")
    ] = False,
    symmetry: Annotated[
        str, typer.Option(metavar="C1|C2|D7|T|O|I", help="Point group of a map, with RELION's axes.")
    ] = "C1",
    mask: Annotated[
        Path | None,
        typer.Option(help="MRC map of the mask of a map, from 0 to 1. [default: the largest ball]", show_default=False),
    ] = None,
    radius: Annotated[
        float | None, typer.Option(metavar="Å", help="Radius of a soft ball as the mask of a map.", show_default=False)
    ] = None,
    halves: Annotated[
        bool, typer.Option(help="Of a map, reconstruct each half of the particles too, and their correlation.")
    ] = True,
    ctf: Annotated[bool, typer.Option("--ctf/--no-ctf", help="Of a map, use the CTFs of the particles.")] = True,
    images: Annotated[
        str | None, typer.Option(help="Particles of a map, counted from 0. [default: all]", show_default=False)
    ] = None,
    size: SizeOption = None,
    invert: InvertOption = False,
    data_root: DataRootOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the solver.")] = 0,
    batch: Annotated[
        int | None, typer.Option(help="Images solved at once. [default: 16, more of small images]", show_default=False)
    ] = None,
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
) -> None:
    """Reconstruct images from measurements, or a map from particles.

    Units, CTF, poses and pixel size are those of the measured images. The same command continues a stack that is
    incomplete. If the solver estimates the standard deviation of each pixel, it is written to NAME_deviation.mrcs.

    Particles with poses (a .star or .cs table, or measurements of them with --volume) give a map, two half maps, their
    mask and their Fourier shell correlation. Halves are rlnRandomSubset, else even and odd particles.

    Example: cryobench reconstruct measured --solver dct --out stack.mrcs

    Example: cryobench reconstruct particles.star --solver fourier_inversion --out map
    """
    from cryobench.cli.output import note
    from cryobench.errors import ParameterError
    from cryobench.measuring.particle_maps import TABLES, MapTask
    from cryobench.measuring.tasks import ReconstructTask, unfinished

    if volume or measurements.suffix.lower() in TABLES:
        of_stacks = {"--batch": batch, "--threads": threads, "--shard": shard, "--time-limit": time_limit,
                     "--memory-limit": memory_limit, "--live": live, "--executor": executor != "local"}  # fmt: skip
        wrong = [name for name, value in of_stacks.items() if value]
        if wrong:
            raise ParameterError(f"{wrong[0]} does not apply to a map, which one process makes; leave it out")
        task = MapTask(measurements, solver, symmetry, mask, radius, size, invert, images, data_root, ctf, halves, seed,
                       device, dtype, presets)  # fmt: skip
        _reconstruct_map(task, out, force=force, quiet=quiet)
        return
    of_maps = {"--symmetry": symmetry != "C1", "--mask": mask, "--radius": radius, "--no-halves": not halves,
               "--no-ctf": not ctf, "--images": images, "--size": size, "--invert": invert,
               "--data-root": data_root}  # fmt: skip
    wrong = [name for name, value in of_maps.items() if value]
    if wrong:
        raise ParameterError(f"{wrong[0]} is for maps; give a table of particles (.star, .cs), or --volume for one of "
                             "measured particles")  # fmt: skip

    if out.suffix != ".mrcs":
        raise ParameterError(f"--out {out}: images are written as .mrcs; give a name that ends in .mrcs")
    refuse_existing(force or unfinished(out), out, out.with_suffix(".star"))
    where = where_of(executor, device, threads, shard, time_limit, memory_limit)
    task = ReconstructTask(str(measurements), solver, str(out), seed, batch, device, dtype, presets)
    work = task.open()
    for text in () if quiet else work.notes():
        note(text)
    work.start(force=force)
    complete = run_task(task, work, where, live=live, quiet=quiet)
    files = work.finish() if complete else []
    if not quiet:
        note(f"{work.images} images in {' and '.join(map(str, files))}" if complete else
             f"{len(work.todo())} of {len(work.parts)} chunks of {out} are missing")  # fmt: skip


def _reconstruct_map(task: MapTask, out: Path, *, force: bool, quiet: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from cryobench.cli.output import note, rich_text
    from cryobench.errors import ParameterError
    from cryobench.measuring.particle_maps import NAMES
    from cryobench.measuring.postprocess import check_folder

    if out.suffix:
        raise ParameterError(f"--out {out}: a map is written with its halves to a folder; give a name without a suffix")
    check_folder(out, force=force, names=NAMES)
    work = task.open()
    for text in () if quiet else work.notes():
        note(text)
    finished = work.run()
    finished.write(out)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in finished.lines():
        table.add_row(rich_text(name, "dim"), rich_text(value))
    if finished.lines():
        Console().print(table)
    if not quiet:
        note(f"{finished.about['particles']} particles in {out}")
