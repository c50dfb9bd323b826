"""Stacks as a whole: what one is, one written as files, one turned into another format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryobench.core import Stack
from cryobench.errors import DataError, ParameterError
from cryobench.files import whole_file
from cryobench.sources.scaling import scaling_of
from cryobench.sources.streaming import stream
from cryobench.sources.writing import write_mrcs, write_star

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 256
"""Images that statistics are taken of, evenly spread over the stack."""
WRITTEN = (".mrcs", ".npy")


@dataclass(frozen=True)
class Summary:
    """What a stack is. Lengths in Å where the source knows the pixel size; `sampled` images were read for the numbers.

    pixel_size, defocus: least and greatest. mean, deviation, low, high: over the pixels of the sampled images.
    """

    label: str
    images: int
    shape: tuple[int, int]
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


def convert(
    stack: Stack,
    path: Path,
    *,
    images: Sequence[int] | None = None,
    normalize: str | None = None,
    radius: float | None = None,
    invert: bool = False,
) -> list[Path]:
    """Write images of a stack as a .mrcs, with a RELION 3.1 .star beside it, or as a .npy. Returns what was written.

    normalize: minmax, meanstd, relion (with the particle's `radius` in pixels) or p95, image by image; None leaves the
    values. invert: multiply by -1. Bounded memory; files appear whole or not at all. Raises `DataError` or
    `ParameterError`.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITTEN:
        raise ParameterError(f"cannot write {path}: its suffix is {suffix!r}; give one of {', '.join(WRITTEN)}")
    chosen = list(range(len(stack))) if images is None else list(images)
    chunks = _chunks(stack, chosen, normalize, radius, invert)
    if suffix == ".npy":
        _write_npy(path, chunks, (len(chosen), *stack.shape))
        return [path]
    return write_particles(path, chunks, stack, chosen)


def write_particles(path: Path, chunks: Iterator[np.ndarray], stack: Stack, chosen: Sequence[int]) -> list[Path]:
    """Write chunks [n, H, W], one image for each of the `chosen` ones, as a .mrcs and a .star with what is known."""
    sizes = [stack.pixel_size(index) for index in chosen]
    known = [size for size in sizes if size is not None]
    if known and len(known) < len(sizes):
        raise DataError(f"{stack.label}: some images have a pixel size and some have none; write them one by one")
    star = path.with_suffix(".star")
    write_mrcs(path, chunks, known[0] if known else None)
    table = stack.table
    rows = None if table is None else table.iloc[list(chosen)].reset_index(drop=True)
    write_star(star, rows, path.name, known or None, stack.shape[1], count=len(chosen))
    return [path, star]


def _chunks(
    stack: Stack, chosen: Sequence[int], normalize: str | None, radius: float | None, invert: bool
) -> Iterator[np.ndarray]:
    if radius is not None and normalize != "relion":
        raise ParameterError(f"a radius belongs to the normalisation relion, got {normalize}")
    for numbers, images in stream(stack, chosen):
        if normalize is not None:
            scaled = [
                scaling_of(normalize, image, f"image {number} of {stack.label}", radius=radius, invert=invert).apply(
                    image
                )
                for number, image in zip(numbers, images, strict=True)
            ]
            yield np.stack(scaled)
        else:
            yield -images if invert else images


def _write_npy(path: Path, chunks: Iterator[np.ndarray], shape: tuple[int, ...]) -> None:
    try:
        with whole_file(path) as beside:
            array = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape)
            start = 0
            for chunk in chunks:
                array[start : start + len(chunk)] = chunk
                start += len(chunk)
            array.flush()
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another place") from error


class Clean(Stack):
    """The clean images of a stack, as a stack. Raises `DataError` where nobody knows them."""

    def __init__(self, stack: Stack):
        self._stack, self.shape, self.label = stack, stack.shape, f"{stack.label} without noise"

    def __len__(self) -> int:
        return len(self._stack)

    def read(self, index: int) -> np.ndarray:
        """Image `index` without its noise."""
        image = self._stack.clean(index)
        if image is None:
            raise DataError(f"nobody knows image {index} of {self._stack.label} without its noise")
        return image

    def pixel_size(self, index: int) -> float | None:
        return self._stack.pixel_size(index)

    @property
    def table(self) -> pd.DataFrame | None:
        return self._stack.table

    @property
    def origin(self) -> Mapping[str, str]:
        return self._stack.origin


def facts(summary: Summary) -> dict[str, Any]:
    """A summary as lines of text, by name."""
    height, width = summary.shape
    told = {
        "data": summary.label,
        "images": str(summary.images),
        "size": f"{height} x {width} pixels",
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
