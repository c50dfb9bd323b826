"""Summary statistics of a stack of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cryobench.core.source import Stack, size_text
from cryobench.io.streaming import stream

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 256
"""Maximum number of images, evenly spaced in the stack, from which statistics are computed."""


@dataclass(frozen=True)
class Summary:
    """Summary of a stack. pixel_size, defocus: minimum and maximum, Å, or None if unknown. low, high, mean, deviation:
    over the pixels of `sampled` images.
    """

    label: str
    images: int
    shape: tuple[int, ...]
    pixel_size: tuple[float, float] | None
    defocus: tuple[float, float] | None
    columns: list[str]
    clean_known: bool
    origin: dict[str, str]
    sampled: int
    low: float
    high: float
    mean: float
    deviation: float


def summarise(stack: Stack) -> Summary:
    """Summarise a stack from its table and the pixels of at most `SAMPLE` images."""
    chosen = np.unique(np.linspace(0, len(stack) - 1, min(SAMPLE, len(stack))).round().astype(int)).tolist()
    low, high, total, squares, count = np.inf, -np.inf, 0.0, 0.0, 0
    for _, images in stream(stack, chosen):
        low, high = min(low, float(images.min())), max(high, float(images.max()))
        values = images.astype(np.float64)
        total, squares, count = total + values.sum(), squares + np.square(values).sum(), count + values.size
    mean = total / count
    sizes = [size for size in (stack.pixel_size(index) for index in chosen) if size is not None]
    table = stack.table
    return Summary(
        label=stack.label,
        images=len(stack),
        shape=stack.shape,
        pixel_size=(min(sizes), max(sizes)) if sizes else None,
        defocus=_defocus(table),
        columns=[] if table is None else list(map(str, table.columns)),
        clean_known=stack.clean(chosen[0]) is not None,
        origin=dict(stack.origin),
        sampled=len(chosen),
        low=low,
        high=high,
        mean=mean,
        deviation=float(np.sqrt(max(squares / count - mean**2, 0.0))),
    )


def _defocus(table: pd.DataFrame | None) -> tuple[float, float] | None:
    """Minimum and maximum of the mean underfocus, Å."""
    if table is None or not {"rlnDefocusU", "rlnDefocusV"} <= set(table.columns):
        return None
    mean = table[["rlnDefocusU", "rlnDefocusV"]].to_numpy(dtype=np.float64).mean(axis=1)
    return float(mean.min()), float(mean.max())


def summary_lines(summary: Summary) -> dict[str, str]:
    """A summary as lines of text, by name."""
    lines = {
        "data": summary.label,
        "images": str(summary.images),
        "size": f"{size_text(summary.shape)} {'pixels' if len(summary.shape) == 2 else 'voxels'}",
        "pixel size": _between(summary.pixel_size, "Å per pixel", "unknown"),
        "values": f"{summary.low:.4g} to {summary.high:.4g}, mean {summary.mean:.4g}, deviation {summary.deviation:.4g}"
        + ("" if summary.sampled == summary.images else f" (of {summary.sampled} images)"),
        "CTF": _between(summary.defocus and tuple(d / 1e4 for d in summary.defocus), "µm underfocus", "unknown"),
        "clean images": "known" if summary.clean_known else "unknown",
    }
    if summary.origin:
        lines["simulated"] = ", ".join(f"{name} {value}" for name, value in summary.origin.items())
    if summary.columns:
        lines["table"] = ", ".join(summary.columns)
    return lines


def _between(limits: tuple[float, ...] | None, unit: str, otherwise: str) -> str:
    if not limits:
        return otherwise
    low, high = (f"{limit:.4g}" for limit in limits)
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
