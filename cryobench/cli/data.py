"""`cryobench data`: summaries of data sources, simulation of images into files, conversion, poses, pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cryobench.cli.options import (
    AsStackOption,
    DataRootOption,
    ExecutorOption,
    ForceOption,
    InvertOption,
    LiveOption,
    MemoryLimitOption,
    QuietOption,
    ShardOption,
    SizeOption,
    ThreadsOption,
    TimeLimitOption,
)

data_app = typer.Typer(
    help="Summarise, simulate, convert, export and register data.", no_args_is_help=True, rich_markup_mode=None
)

MovieFormat = Literal["mrcs", "tif"]

DataArgument = Annotated[str, typer.Argument(help="An image file, or a source spec such as demo or simulate:6zu5.")]


@data_app.command("info")
def info(
    data: DataArgument,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet, a PNG.")] = None,
    images: Annotated[str | None, typer.Option(help="Images on the sheet. [default: the first 32]")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Show the clean images on the sheet.")] = False,
    size: SizeOption = None,
    as_stack: AsStackOption = False,
    data_root: DataRootOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Summarise a data source: images, pixel size, statistics, CTF; --sheet draws the images."""
    import dataclasses

    from cryobench.cli.output import note, say
    from cryobench.files import check_writable_file
    from cryobench.io.summary import summarise, summary_lines
    from cryobench.text import json_text

    if sheet is not None:
        check_writable_file(sheet)
    stack = _opened(data, size, as_stack, data_root)
    if sheet is not None:
        note(f"{_write_sheet(stack, images, clean, sheet)} images on {sheet}")
    summary = summarise(stack)
    if as_json:
        say(json_text(dataclasses.asdict(summary), indent=1))
    else:
        lines = summary_lines(summary)
        width = max(map(len, lines))
        for name, value in lines.items():
            say(f"{name:<{width}}  {value}")


@data_app.command("simulate")
def simulate(
    spec: Annotated[
        str,
        typer.Argument(help="Structure and parameters of the source `simulate`, such as 6zu5,snr=0.1,count=1000."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for particles.mrcs and .star, clean.mrcs and .star.")],
    clean: Annotated[bool, typer.Option("--clean/--no-clean", help="Also write the images without noise.")] = True,
    force: ForceOption = False,
) -> None:
    """Simulate particles of a structure; write a stack and a RELION 3.1 star file with CTF, poses and shifts.

    Example: cryobench data simulate 6zu5,snr=0.1,count=1000 --out simulated
    """
    from cryobench.cli.output import note
    from cryobench.errors import ResultsError
    from cryobench.io.conversion import CleanStack, write_together, written_files

    stack = _opened(spec if spec.partition(":")[0] == "simulate" else f"simulate:{spec}", None, False, None)
    stacks = {out / "particles.mrcs": stack} | ({out / "clean.mrcs": CleanStack(stack)} if clean else {})
    existing = [file for path in stacks for file in written_files(path) if file.exists()]
    if existing and not force:
        raise ResultsError(f"{existing[0]} exists; give another --out, or --force to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot create the folder {out}: {error.strerror}; choose another --out") from error
    write_together(stacks)
    for path in stacks:
        note(f"{len(stack)} images in {' and '.join(map(str, written_files(path)))}")


@data_app.command("simulate-movies")
def simulate_movies(
    out: Annotated[Path, typer.Argument(help="Folder for movies, gain reference, truths and star files.")],
    spec: Annotated[
        str, typer.Option(help="Structure and parameters of the source `simulate_movies`, such as 3mht,size=512.")
    ] = "",
    count: Annotated[int | None, typer.Option(help="Number of movies. [default: that of the source]")] = None,
    format: Annotated[MovieFormat, typer.Option(help="Of the movies, both of 16-bit counts.")] = "mrcs",
    force: ForceOption = False,
) -> None:
    """Simulate movies of particles in ice; write raw frames, gain reference, truths and tables of CTF and particles.

    Example: cryobench data simulate-movies simulated --count 4 --spec 3mht,size=512
    """
    from cryobench.cli.output import note
    from cryobench.registry import installed
    from cryobench.sources.movie_files import write_movies
    from cryobench.sources.simulate_movies import SimulateMovies

    texts = [spec.removeprefix("simulate_movies").removeprefix(":"), "" if count is None else f"count={count}"]
    named = ":".join(filter(None, ["simulate_movies", ",".join(filter(None, texts))]))
    source = installed().make("sources", named)
    assert isinstance(source, SimulateMovies)
    stack = source.open()
    tables = write_movies(stack, out, format, force=force, written_one=lambda path: note(str(path)))
    note(f"{len(stack)} movies in {' and '.join(map(str, tables))}")


@data_app.command("convert")
def convert(
    data: DataArgument,
    path: Annotated[Path, typer.Argument(help="Output: .mrcs (with a .star file), .npy, .tif, .ome.tif or .zarr.")],
    images: Annotated[str | None, typer.Option(help="Images to convert, counted from 0. [default: all]")] = None,
    normalize: Annotated[str, typer.Option(help="none, minmax, meanstd, relion or p95, image by image.")] = "none",
    radius: Annotated[float | None, typer.Option(help="Radius of the particle in pixels, for relion.")] = None,
    invert: InvertOption = False,
    size: SizeOption = None,
    as_stack: AsStackOption = False,
    data_root: DataRootOption = None,
    force: ForceOption = False,
) -> None:
    """Convert images to another format, size, contrast or normalisation; CTF, poses and pixel size are kept.

    Example: cryobench data convert particles.cs particles.mrcs --size 128 --normalize relion
    """
    from cryobench.cli.output import note
    from cryobench.errors import ResultsError
    from cryobench.files import check_writable_file
    from cryobench.io.conversion import convert as write
    from cryobench.io.conversion import written_files
    from cryobench.io.formats import FORMATS
    from cryobench.io.selection import parse_images

    for target in written_files(path):
        if not FORMATS[path.suffix.lower()].folder:
            check_writable_file(target)
        if target.exists() and not force:
            raise ResultsError(f"{target} exists; give another name, or --force to replace it")
    stack = _opened(data, size, as_stack, data_root)
    chosen = None if images is None else parse_images(images, len(stack), label=stack.label)
    written = write(stack, path, images=chosen, normalize=normalize, radius=radius, invert=invert)
    count = len(stack) if chosen is None else len(chosen)
    note(f"{count} images in {' and '.join(map(str, written))}")


@data_app.command("poses")
def poses(
    particles: Annotated[Path, typer.Argument(help="Particle table with poses and CTFs: .star or .cs.")],
    out: Annotated[Path, typer.Option(help="Folder for poses.pkl and ctf.pkl.")],
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels, if the table lacks it.")] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Å per pixel, if the table lacks it.")] = None,
    force: ForceOption = False,
) -> None:
    """Write poses and CTFs of particles for cryoDRGN: poses.pkl and ctf.pkl.

    Example: cryobench data poses particles.star --out cryodrgn
    """
    from cryobench.cli.output import note
    from cryobench.errors import ResultsError
    from cryobench.io.cryodrgn import CTF, POSES, drgn_tables, write_drgn_tables

    existing = [out / name for name in (POSES, CTF) if (out / name).exists()]
    if existing and not force:
        raise ResultsError(f"{existing[0]} exists; give another --out, or --force to replace it")
    tables = drgn_tables(particles, size, pixel_size)
    written = write_drgn_tables(tables, out)
    note(f"{len(tables)} particles in {' and '.join(map(str, written))}")


@data_app.command("register")
def register(
    pairs: Annotated[
        str, typer.Argument(help="Folder of CELL/LEVEL/wf_*.tif and gt_*.tif; or, with CLEAN, a file or source of "
                            "noisy images.")
    ],
    clean: Annotated[
        str | None, typer.Argument(help="File or source of a clean image for each noisy one.", show_default=False)
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the registered pairs, in the same layout.")],
    flow: Annotated[
        str, typer.Option(metavar="none|tvl1|ilk|MODULE:FUNCTION", help="Optical flow after the shift. FUNCTION(noisy, "
                          "clean) returns [2, H, W] with clean(p + flow(p)) = noisy(p).")
    ] = "tvl1",
    least: Annotated[float, typer.Option(help="Refuse pairs of a smaller correlation after registration.")] = 0.2,
    largest: Annotated[float, typer.Option(help="Refuse pairs of a larger shift, relative to the side.")] = 0.25,
    reach: Annotated[
        int, typer.Option(help="Largest displacement of the flow, pixels; so many are left out at the borders.")
    ] = 8,
    match: Annotated[
        bool, typer.Option("--match", help="Map the brightness of the clean image to that of the noisy one; float32.")
    ] = False,
    executor: ExecutorOption = "local",
    threads: ThreadsOption = None,
    shard: ShardOption = None,
    time_limit: TimeLimitOption = None,
    memory_limit: MemoryLimitOption = None,
    live: LiveOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Register pairs of a noisy and a clean image: find the shift, warp the clean image, crop what both have.

    Pairs that do not match are listed and not written; the exit code is then 1. The same command continues a folder
    that is incomplete. OUT/register.csv reports what was found of each pair.

    Example: cryobench data register raw --out registered
    """
    from cryobench.cli.chunks import run_task, where_of
    from cryobench.cli.output import note
    from cryobench.measuring.register import RegisterTask

    where = where_of(executor, "cpu", threads, shard, time_limit, memory_limit)
    work = RegisterTask(pairs, clean, str(out), flow, least, largest, reach, match).open()
    work.start(force=force)
    complete = run_task(work.task, work, where, live=live, quiet=quiet)
    if not complete:
        if not quiet:
            note(f"{len(work.todo())} of {work.images} pairs of {out} are missing")
        return
    work.finish()
    refused = [found for found in work.found() if found.refused]
    for found in refused:
        note(f"refused: {found.cell}/{found.level}/{found.name}: {found.refused}")
    if not quiet:
        note(f"{work.images - len(refused)} of {work.images} pairs in {out}: {work.summary}")
    if refused:
        raise typer.Exit(1)


def _opened(data, size: int | None, as_stack: bool, data_root: str | None):
    from cryobench.plan.dataset import data_options, open_stack
    from cryobench.registry import installed

    return open_stack(data, data_options(size=size, as_stack=as_stack, data_root=data_root), installed())


def _write_sheet(stack, images: str | None, clean: bool, path: Path) -> int:
    from cryobench import figures
    from cryobench.io.conversion import CleanStack
    from cryobench.io.selection import parse_images

    chosen = parse_images(images, len(stack), 32, label=stack.label)
    source = CleanStack(stack) if clean else stack
    figures.sheet([source.read(index) for index in chosen], titles=[str(index) for index in chosen],
                  pixel_size=[stack.pixel_size(index) for index in chosen], path=path)  # fmt: skip
    return len(chosen)
