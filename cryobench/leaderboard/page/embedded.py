"""Ring correlations and small images of the run folders, for the page.

The size is limited, because a page of 10,000 rows must still open: the first row of every comparison is embedded, then
the second, and so on up to a limit. Rows with missing or damaged files have no picture.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryobench.errors import ResultsError
from cryobench.figures import read_views
from cryobench.record import Record
from cryobench.results.store import CURVES, VIEWS

MAX_ROWS = 2_000
"""Maximum number of run folders that are read."""
PICTURE_BYTES = 12_000_000
"""Maximum size of all images as text."""


def embed(
    records: Sequence[Record | None], comparisons: Sequence[int], find: Callable[[str], Path | None]
) -> dict[str, Any]:
    """The contents of the run folders. records, comparisons: of each row. find: returns a folder by hash.

    frc: mean over the images of a row, in thousandths, by row number. pictures: distinct images as PNG in base64.
    views: by row number, indices into the pictures. left_out: number of rows beyond the limit.
    """
    frc: dict[int, list[int]] = {}
    views: dict[int, dict[str, Any]] = {}
    pictures: dict[str, int] = {}
    room, left_out = PICTURE_BYTES, 0
    for looked, (row, folder) in enumerate(_in_turn(records, comparisons, find)):
        if looked >= MAX_ROWS:
            left_out += 1
            continue
        curve = _mean_frc(folder / CURVES)
        if curve is not None:
            frc[row] = curve
        if not (folder / VIEWS).is_file():
            continue
        if room <= 0:
            left_out += 1
            continue
        try:
            found = read_views(folder / VIEWS)
        except ResultsError:
            continue
        views[row] = {"images": found.images, "pixel_size": found.pixel_size}
        for kind in ("truth", "reconstruction"):
            texts = list(map(_png, getattr(found, kind)))  # images shared by rows, as the truth is, are stored once
            room -= sum(len(text) for text in set(texts) - pictures.keys())
            views[row][kind] = [pictures.setdefault(text, len(pictures)) for text in texts]
    return {"frc": frc, "pictures": list(pictures), "views": views, "left_out": left_out}


def _in_turn(
    records: Sequence[Record | None], comparisons: Sequence[int], find: Callable[[str], Path | None]
) -> list[tuple[int, Path]]:
    """Rows that have a folder: the first of every comparison, then the second, and so on."""
    seen: Counter[int] = Counter()
    turns = []
    for row, (record, comparison) in enumerate(zip(records, comparisons, strict=True)):
        folder = find(record.hash) if record is not None and record.status == "ok" else None
        if folder is not None:
            turns.append((seen[comparison], row, folder))
            seen[comparison] += 1
    return [(row, folder) for _, row, folder in sorted(turns, key=lambda turn: turn[:2])]


def _mean_frc(path: Path) -> list[int] | None:
    """The mean of a cell's ring correlations over its images, in thousandths."""
    try:
        with np.load(path, allow_pickle=False) as curves:
            frc = np.asarray(curves["frc"], dtype=float)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if frc.ndim != 2 or not frc.size or not np.isfinite(frc).all():
        return None
    return np.round(1000 * frc.mean(axis=0)).astype(int).tolist()


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
