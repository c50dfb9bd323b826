"""`cryobench postprocess`: the resolution of two half maps, and one map of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryobench.cli.options import ForceOption, QuietOption


def postprocess(
    half1: Annotated[Path, typer.Argument(help="MRC map of one half of the particles, unfiltered.")],
    half2: Annotated[Path, typer.Argument(help="MRC map of the other half.")],
    out: Annotated[Path, typer.Option(help="Folder for fsc.csv, fsc.png, mask.mrc, map.mrc and map_masked.mrc.")],
    mask: Annotated[
        Path | None, typer.Option(help="MRC map of the mask, values from 0 to 1. [default: made of the map itself]",
                                  show_default=False)
    ] = None,
    radius: Annotated[
        float | None, typer.Option(metavar="Å", help="Radius of a soft ball as the mask.", show_default=False)
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(metavar="Å", help="Å per voxel. [default: that of the files]", show_default=False)
    ] = None,
    b_factor: Annotated[
        str, typer.Option(metavar="auto|Å²", help="B-factor of the sharpening, negative to sharpen, 0 for none. auto: "
                          "fitted from 10 Å to the resolution.")
    ] = "auto",
    reference: Annotated[
        Path | None, typer.Option(help="MRC map that is the truth, to compare with at 0.5.", show_default=False)
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Also write local.mrc, the resolution from place to place.")]
        = False,
    seed: Annotated[int, typer.Option(help="Seed of the random phases.")] = 0,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """State the resolution of two half maps, and write their mean, sharpened and filtered.

    The Fourier shell correlation is computed without and with the mask, and corrected for the mask by random phases.
    Maps have the voxel size and the place of the first half map.

    Example: cryobench postprocess half1.mrc half2.mrc --radius 90 --out postprocessed
    """
    from rich.console import Console
    from rich.table import Table

    from cryobench.cli.output import note, rich_text
    from cryobench.errors import ParameterError
    from cryobench.measuring.postprocess import PostprocessTask, check_folder

    try:
        given = None if b_factor == "auto" else float(b_factor)
    except ValueError:
        raise ParameterError(f"--b-factor: expected auto or a number, got {b_factor!r}") from None
    task = PostprocessTask(half1, half2, mask, radius, pixel_size, given, reference, local, seed)
    check_folder(out, force=force)
    finished = task.run(out)
    if finished.made.reason and not quiet:
        note(finished.made.reason)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in finished.lines():
        table.add_row(rich_text(name, "dim"), rich_text(value))
    Console().print(table)
    if not quiet:
        note(f"maps and curves in {out}")
