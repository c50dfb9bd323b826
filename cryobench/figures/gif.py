"""Iterations of a solver as a GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cryobench.errors import ParameterError
from cryobench.figures.style import grey
from cryobench.files import output_file

if TYPE_CHECKING:
    from PIL import Image

FRAME_SIDE = 192
"""The shorter side of an animated image is enlarged to about this many pixels."""
MILLISECONDS = 80
LAST_MILLISECONDS = 3000
_GAP, _STRIP = 4, 16


def animation(frames: Sequence[tuple[np.ndarray, np.ndarray]], *, steps: Sequence[int], path: str | Path) -> None:
    """Write a GIF of the iterations of a solver: the iterate on the left, the estimate of the image on the right.

    frames: (iterate, estimate), each [H, W], shown in the window [-1, 1]. steps: the step of each frame, shown below.
    The animation loops, and the last frame is shown for three seconds. The file is written atomically.

    Raises `ParameterError` for no frames or frames of different shapes, `ResultsError` if the file cannot be written.
    """
    shapes = {np.shape(image) for pair in frames for image in pair}
    if len(shapes) != 1 or len(steps) != len(frames) or any(len(shape) != 2 for shape in shapes):
        raise ParameterError(
            f"expected frames [H, W] of one shape, with a step each; got {len(frames)} frames of shapes "
            f"{sorted(shapes)} and {len(steps)} steps"
        )
    pictures = [_frame(x, estimate, step) for (x, estimate), step in zip(frames, steps, strict=True)]
    durations = [MILLISECONDS] * (len(pictures) - 1) + [LAST_MILLISECONDS]
    with output_file(Path(path)) as temporary:
        pictures[0].save(
            temporary,
            format="gif",
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def _frame(x: np.ndarray, estimate: np.ndarray, step: int) -> Image.Image:
    """Two grey images side by side, with the step below."""
    from PIL import Image, ImageDraw, ImageFont

    zoom = max(1, round(FRAME_SIDE / min(x.shape)))
    height, width = (zoom * side for side in x.shape)
    picture = Image.new("L", (2 * width + _GAP, height + _STRIP), color=255)
    for image, left in ((x, 0), (estimate, width + _GAP)):
        pixels = grey(image)
        picture.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, 0))
    ImageDraw.Draw(picture).text((2, height + 2), f"step {step}", fill=0, font=ImageFont.load_default())
    return picture
