"""`cryobench analyse`: clusters, maps and particles of a saved result of many structures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from cryobench.cli.options import ForceOption, QuietOption


def analyse(
    result: Annotated[Path, typer.Argument(help="A run folder with heterogeneity/, or that folder.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. [default: analysis, in the run folder]", show_default=False)
    ] = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Number of clusters. [default: 6]", show_default=False)]
        = None,
    method: Annotated[
        str, typer.Option(metavar="kmeans|gmm", help="kmeans: k-means++; gmm: a Gaussian mixture.")
    ] = "kmeans",
    components: Annotated[int, typer.Option(help="Principal components along which maps are made.")] = 2,
    points: Annotated[int, typer.Option(help="Maps along each, from the 5th to the 95th percentile.")] = 10,
    umap: Annotated[bool, typer.Option("--umap", help="Also the plane of UMAP. Needs the extra umap.")] = False,
    keep: Annotated[
        str | None, typer.Option(metavar="1,3", help="Also write a table of the particles of these clusters.",
                                 show_default=False)
    ] = None,
    drop: Annotated[
        str | None, typer.Option(metavar="2,5", help="Also write a table of the particles of all other clusters.",
                                 show_default=False)
    ] = None,
    particles: Annotated[
        bool, typer.Option("--particles/--no-particles", help="Write tables of particles, for which their images must "
                           "be there.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of clusters and UMAP.")] = 0,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Group the particles of a result by their latents, and make maps of the groups and along the motion.

    Nothing is solved again. Clusters have maps (.mrc) and particles (.star, .pkl for cryoDRGN, .cs where the data are a
    .cs); index.html shows them. The same clusters are found again with the same seed, so --drop takes the numbers of
    an earlier call.

    Example: cryobench analyse runs/2026-11-27-covariance-project-1f3a9c0b2d4e --k 8 --drop 2,5
    """
    from rich.console import Console
    from rich.table import Table

    from cryobench.analysis.task import AnalysisTask, check_out
    from cryobench.cli.output import note, rich_text
    from cryobench.registry import installed
    from cryobench.results.heterogeneity import read_heterogeneity

    task = AnalysisTask(
        k, cast(Literal["kmeans", "gmm"], method), components, points, umap, seed, keep, drop, particles
    )
    saved = read_heterogeneity(result, installed())
    out = saved.folder.resolve().parent / "analysis" if out is None else out
    check_out(out, force=force)
    finished = task.run(saved, out, installed())
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in finished.lines:
        table.add_row(rich_text(name, "dim"), rich_text(value))
    Console().print(table)
    if not quiet:
        note(f"maps and tables in {out}; open {out / 'index.html'}")
