"""Windows of micrographs."""

from __future__ import annotations

from cryobench.core.operator import Window


def checked(window: Window | None, shape: tuple[int, int]) -> Window:
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
