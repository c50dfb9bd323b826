"""Thumbnails of images and reconstructions, for the HTML page."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryobench.errors import ParameterError, ResultsError
from cryobench.figures.style import ROWS, grey, pixel_sizes
from cryobench.files import output_file


@dataclass(frozen=True)
class Views:
    """A few images and their reconstructions, uint8 [n, H, W]: 0 for -1 and below, 255 for 1 and above.

    images: the id of each. pixel_size: ångström per pixel of each, None if unknown.
    """

    truth: np.ndarray
    reconstruction: np.ndarray
    images: list[str]
    pixel_size: list[float | None]


def write_views(
    truth: np.ndarray,
    reconstruction: np.ndarray,
    *,
    images: Sequence[str],
    pixel_size: float | Sequence[float | None] | None,
    path: Path,
) -> None:
    """Save the first four images [B, H, W] in the window [-1, 1], as a compressed .npz.

    Raises `ParameterError` for inconsistent arrays, `ResultsError` where the file cannot be written.
    """
    if truth.shape != reconstruction.shape or truth.ndim != 3 or len(images) != len(truth):
        raise ParameterError(
            f"expected views of one shape [B, H, W] with an id each; got {truth.shape}, {reconstruction.shape} and "
            f"{len(images)} ids"
        )
    sizes = [math.nan if size is None else size for size in pixel_sizes(pixel_size, len(truth))]
    with output_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            truth=grey(truth[:ROWS]),
            reconstruction=grey(reconstruction[:ROWS]),
            images=np.array(list(images[:ROWS]), dtype=str),
            pixel_size=np.array(sizes[:ROWS], dtype=float),
        )


def read_views(path: Path) -> Views:
    """Read a file of `write_views`. Raises `ResultsError` if it is missing, damaged or another kind of file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            truth, reconstruction = file["truth"], file["reconstruction"]
            images, sizes = file["images"], file["pixel_size"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ResultsError(f"cannot read the images of {path}: {error}") from error
    if not (truth.dtype == reconstruction.dtype == np.uint8 and truth.ndim == 3 and truth.shape == reconstruction.shape
            and images.shape == sizes.shape == truth.shape[:1]):  # fmt: skip
        raise ResultsError(f"{path} has no pairs of images uint8 [n, H, W]; run the cell again with --save figures")
    return Views(truth, reconstruction, [str(image) for image in images], pixel_sizes(sizes.tolist(), len(truth)))
