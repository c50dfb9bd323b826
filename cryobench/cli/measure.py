"""`cryobench measure` and `cryobench reconstruct`: from images to measurements, and back without the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryobench.cli.options import (
    AsStackOption,
    DataRootOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    InvertOption,
    PresetsOption,
    QuietOption,
    ScalingOption,
    SizeOption,
    complete,
)


def measure(
    operator: Annotated[
        str, typer.Option("--operator", "-o", help="An operator spec, such as sumpool:16.",
                          autocompletion=complete("operators")),
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="An image file or a source spec.")],
    out: Annotated[Path, typer.Option(help="File of measurements to write, .npz.")],
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
    force: ForceOption = False,
) -> None:  # fmt: skip
    """Measure images with an operator and write the measurements to one file.

    Example: cryobench measure -o sumpool:4 -n gaussian:rel=0.05 --data particles.star --out y.npz
    """
    from cryobench.cli.output import note
    from cryobench.errors import ParameterError
    from cryobench.io.selection import parse_images
    from cryobench.measuring.measure import Acquisition
    from cryobench.measuring.measure import measure as acquire
    from cryobench.plan.dataset import data_options, open_stack
    from cryobench.registry import installed

    if normalize is not None:
        raise ParameterError(f"--normalize is now called --scaling; give --scaling {normalize}")
    if out.suffix != ".npz":
        raise ParameterError(f"--out {out}: measurements are written as .npz; give a name that ends in .npz")
    _refuse_existing(force, out)
    stack = open_stack(data, data_options(size=size, as_stack=as_stack, data_root=data_root), installed())
    indices = parse_images(images, len(stack), len(stack), label=stack.label)
    acquisition = Acquisition(operator, noise, scaling, radius, invert, seed, dtype, device)
    measured = acquire(acquisition, stack, indices, installed())
    measured.save(out)
    M, h, w = measured.y.shape[1:]
    note(f"{len(indices)} images in {out}: y is {M} x {h} x {w} for each, C = {measured.about['compression']:.3g}")


def reconstruct(
    measurements: Annotated[
        Path,
        typer.Argument(help="File written by `measure`, or a .npz with arrays y [B, M, h, w] and masks [M, H, W]."),
    ],
    solver: Annotated[
        str, typer.Option("--solver", "-s", help="A solver spec, such as dct.", autocompletion=complete("solvers"))
    ],
    out: Annotated[Path, typer.Option(help="Stack to write, .mrcs; a .star file of the same name is written too.")],
    seed: Annotated[int, typer.Option(help="Seed of the solver.")] = 0,
    batch: Annotated[int, typer.Option(help="Images solved at once.")] = 16,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    presets: PresetsOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reconstruct images from measurements. Units, CTF, poses and pixel size are those of the measured images.

    Example: cryobench reconstruct y.npz --solver dct --out stack.mrcs
    """
    from cryobench.cli.output import note
    from cryobench.cli.progress import counted
    from cryobench.core.kinds import check_kind
    from cryobench.errors import ParameterError
    from cryobench.io.writing import fill_particles, written
    from cryobench.measuring.measurements import load
    from cryobench.measuring.reconstruct import reconstruct as solve
    from cryobench.plan.grid import prior_notes
    from cryobench.plan.presets import choose, presets_folder
    from cryobench.registry import installed

    if out.suffix != ".mrcs":
        raise ParameterError(f"--out {out}: images are written as .mrcs; give a name that ends in .mrcs")
    star = out.with_suffix(".star")
    _refuse_existing(force, out, star)
    measured = load(measurements)
    method = choose(solver, installed(), presets_folder(presets)).solver
    check_kind("solvers", solver, method)
    for text in () if quiet else prior_notes([method]):
        note(text)
    images = len(measured.y)
    with written(out, star) as files, counted("images", images, quiet) as progress:
        chunks = solve(measured, method, installed(), seed=seed, dtype=dtype, device=device, batch=batch,
                       progress=lambda fraction: progress(round(fraction * images), images))  # fmt: skip
        sizes = None if None in measured.pixel_size else [size for size in measured.pixel_size if size is not None]
        fill_particles(files, out, chunks, measured.table, sizes, measured.image_shape[1], images)
    if not quiet:
        note(f"{len(measured.y)} images in {out} and {star}")


def _refuse_existing(force: bool, *paths: Path) -> None:
    from cryobench.errors import ResultsError
    from cryobench.files import check_writable_file

    for path in paths:
        check_writable_file(path)
        if path.exists() and not force:
            raise ResultsError(f"{path} exists already; give another --out, or --force to replace it")
