"""Options and completions that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

ByOption = Annotated[
    str | None, typer.Option("--by", help="Column that ranks the solvers. [default: psnr, or the first metric]",
                             show_default=False)
]  # fmt: skip
FormatOption = Annotated[
    list[str] | None,
    typer.Option("--format", metavar="NAME[=FILE]", help="Print the table as rich (default), csv, md, html, json or "
                 "latex; with =FILE, write it there, and png=FILE a figure. Repeat for more.", show_default=False),
]  # fmt: skip
CsvOption = Annotated[
    Path | None, typer.Option("--csv", help="Write the table as CSV, one row per cell; '-' for stdout.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the table as JSON.")]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", metavar="NAME,...", help="Columns to show in the terminal, if they fit; "
                             "globs. [default: all that fit]", show_default=False)
]  # fmt: skip
WideOption = Annotated[bool, typer.Option("--wide", help="Show all columns, however wide the terminal is.")]

SizeOption = Annotated[
    int | None, typer.Option(help="Fourier-crop the images to this many pixels per side, or pad their spectrum.")
]
AsStackOption = Annotated[bool, typer.Option("--as-stack", help="Read a bare .mrc volume as a stack of images.")]
DataRootOption = Annotated[str | None, typer.Option(help="Folder to which image references in a table are relative.")]
ScalingOption = Annotated[
    str, typer.Option(metavar="minmax|none|meanstd|p95|relion", help="Scaling of the intensities of each image. "
                      "minmax: to [-1, 1]; none: unchanged; meanstd: to mean 0 and standard deviation 1; p95: to 1 at "
                      "the 95th percentile; relion: to mean 0 and standard deviation 1 outside the particle.")
]  # fmt: skip
HalvesOption = Annotated[
    str, typer.Option(metavar="first|average", help="What solvers are given of two halves of each image. first: the "
                      "first; average: each, and the results are averaged.")
]  # fmt: skip
ProtocolOption = Annotated[
    str | None, typer.Option(metavar="halves|p95", show_default=False, help="For images in two halves. halves: errors "
                             "estimated from the other half; p95: the published protocol. States noise, scaling, "
                             "metrics and --by where they are not given.")
]  # fmt: skip
InvertOption = Annotated[bool, typer.Option("--invert", help="Invert the contrast of the images.")]
WithinOption = Annotated[
    str, typer.Option(metavar="image|circle|circle:Å", help="Region of the metrics. circle: the circle of the "
                      "particle if the data state its radius, else the largest in the image; circle:75: radius in Å.")
]  # fmt: skip
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")]
DtypeOption = Annotated[str, typer.Option(help="float32 or float64.")]
LiveOption = Annotated[
    bool, typer.Option("--live", help="Show a dashboard on a terminal: images done, speed, time left and workers.")
]
BatchOption = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Images solved at once, halved when memory runs out. auto: at most 1024 on CUDA, 16 on a CPU.",
    ),
]
PresetsOption = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Folder of the presets of tuned solvers (dct@NAME). [default: "
                             "$CRYOBENCH_PRESETS, or presets]", show_default=False)
]  # fmt: skip
ExecutorOption = Annotated[
    str, typer.Option("--executor", "-e", metavar="WHERE", help="local; processes[:N], one per GPU or core; dask[:N], "
                      "dask://HOST:PORT; slurm:FILE.yaml.")
]  # fmt: skip
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of each worker. [default: the cores divided among the workers]",
                             show_default=False)
]  # fmt: skip
ShardOption = Annotated[
    str | None, typer.Option(metavar="K/N", help="Run shard K of N only, for machines that share only a folder.")
]
MemoryLimitOption = Annotated[
    str | None, typer.Option(metavar="500M|8G", help="Stop a cell or chunk whose process uses more host memory.")
]
TimeLimitOption = Annotated[
    str | None, typer.Option(metavar="90|10m|2h", help="Stop a cell or chunk that takes longer.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no notes.")]


def listed(text: str | None) -> list[str]:
    """The parts of `A,B,...`."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def complete(kind: str) -> Callable[[str], list[str]]:
    """Shell completion with the registered names of a kind; imports no plugin."""

    def names(incomplete: str) -> list[str]:
        from cryobench.registry import installed

        return [name for name in installed().names(kind) if name.startswith(incomplete)]

    return names
