"""What lies in the run folders beside the numbers, for the page to carry: ring correlations and small images.

Rows are taken in turn, the first of every comparison before the second of any, until a budget is spent: a page of
10,000 rows must still open. Files that are missing or damaged are passed over: a page without a picture is a page.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cryobench.errors import ResultsError
from cryobench.figures import read_views
from cryobench.record import Record
from cryobench.results.store import CURVES, VIEWS

MOST_ROWS = 2_000
"""Run folders that are looked into."""
PICTURE_BYTES = 12_000_000
"""Text of all images together."""


@dataclass
class Embedded:
    """frc: mean over the images of a row, in thousandths, by row number. pictures: distinct images as PNG in base64.
    views: which of them a row shows."""

    frc: dict[int, list[int]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    views: dict[int, dict[str, Any]] = field(default_factory=dict)
    left_out: int = 0
    """Rows whose files there was no room for."""


def embed(records: Sequence[Record | None], comparisons: Sequence[int], find: Callable[[str], Path | None]) -> Embedded:
    """What the run folders hold of the rows. records and comparisons: of each row; find: its folder by the hash of a
    record."""
    found = Embedded()
    numbers: dict[str, int] = {}
    room = PICTURE_BYTES
    for looked, (row, folder) in enumerate(_in_turn(records, comparisons, find)):
        if looked >= MOST_ROWS:
            found.left_out += 1
            continue
        curve = _mean_frc(folder / CURVES)
        if curve is not None:
            found.frc[row] = curve
        if not (folder / VIEWS).is_file():
            continue
        if room <= 0:
            found.left_out += 1
            continue
        room -= _show(found, numbers, row, folder)
    return found


def _in_turn(
    records: Sequence[Record | None], comparisons: Sequence[int], find: Callable[[str], Path | None]
) -> Iterator[tuple[int, Path]]:
    """Rows that have a folder, the first of every comparison, then the second, and so on."""
    places: dict[int, int] = {}
    turns = []
    for row, (record, comparison) in enumerate(zip(records, comparisons, strict=True)):
        folder = find(record.hash) if record is not None and record.status == "ok" else None
        if folder is not None:
            places[comparison] = places.get(comparison, -1) + 1
            turns.append((places[comparison], row, folder))
    for _, row, folder in sorted(turns, key=lambda turn: turn[:2]):
        yield row, folder


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


def _show(found: Embedded, numbers: dict[str, int], row: int, folder: Path) -> int:
    """Add the images of a row; the bytes that this took. What another row shows already, such as the truth, is free."""
    try:
        views = read_views(folder / VIEWS)
    except ResultsError:
        return 0
    taken = 0
    shown: dict[str, Any] = {"images": views.images, "pixel_size": views.pixel_size}
    for kind in ("truth", "reconstruction"):
        places = []
        for pixels in getattr(views, kind):
            text = _png(pixels)
            if text not in numbers:
                numbers[text] = len(found.pictures)
                found.pictures.append(text)
                taken += len(text)
            places.append(numbers[text])
        shown[kind] = places
    found.views[row] = shown
    return taken


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
