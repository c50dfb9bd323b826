"""What a stack of images is, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cryobench.core import Stack
from cryobench.io.streaming import stream

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 256
"""Images that statistics are taken of, evenly spread over the stack."""


@dataclass(frozen=True)
class Summary:
    """What a stack is. Lengths in Å where the source knows the pixel size; `sampled` images were read for the numbers.

    pixel_size, defocus: least and greatest. mean, deviation, low, high: over the pixels of the sampled images.
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
    """Look at a stack: reads its table, and the pixels of at most `SAMPLE` images."""
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
    """Least and greatest mean underfocus, Å."""
    if table is None or not {"rlnDefocusU", "rlnDefocusV"} <= set(table.columns):
        return None
    mean = table[["rlnDefocusU", "rlnDefocusV"]].to_numpy(dtype=np.float64).mean(axis=1)
    return float(mean.min()), float(mean.max())


def facts(summary: Summary) -> dict[str, str]:
    """A summary as lines of text, by name."""
    told = {
        "data": summary.label,
        "images": str(summary.images),
        "size": f"{' x '.join(map(str, summary.shape))} {'pixels' if len(summary.shape) == 2 else 'voxels'}",
        "pixel size": _between(summary.pixel_size, "Å per pixel", "not known"),
        "values": f"{summary.low:.4g} to {summary.high:.4g}, mean {summary.mean:.4g}, deviation {summary.deviation:.4g}"
        + ("" if summary.sampled == summary.images else f" (of {summary.sampled} images)"),
        "CTF": _between(summary.defocus and tuple(d / 1e4 for d in summary.defocus), "µm underfocus", "not known"),
        "clean images": "known" if summary.clean_known else "not known",
    }
    if summary.origin:
        told["made of"] = ", ".join(f"{name} {value}" for name, value in summary.origin.items())
    if summary.columns:
        told["table"] = ", ".join(summary.columns)
    return told


def _between(limits: tuple[float, ...] | None, unit: str, otherwise: str) -> str:
    if not limits:
        return otherwise
    low, high = (f"{limit:.4g}" for limit in limits)
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
