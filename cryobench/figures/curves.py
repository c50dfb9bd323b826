"""Curves of Fourier ring and shell correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from cryobench.errors import ParameterError
from cryobench.figures.style import (
    BLUE,
    GREEN,
    GREY,
    LINES,
    ORANGE,
    SKY,
    VERMILION,
    figure_axes,
    pixel_sizes,
    save,
)

AGAINST_TRUTH, HALF_MAPS = 1 / 2, 1 / 7
"""Thresholds: against a truth, and between half maps."""
MAX_LINES = 64
_LINES: dict[str, dict[str, Any]] = {
    "unmasked": {"color": GREY, "linewidth": 1.2},
    "masked": {"color": SKY, "linewidth": 1.2, "linestyle": (0, (6, 2))},
    "randomised": {"color": ORANGE, "linewidth": 1.2, "linestyle": (0, (3, 1, 1, 1))},
    "corrected": {"color": BLUE, "linewidth": 2.2},
    "reference": {"color": GREEN, "linewidth": 1.5, "linestyle": (0, (8, 2, 1, 2))},
}
_LABELS = {"randomised": "masked, phases randomised", "corrected": "corrected for the mask",
           "reference": "with the reference"}  # fmt: skip


def ring_correlations(
    curves: np.ndarray,
    frequency: np.ndarray,
    *,
    pixel_size: float | Sequence[float | None] | None = None,
    shells: bool = False,
    path: str | Path,
) -> None:
    """Write a PNG of Fourier ring correlations with the truth: thin lines for images, a thick line for their mean.

    curves: [B, L]; the first 64 are drawn, the mean is over all. frequency: [L] in cycles per pixel. pixel_size:
    ångström per pixel, of all images or of each; if it is known and the same for all, the lower axis is in 1/Å and the
    upper one in Å, else in cycles per pixel and in pixels. shells: the curves are Fourier shell correlations of
    volumes. The threshold 1/2 is dashed, 1/7 dotted. The file is written atomically.

    Raises `ParameterError` for inconsistent arrays, `ResultsError` if the file cannot be written.
    """
    curves, frequency = np.asarray(curves, dtype=float), np.asarray(frequency, dtype=float)
    if curves.ndim != 2 or not curves.size or frequency.shape != curves.shape[1:]:
        raise ParameterError(
            f"expected ring correlations [B, L] and frequencies [L]; got {curves.shape} and {frequency.shape}"
        )
    size = common_size(pixel_sizes(pixel_size, len(curves)))
    shown = frequency / (size or 1.0)
    figure, axes = figure_axes(1, 1, (5.2, 3.6))
    axis = axes[0, 0]
    for curve in curves[:MAX_LINES]:
        axis.plot(shown, curve, color=SKY, linewidth=0.7, alpha=0.8)
    noun, part = ("volume", "shell") if shells else ("image", "ring")
    label = f"1 {noun}" if len(curves) == 1 else f"mean of {len(curves)} {noun}s"
    axis.plot(shown, curves.mean(axis=0), color=BLUE, linewidth=2, label=label)
    axis.axhline(AGAINST_TRUTH, color=VERMILION, linewidth=1.2, linestyle="--", label="1/2, against a truth")
    axis.axhline(HALF_MAPS, color=GREY, linewidth=1, linestyle=":", label="1/7, between half maps")
    _finish(axis, curves, shown[-1], part, in_angstrom=bool(size))
    save(figure, Path(path))


def half_map_correlations(
    curves: Mapping[str, np.ndarray], frequency: np.ndarray, *, pixel_size: float | None, path: str | Path
) -> None:
    """Write a PNG of the Fourier shell correlations between two half maps, with lines at 0.143 and 0.5.

    curves: [L] each, by name: some of unmasked, masked, randomised, corrected and reference. frequency: [L] in cycles
    per pixel. pixel_size: as in `ring_correlations`. The file is written atomically. Raises `ParameterError` for
    inconsistent arrays, `ResultsError` if the file cannot be written.
    """
    frequency = np.asarray(frequency, dtype=float)
    unknown = [name for name, curve in curves.items() if name not in _LINES or np.shape(curve) != frequency.shape]
    if unknown or not curves:
        raise ParameterError(f"expected curves of {', '.join(_LINES)}, each as long as the frequencies; got {unknown}")
    shown = frequency / (pixel_size or 1.0)
    figure, axes = figure_axes(1, 1, (7.2, 3.6))
    axis = axes[0, 0]
    for name, curve in curves.items():
        axis.plot(shown, curve, label=_LABELS.get(name, name), **_LINES[name])
    axis.axhline(0.5, color=VERMILION, linewidth=1, linestyle="--", label="0.5, with a reference")
    axis.axhline(0.143, color=GREY, linewidth=1, linestyle=":", label="0.143, between half maps")
    _finish(axis, np.stack([np.nan_to_num(curve) for curve in curves.values()]), shown[-1], "shell",
            in_angstrom=pixel_size is not None)  # fmt: skip
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, Path(path))


def _finish(axis: Any, curves: np.ndarray, highest: float, part: str, *, in_angstrom: bool) -> None:
    """Limits, labels and the legend of curves [B, L] up to a frequency."""
    axis.set_xlim(0, highest)
    axis.set_ylim(min(-0.05, float(np.nanmin(curves, initial=0.0))), 1.02)
    axis.set_ylabel(f"Fourier {part} correlation", fontsize=9)
    axis.set_xlabel("spatial frequency (1/Å)" if in_angstrom else "spatial frequency (cycles/pixel)", fontsize=9)
    axis.spines[["right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    _draw_lengths(axis, highest, "Å" if in_angstrom else "pixels")


def structure_correlations(curves: Mapping[str, np.ndarray], frequency: np.ndarray, *, title: str, path: Path) -> None:
    """Write a PNG of shell correlations of maps with a structure, a line for each name.

    frequency: [L], 1/Å. The threshold 1/2 is dashed. Raises `ResultsError` if the file cannot be written.
    """
    figure, axes = figure_axes(1, 1, (6.4, 4.2))
    axis = axes[0, 0]
    for style, (name, curve) in zip(cycle(LINES), curves.items(), strict=False):
        axis.plot(frequency, curve, **style, linewidth=1.6, label=name)
    axis.axhline(AGAINST_TRUTH, color=GREY, linewidth=1, linestyle="--")
    _finish(axis, np.stack(list(curves.values())), frequency[-1], "shell", in_angstrom=True)
    axis.set_title(title, fontsize=9)
    save(figure, path)


def resolution_by_particles(
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, title: str, path: Path
) -> None:
    """Write a PNG of the resolution of maps, Å, by the number of particles; a line (numbers, resolutions) for each
    name. Raises `ResultsError` if the file cannot be written."""
    figure, axes = figure_axes(1, 1, (6.4, 4.2))
    axis = axes[0, 0]
    for style, (name, (numbers, resolutions)) in zip(cycle(LINES), lines.items(), strict=False):
        axis.plot(numbers, 1 / np.array(resolutions), **style, linewidth=1.6, marker="o", markersize=4, label=name)
    axis.set_xscale("log")
    ticks = sorted({int(number) for numbers, _ in lines.values() for number in numbers})
    axis.set_xticks(ticks, list(map(str, ticks)), minor=False)
    axis.minorticks_off()
    axis.set_xlabel("particles", fontsize=9)
    axis.set_ylabel("resolution (1/Å), correlation with the structure 0.5", fontsize=9)
    axis.set_title(title, fontsize=9)
    axis.spines[["right", "top"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    save(figure, path)


def common_size(sizes: Sequence[float | None]) -> float | None:
    """The pixel size of all images; None if they differ or one is unknown."""
    return sizes[0] if len(set(sizes)) == 1 else None


def _draw_lengths(axis: Any, highest: float, unit: str) -> None:
    """The upper axis: the lengths of frequencies, at a few round numbers."""
    candidates = [length for decade in (1, 10, 100) for length in (decade, 2 * decade, 3 * decade, 5 * decade)]
    lengths: list[float] = []
    for length in (length for length in candidates if 1 / length <= highest):
        if not lengths or 1 / lengths[-1] - 1 / length > 0.07 * highest:  # labels do not overlap
            lengths.append(length)
    above = axis.secondary_xaxis("top")
    above.set_xticks([1 / length for length in lengths], [f"{length:g}" for length in lengths])
    above.tick_params(labelsize=8)
    above.set_xlabel(f"resolution ({unit})", fontsize=9)
