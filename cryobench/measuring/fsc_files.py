"""What is written and said of the correlations of half maps: fsc.csv, fsc.png and the resolution by each curve."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from cryobench import figures
from cryobench.maps.fsc import HALF_MAPS, Curve, HalfMapFsc
from cryobench.metrics.rings import ring_frequencies
from cryobench.results.tables import csv_line

_WITH_RESOLUTION: tuple[Curve, ...] = ("unmasked", "masked", "corrected")


def write_curves(folder: Path, fsc: HalfMapFsc, reference: torch.Tensor | None = None) -> None:
    """Write fsc.csv and fsc.png. reference: a further curve of this name, [D // 2].

    The table has a line for each shell: its frequency in 1/Å, the length in Å (1/pixel and pixels without a pixel
    size), and the curves, empty where they are not known.
    """
    curves = {name: getattr(fsc, name).numpy() for name in ("unmasked", "masked", "randomised", "corrected")}
    if reference is not None:
        curves["reference"] = reference.numpy()
    frequency = fsc.frequency.numpy()
    columns = np.stack([frequency, 1 / frequency, *curves.values()], axis=1)
    rows = [["" if math.isnan(value) else f"{value:.6g}" for value in row] for row in columns]
    lines = [["frequency", "resolution", *curves], *rows]
    (folder / "fsc.csv").write_text("".join(map(csv_line, lines)), encoding="utf-8")
    in_cycles_per_pixel = ring_frequencies((fsc.side,) * 3).numpy()
    figures.half_map_correlations(curves, in_cycles_per_pixel, pixel_size=fsc.pixel_size, path=folder / "fsc.png")


def resolutions(fsc: HalfMapFsc) -> dict[str, float]:
    """The resolution at `HALF_MAPS` by each curve, Å, or pixels without a pixel size."""
    return {curve: fsc.resolution(HALF_MAPS, curve) for curve in _WITH_RESOLUTION}


def resolution_lines(fsc: HalfMapFsc) -> list[tuple[str, str]]:
    """`resolutions` in words: names and values."""
    unit = "Å" if fsc.pixel_size else "pixels"
    return [(f"{curve}, FSC = {HALF_MAPS}", f"{found:.2f} {unit}") for curve, found in resolutions(fsc).items()]
