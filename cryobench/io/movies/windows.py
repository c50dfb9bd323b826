"""Windows of stored halves as images. Only the window is touched, in strips that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from cryobench.core.operator import Window

_STRIP_BYTES = 1 << 19
"""Approximate size of both halves of a strip, float32."""


def checked(window: Window | None, shape: Sequence[int]) -> Window:
    """The window, or that of everything. Raises `ValueError` for one outside an image of `shape`."""
    if window is None:
        return tuple(slice(0, side) for side in shape)
    inside = len(window) == 2 and all(
        part.step in (None, 1)
        and part.start is not None
        and part.stop is not None
        and 0 <= part.start < part.stop <= side
        for part, side in zip(window, shape, strict=True)
    )
    if not inside:
        raise ValueError(
            f"{window} is no window of a micrograph of {shape}; give slice(start, stop) for rows and columns"
        )
    return window


def corrected(
    counts: np.ndarray, factor: np.ndarray | None, positions: np.ndarray, values: np.ndarray, window: Window
) -> np.ndarray:
    """A window of counts times factors, with the replaced pixels. float32 [2, h, w].

    counts [2, H, W] and factor [H, W] may be mapped into memory. positions: flat indices of the replaced pixels,
    sorted. values: what takes their place, [2, k].
    """
    rows, columns = window
    found = _empty(window)
    for strip, out in _strips(rows, found):
        out[...] = counts[:, strip, columns]
        if factor is not None:
            out *= factor[strip, columns]
    if len(positions):
        W = counts.shape[2]
        part = slice(*np.searchsorted(positions, [rows.start * W, rows.stop * W]))
        y, x = positions[part] // W - rows.start, positions[part] % W - columns.start
        inside = (x >= 0) & (x < found.shape[2])
        found[:, y[inside], x[inside]] = values[:, part][:, inside]
    return found


def restored(stored: np.ndarray, offset: float, factor: float, window: Window) -> np.ndarray:
    """A window of offset + factor * stored, float32 [2, h, w]. stored: float16 [2, H, W], may be mapped into memory."""
    rows, columns = window
    found = _empty(window)
    for strip, out in _strips(rows, found):
        # torch converts float16 with the instructions of the processor
        torch.from_numpy(out).copy_(torch.from_numpy(np.array(stored[:, strip, columns])))
        if factor != 1:
            out *= np.float32(factor)
        out += np.float32(offset)
    return found


def _empty(window: Window) -> np.ndarray:
    return np.empty((2, *(part.stop - part.start for part in window)), np.float32)


def _strips(rows: slice, found: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of the image for each strip, and the part of `found` that it fills."""
    height = max(1, _STRIP_BYTES // (8 * found.shape[2]))
    for start in range(0, found.shape[1], height):
        stop = min(start + height, found.shape[1])
        yield slice(rows.start + start, rows.start + stop), found[:, start:stop]
