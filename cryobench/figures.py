"""Pictures of reconstructions, still and moving.

Matplotlib and Pillow are imported only when one is drawn, and Matplotlib's global state is never touched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryobench.errors import ParameterError, ResultsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

ROWS = 4
SHEET_COLUMNS = 8
LABEL_LENGTH = 32
FRAME_SIDE = 192
"""The shorter side of an animated image is enlarged to about this many pixels."""
MILLISECONDS = 80
LAST_MILLISECONDS = 3000
_GAP, _STRIP = 4, 16
HEADS = ("truth", "adjoint, own scale", "reconstruction", "reconstruction − truth")


def panel(
    truth: np.ndarray,
    adjoint: np.ndarray,
    reconstruction: np.ndarray,
    *,
    titles: Sequence[str],
    pixel_size: float | Sequence[float | None] | None = None,
    path: str | Path,
) -> None:
    """Write a PNG with a row for each of the first four images: truth, adjoint, reconstruction and error.

    truth, adjoint, reconstruction: [B, H, W]. Truth and reconstruction are shown in the window [-1, 1]; the adjoint
    A^T y is not in image units, and each is shown between its own extremes. Errors share one symmetric scale.
    titles: a label for each image. pixel_size: ångström per pixel, of all images or of each; where it is known a
    scale bar is drawn. The file appears complete or not at all.

    Raises `ParameterError` for arrays that do not fit each other, `ResultsError` where the file cannot be written.
    """
    truth, adjoint, reconstruction = (np.asarray(images, dtype=float) for images in (truth, adjoint, reconstruction))
    _check(truth, adjoint, reconstruction, titles)
    rows = min(len(truth), ROWS)
    sizes = _pixel_sizes(pixel_size, len(truth))
    errors = reconstruction[:rows] - truth[:rows]
    limit = _symmetric_limit(errors)
    figure, axes = _grid(rows, truth.shape[1] / truth.shape[2])
    mappable: Any = None
    for row in range(rows):
        images = (truth[row], adjoint[row], reconstruction[row])
        for axis, image, (low, high) in zip(
            axes[row], images, ((-1, 1), _extremes(adjoint[row]), (-1, 1)), strict=False
        ):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        mappable = axes[row, 3].imshow(errors[row], cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
        _note(axes[row, 3], f"RMSE {np.sqrt(np.mean(errors[row] ** 2)):.3g}")
        axes[row, 0].set_ylabel(_shortened(titles[row]), fontsize=8, parse_math=False)
        size = sizes[row]
        if size is not None:
            _scale_bar(axes[row, 0], truth.shape[1:], size)
    bar = figure.colorbar(
        mappable,
        ax=axes[:, 3].tolist(),
        fraction=0.05,
        aspect=20 * rows,
        extendfrac=0.03 / rows,
        extend=_extend(errors, limit),
    )
    bar.ax.tick_params(labelsize=8)
    _save(figure, Path(path))


def sheet(
    images: Sequence[np.ndarray], *, titles: Sequence[str], pixel_size: Sequence[float | None], path: str | Path
) -> None:
    """Write a PNG with images [H, W] side by side, each between its own 0.5th and 99.5th percentile.

    titles and pixel_size (Å per pixel, None where it is not known): one for each image. The file appears complete or
    not at all; raises `ResultsError` where it cannot be written.
    """
    columns = min(SHEET_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    figure, axes = _blank(rows, columns, (1.2 * columns, 1.35 * rows * images[0].shape[0] / images[0].shape[1]))
    for axis, image, title, size in zip(axes.flat, images, titles, pixel_size, strict=False):
        low, high = np.percentile(image, (0.5, 99.5))
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(_shortened(title), fontsize=7, pad=2, parse_math=False)
        if size is not None:
            _scale_bar(axis, image.shape, size)
    _save(figure, Path(path), grey=True)


def animation(frames: Sequence[tuple[np.ndarray, np.ndarray]], *, steps: Sequence[int], path: str | Path) -> None:
    """Write a GIF of a solver at work: on the left the iterate, on the right its estimate of the image then.

    frames: (iterate, estimate), each [H, W], shown in the window [-1, 1]. steps: the number of each, written below it.
    It runs for ever, and the last frame stays for three seconds. The file appears complete or not at all.

    Raises `ParameterError` for no frames, or frames of several shapes, `ResultsError` where it cannot be written.
    """
    shapes = {np.shape(image) for pair in frames for image in pair}
    if len(shapes) != 1 or len(steps) != len(frames) or any(len(shape) != 2 for shape in shapes):
        raise ParameterError(
            f"an animation needs frames [H, W] of one shape with a step each; got {len(frames)} frames of shapes "
            f"{sorted(shapes)} and {len(steps)} steps"
        )
    pictures = [_frame(x, estimate, step) for (x, estimate), step in zip(frames, steps, strict=True)]
    durations = [MILLISECONDS] * (len(pictures) - 1) + [LAST_MILLISECONDS]
    with _whole(Path(path)) as beside:
        pictures[0].save(
            beside, format="gif", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
        )


def _frame(x: np.ndarray, estimate: np.ndarray, step: int) -> Image.Image:
    """Two images side by side in grey, and the number of the step below them."""
    from PIL import Image, ImageDraw, ImageFont

    zoom = max(1, round(FRAME_SIDE / min(x.shape)))
    height, width = (zoom * side for side in x.shape)
    picture = Image.new("L", (2 * width + _GAP, height + _STRIP), color=255)
    for image, left in ((x, 0), (estimate, width + _GAP)):
        grey = np.nan_to_num((np.asarray(image, dtype=float) + 1) / 2).clip(0, 1)
        pixels = np.round(255 * grey).astype(np.uint8)
        picture.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, 0))
    ImageDraw.Draw(picture).text((2, height + 2), f"step {step}", fill=0, font=ImageFont.load_default())
    return picture


def _check(truth: np.ndarray, adjoint: np.ndarray, reconstruction: np.ndarray, titles: Sequence[str]) -> None:
    shapes = [images.shape for images in (truth, adjoint, reconstruction)]
    if truth.ndim != 3 or not truth.size or len(set(shapes)) > 1:
        raise ParameterError(f"a panel needs three equal shapes [B, H, W]; got {', '.join(map(str, shapes))}")
    if isinstance(titles, str) or len(titles) < min(len(truth), ROWS):
        raise ParameterError(f"a panel needs a title for each of its {min(len(truth), ROWS)} rows; got {titles!r}")


def _pixel_sizes(pixel_size: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    """Ångström per pixel of each image, None where it is not known or cannot be."""
    sizes = [pixel_size] * count if pixel_size is None or isinstance(pixel_size, (int, float)) else list(pixel_size)
    if len(sizes) != count:
        raise ParameterError(f"a panel needs one pixel size, or one for each of {count} images; got {len(sizes)}")
    return [float(size) if size is not None and math.isfinite(size) and size > 0 else None for size in sizes]


def _extremes(image: np.ndarray) -> tuple[float, float]:
    finite = image[np.isfinite(image)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _symmetric_limit(errors: np.ndarray) -> float:
    """The error that gets the strongest colour: passed by one pixel in 500, so that few do not flatten the rest."""
    finite = np.abs(errors[np.isfinite(errors)])
    limit = float(np.quantile(finite, 0.998)) if finite.size else 0.0
    return limit or (float(finite.max()) if finite.size else 0.0) or 1.0


def _extend(errors: np.ndarray, limit: float) -> str:
    """Which ends of the colourbar have errors beyond them."""
    below, above = bool((errors < -limit).any()), bool((errors > limit).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def _shortened(label: str) -> str:
    """The label with its middle left out where it is long: an image id differs at its end."""
    half = LABEL_LENGTH // 2
    return label if len(label) <= LABEL_LENGTH else f"{label[: half - 1]}…{label[-half:]}"


def _grid(rows: int, aspect: float) -> tuple[Figure, np.ndarray]:
    """A figure with [rows, 4] axes, headed; aspect: image height over width."""
    figure, axes = _blank(rows, len(HEADS), (10.4, 0.35 + rows * 2.4 * aspect))
    for axis, head in zip(axes[0], HEADS, strict=True):
        axis.set_title(head, fontsize=10)
    return figure, axes


def _blank(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure with [rows, columns] axes without ticks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes


def _note(axis: Axes, text: str) -> None:
    """A small line in the lower left corner, on white."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
    axis.text(0.04, 0.04, text, transform=axis.transAxes, fontsize=7, va="bottom", bbox=box)


def _scale_bar(axis: Axes, shape: Sequence[int], pixel_size: float) -> None:
    """A bar of a round length, about a quarter of the image wide; white on a dark edge, to be seen on any image."""
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


def _save(figure: Figure, path: Path, *, grey: bool = False) -> None:
    """Write a PNG. grey: one byte a pixel, for figures without colour: noise does not compress."""
    from PIL import Image

    with _whole(path) as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})
        if grey:
            with Image.open(beside) as image:
                image.convert("L").save(beside, format="png")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path beside this one to write to, which is renamed to it in the end."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        raise ResultsError(f"cannot write the figure {path}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
