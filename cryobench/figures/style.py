"""Common parts of figures: colours that colour-blind readers can distinguish, scale bars, axes, atomic writing.

Colours are those of Okabe and Ito (2008), "Color Universal Design", without yellow, which is invisible on white. No two
lines differ by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryobench.errors import ParameterError
from cryobench.files import output_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 4
"""Maximum number of images in a figure."""
LABEL_LENGTH = 32
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#666666"
_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))
LINES: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "linestyle": _DASHES[(number + shift) % len(_DASHES)]}
    for shift in range(len(_DASHES))
    for number, color in enumerate(_COLORS)
)
"""Styles of lines in a figure of many, in this order."""
DIVERGING = "PuOr_r"
"""For signed errors: violet below the truth, orange above it."""
SEQUENTIAL = "cividis"
"""For non-negative values; looks the same with and without colour blindness (Nuñez et al., 2018)."""


def image_axes(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure with [rows, columns] axes without ticks, for images."""
    figure, axes = figure_axes(rows, columns, inches)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes


def figure_axes(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure with [rows, columns] axes; Matplotlib's global state is not changed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def note(axis: Axes, text: str) -> None:
    """A small text in the lower right corner, on white; scale bars are in the lower left corner."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
    axis.text(0.96, 0.04, text, transform=axis.transAxes, fontsize=7, ha="right", va="bottom", bbox=box)


def scale_bar(axis: Axes, shape: Sequence[int], pixel_size: float) -> None:
    """A bar of a round length, about a quarter of the image wide; white with a dark edge, visible on any image."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = shape
    length = round_length(width * pixel_size / 4)
    label = f"{length:g} Å" if length < 100 else f"{length / 10:g} nm"
    left, bottom, thick = 0.05 * width, 0.93 * height, 0.02 * height
    pixels = length / pixel_size
    axis.add_patch(Rectangle((left, bottom), pixels, thick, facecolor="white", edgecolor="black", linewidth=0.6))
    axis.text(
        left + pixels / 2, bottom - 0.015 * height, label, color="white", fontsize=7, ha="center", va="bottom",
        path_effects=[withStroke(linewidth=1.5, foreground="black")],
    )  # fmt: skip


def round_length(length: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50, ... (and 0.5, 0.2, ...) that is at most `length`, in its unit."""
    decade = 10.0 ** math.floor(math.log10(length))
    return max(step * decade for step in (1, 2, 5) if step * decade <= length * (1 + 1e-9))


def shortened(label: str) -> str:
    """The label, without its middle if it is long, because image ids differ at the end."""
    half = LABEL_LENGTH // 2
    return label if len(label) <= LABEL_LENGTH else f"{label[: half - 1]}…{label[-half:]}"


def pixel_sizes(pixel_size: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    """Ångström per pixel of each image, None if unknown or invalid."""
    sizes = [pixel_size] * count if pixel_size is None or isinstance(pixel_size, (int, float)) else list(pixel_size)
    if len(sizes) != count:
        raise ParameterError(f"expected one pixel size, or one for each of {count} images; got {len(sizes)}")
    return [float(size) if size is not None and math.isfinite(size) and size > 0 else None for size in sizes]


def save(figure: Figure, path: Path, *, grey: bool = False) -> None:
    """Write a PNG. grey: one byte per pixel, for figures without colour: noise does not compress."""
    from PIL import Image

    with output_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
        if grey:
            with Image.open(temporary) as image:
                image.convert("L").save(temporary, format="png")


def grey(images: np.ndarray) -> np.ndarray:
    """uint8 of intensities: 0 for -1 and below, 255 for 1 and above."""
    levels = np.nan_to_num((np.asarray(images, dtype=float) + 1) / 2)
    return np.round(255 * levels.clip(0, 1)).astype(np.uint8)
