"""Truth and reconstruction side by side, error maps, and sheets of particles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryobench.errors import ParameterError
from cryobench.figures.style import (
    DIVERGING,
    ROWS,
    SEQUENTIAL,
    image_axes,
    note,
    pixel_sizes,
    save,
    scale_bar,
    shortened,
)

SHEET_COLUMNS = 8
HEADS = ("truth", "adjoint, own scale", "reconstruction", "reconstruction − truth")
PixelSizes = float | Sequence[float | None] | None


def panel(
    truth: np.ndarray,
    adjoint: np.ndarray,
    reconstruction: np.ndarray,
    *,
    titles: Sequence[str],
    pixel_size: PixelSizes = None,
    path: str | Path,
) -> None:
    """Write a PNG with one row for each of the first four images: truth, adjoint, reconstruction and error.

    truth, adjoint, reconstruction: [B, H, W]. Truth and reconstruction are shown in the window [-1, 1]. The adjoint
    A^T y is not in image units; each one is shown between its extremes. Errors share one symmetric scale. titles: one
    label for each image. pixel_size: ångström per pixel, of all images or of each; a scale bar is drawn if it is
    known. The file is written atomically.

    Raises `ParameterError` for inconsistent arrays, `ResultsError` where the file cannot be written.
    """
    truth, adjoint, reconstruction = (np.asarray(images, dtype=float) for images in (truth, adjoint, reconstruction))
    _check("panel", (truth, adjoint, reconstruction), titles)
    rows = min(len(truth), ROWS)
    sizes = pixel_sizes(pixel_size, len(truth))
    errors = reconstruction[:rows] - truth[:rows]
    limit = _largest(errors)
    figure, axes = image_axes(rows, len(HEADS), (10.4, 0.35 + rows * 2.4 * truth.shape[1] / truth.shape[2]))
    _write_heads(axes, HEADS)
    mappable: Any = None
    for row in range(rows):
        images = (truth[row], adjoint[row], reconstruction[row])
        for axis, image, (low, high) in zip(
            axes[row], images, ((-1, 1), _extremes(adjoint[row]), (-1, 1)), strict=False
        ):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        mappable = axes[row, 3].imshow(errors[row], cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        note(axes[row, 3], f"RMSE {_rms(errors[row]):.3g}")
        axes[row, 0].set_ylabel(shortened(titles[row]), fontsize=8, parse_math=False)
        _draw_scale_bar(axes[row, 0], truth.shape, sizes[row])
    _colour_bar(figure, mappable, axes[:, 3], _extend(errors, limit))
    save(figure, Path(path))


def error_maps(
    truth: np.ndarray,
    reconstruction: np.ndarray,
    *,
    titles: Sequence[str],
    clean: np.ndarray | None = None,
    deviation: np.ndarray | None = None,
    pixel_size: PixelSizes = None,
    path: str | Path,
) -> None:
    """Write a PNG with error maps of the first four reconstructions, a row for each.

    truth, reconstruction: [B, H, W]. clean, deviation: [B, H, W] if known, the truth without noise and the standard
    deviation that the solver states for each pixel. Columns: the signed differences from the truth and from the clean
    image, on one symmetric scale; the absolute difference from the truth and the stated deviation, on another scale.
    Images range from -1 to 1. The file is written atomically.

    Raises `ParameterError` for inconsistent arrays, `ResultsError` where the file cannot be written.
    """
    truth, reconstruction = np.asarray(truth, dtype=float), np.asarray(reconstruction, dtype=float)
    further = [np.asarray(images, dtype=float) for images in (clean, deviation) if images is not None]
    _check("error figure", (truth, reconstruction, *further), titles)
    rows = min(len(truth), ROWS)
    sizes = pixel_sizes(pixel_size, len(truth))
    signed = {"reconstruction − truth": reconstruction[:rows] - truth[:rows]}
    if clean is not None:
        signed["reconstruction − clean image"] = reconstruction[:rows] - np.asarray(clean, dtype=float)[:rows]
    unsigned = {"|reconstruction − truth|": np.abs(signed["reconstruction − truth"])}
    if deviation is not None:
        unsigned["stated deviation"] = np.asarray(deviation, dtype=float)[:rows]
    count = len(signed) + len(unsigned)
    figure, axes = image_axes(rows, count, (2.6 * count + 1.2, 0.35 + rows * 2.4 * truth.shape[1] / truth.shape[2]))
    _write_heads(axes, [*signed, *unsigned])
    limit = _largest(np.stack(list(signed.values())))
    _draw_maps(figure, axes[:, : len(signed)], signed, DIVERGING, -limit, limit)
    _draw_maps(figure, axes[:, len(signed) :], unsigned, SEQUENTIAL, 0.0, limit)
    for row in range(rows):
        axes[row, 0].set_ylabel(shortened(titles[row]), fontsize=8, parse_math=False)
        _draw_scale_bar(axes[row, 0], truth.shape, sizes[row])
    save(figure, Path(path))


def sheet(
    images: Sequence[np.ndarray],
    *,
    titles: Sequence[str],
    pixel_size: Sequence[float | None],
    path: str | Path,
    columns: int = SHEET_COLUMNS,
) -> None:
    """Write a PNG with images [H, W], or the central sections of volumes [D, H, W], side by side, `columns` in a row.

    Each is shown between its own 0.5th and 99.5th percentile.

    titles and pixel_size (Å per pixel, None if unknown): one for each image. The file is written atomically. Raises
    `ResultsError` if it cannot be written.
    """
    images = [image[len(image) // 2] if image.ndim == 3 else image for image in images]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure, axes = image_axes(rows, columns, (1.2 * columns, 1.35 * rows * images[0].shape[0] / images[0].shape[1]))
    for axis, image, title, size in zip(axes.flat, images, titles, pixel_size, strict=False):
        low, high = np.percentile(image, (0.5, 99.5))
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(shortened(title), fontsize=7, pad=2, parse_math=False)
        if size is not None:
            scale_bar(axis, image.shape, size)
    save(figure, Path(path), grey=True)


def _check(what: str, arrays: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    shapes = [images.shape for images in arrays]
    truth = arrays[0]
    if truth.ndim != 3 or not truth.size or len(set(shapes)) > 1:
        raise ParameterError(f"{what}: expected arrays of one shape [B, H, W]; got {', '.join(map(str, shapes))}")
    if isinstance(titles, str) or len(titles) < min(len(truth), ROWS):
        raise ParameterError(f"{what}: expected a title for each of {min(len(truth), ROWS)} rows; got {titles!r}")


def _write_heads(axes: np.ndarray, heads: Sequence[str]) -> None:
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=10)


def _draw_maps(
    figure: Any, axes: np.ndarray, maps: Mapping[str, np.ndarray], colours: str, low: float, high: float
) -> None:
    """Maps [rows, H, W] in columns of axes with one colour bar; each is labelled with its RMS."""
    mappable: Any = None
    for column, images in zip(axes.T, maps.values(), strict=True):
        for axis, image in zip(column, images, strict=True):
            mappable = axis.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            note(axis, f"RMS {_rms(image):.3g}")
    values = np.stack(list(maps.values()))
    _colour_bar(
        figure, mappable, axes, _extend(values, high) if low < 0 else "max" if (values > high).any() else "neither"
    )


def _colour_bar(figure: Any, mappable: Any, axes: np.ndarray, extend: str) -> None:
    rows = len(axes)
    bar = figure.colorbar(
        mappable, ax=axes.ravel().tolist(), fraction=0.05, aspect=20 * rows, extendfrac=0.03 / rows, extend=extend
    )
    bar.ax.tick_params(labelsize=8)


def _draw_scale_bar(axis: Any, shape: Sequence[int], size: float | None) -> None:
    if size is not None:
        scale_bar(axis, shape[1:], size)


def _rms(image: np.ndarray) -> float:
    return float(np.sqrt(np.mean(image**2)))


def _extremes(image: np.ndarray) -> tuple[float, float]:
    finite = image[np.isfinite(image)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _largest(errors: np.ndarray) -> float:
    """The error shown in full colour: the 99.8th percentile, so that outliers do not determine the scale."""
    finite = np.abs(errors[np.isfinite(errors)])
    limit = float(np.quantile(finite, 0.998)) if finite.size else 0.0
    return limit or (float(finite.max()) if finite.size else 0.0) or 1.0


def _extend(errors: np.ndarray, limit: float) -> str:
    """The ends of a symmetric colour bar that are exceeded by errors."""
    below, above = bool((errors < -limit).any()), bool((errors > limit).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
