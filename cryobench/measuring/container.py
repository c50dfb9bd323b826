"""Measurements as a folder of chunks, which are written and read one at a time, by one process or many.

    OUT/measurements.json    specs, seed, scale and shapes; written first, complete before any chunk
    OUT/drawn.npz            the operator's random arrays, which serve all images
    OUT/images.parquet       a row per image: id, pixel size and RELION's columns
    OUT/chunks/000012.npz    y, sigma, offset and factor of the images of chunk 12

Every file appears complete or not at all, and the zip format of a chunk has a CRC-32 of each array, which is checked at
reading. A container without some of its chunks is incomplete; the command that wrote it completes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cryobench.core import Scale, Shape
from cryobench.errors import DataError, described, reason_of, shortened
from cryobench.files import check_writable_folder, output_file, read_bounded, remove_unfinished
from cryobench.measuring.measurements import Measurements
from cryobench.runner.checks import batches

VERSION = 3
"""Version of the format; 1 and 2 are those of a single .npz."""
MANIFEST, DRAWN, TABLE, CHUNKS = "measurements.json", "drawn.npz", "images.parquet", "chunks"
CHUNK_BYTES = 32 * 2**20
"""Approximate size of the float32 images of a chunk."""
ALIGNED = 64
"""Chunks have a multiple of so many images where they have more, so that they do not cut batches."""
LARGEST = 2**24
"""Bytes of the largest manifest that is read."""
_ID, _PIXEL_SIZE = "cryobench_image", "cryobench_pixel_size_angstrom"
_ARRAYS = ("y", "sigma", "offset", "factor")


def default_chunk(shape: Shape) -> int:
    """Images of a chunk for images of this shape: about `CHUNK_BYTES`."""
    fitting = max(1, CHUNK_BYTES // (4 * int(np.prod(shape))))
    return fitting if fitting < ALIGNED else fitting // ALIGNED * ALIGNED


@dataclass(frozen=True)
class Manifest:
    """What a container holds. images: their number. chunk: images of a chunk. fingerprint: of what was measured."""

    operator: str
    noise: str
    seed: int
    scaling: str
    range: tuple[float, float] | None
    image_shape: Shape
    measurement_shape: Shape
    images: int
    chunk: int
    fingerprint: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of everything but `about`, as 64 hex digits."""
        fields = {name: value for name, value in asdict(self).items() if name != "about"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Container:
    """An open container. Chunks are numbered from 0; all have `manifest.chunk` images but the last."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest

    @property
    def digest(self) -> str:
        """Identifies the measurements."""
        return self.manifest.digest

    @property
    def image_shape(self) -> Shape:
        return self.manifest.image_shape

    @cached_property
    def parts(self) -> list[slice]:
        """The images of each chunk."""
        return batches(self.manifest.images, self.manifest.chunk)

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / CHUNKS / f"{chunk:06d}.npz"

    def missing(self) -> list[int]:
        """The chunks that are not written."""
        written = {path.name for path in (self.folder / CHUNKS).glob("*.npz")}
        return [chunk for chunk in range(len(self.parts)) if self.path(chunk).name not in written]

    def check_complete(self) -> None:
        """Raise `DataError` if chunks are missing."""
        missing = self.missing()
        if missing:
            first = self.parts[missing[0]]
            raise DataError(
                f"{self.folder} is incomplete: {len(missing)} of {len(self.parts)} chunks are missing, the first of "
                f"images {first.start} to {first.stop - 1}; run the `cryobench measure` command that wrote it again"
            )

    @cached_property
    def _images(self) -> pd.DataFrame:
        path = self.folder / TABLE
        try:
            frame = pd.read_parquet(path)
        except Exception as error:  # from pyarrow or the disk
            raise DataError(f"{path} cannot be read: {described(error)}; measure again with --force") from error
        if len(frame) != self.manifest.images or not {_ID, _PIXEL_SIZE} <= set(frame.columns):
            raise DataError(f"{path} does not have the {self.manifest.images} images of {MANIFEST}; measure again "
                            "with --force")  # fmt: skip
        return frame

    @cached_property
    def drawn(self) -> dict[str, torch.Tensor]:
        """The operator's random arrays."""
        return {name: torch.from_numpy(array) for name, array in _arrays(self.folder / DRAWN).items()}

    def ids(self, part: slice = slice(None)) -> tuple[str, ...]:
        """The ids of images."""
        return tuple(self._images[_ID].iloc[part].astype(str))

    def pixel_sizes(self, part: slice = slice(None)) -> tuple[float | None, ...]:
        """Å per pixel of images, None where it is unknown."""
        sizes = self._images[_PIXEL_SIZE].iloc[part].tolist()
        return tuple(None if size is None or size != size else float(size) for size in sizes)

    def table(self, part: slice = slice(None)) -> pd.DataFrame | None:
        """The metadata of images; None if there is none."""
        frame = self._images.drop(columns=[_ID, _PIXEL_SIZE]).iloc[part].reset_index(drop=True)
        return frame if len(frame.columns) else None

    def read(self, chunk: int) -> Measurements:
        """The measurements of a chunk. Raises `DataError` for a missing or damaged one."""
        path, part, manifest = self.path(chunk), self.parts[chunk], self.manifest
        if not path.exists():
            self.check_complete()
        arrays = _arrays(path)
        count = part.stop - part.start
        shapes = {name: (count, *(manifest.measurement_shape if name == "y" else ())) for name in _ARRAYS}
        found = {name: array.shape for name, array in arrays.items()}
        if found != shapes or any(array.dtype.kind != "f" or not np.isfinite(array).all() for array in arrays.values()):
            raise DataError(f"{path} does not hold the finite arrays {shapes}; delete it, and run the `cryobench "
                            "measure` command that wrote it again")  # fmt: skip
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Measurements(
            y=tensors["y"],
            sigma=tensors["sigma"],
            image_shape=manifest.image_shape,
            operator=manifest.operator,
            noise=manifest.noise,
            seed=manifest.seed,
            drawn=self.drawn,
            scale=Scale(tensors["offset"], tensors["factor"], manifest.range, manifest.scaling),
            pixel_size=self.pixel_sizes(part),
            image_ids=self.ids(part),
            table=self.table(part),
            about=manifest.about,
        )

    def remove_unfinished(self) -> None:
        """Remove what killed processes left; for a complete container, to which no other process writes."""
        remove_unfinished(self.folder, (MANIFEST, DRAWN, TABLE))
        remove_unfinished(self.folder / CHUNKS, {self.path(chunk).name for chunk in range(len(self.parts))})

    def remove(self) -> None:
        """Delete its files, the manifest first, and nothing else in the folder."""
        for file in [self.folder / name for name in (MANIFEST, DRAWN, TABLE)] + list((self.folder / CHUNKS).glob("*")):
            file.unlink(missing_ok=True)

    def write(self, chunk: int, measured: Measurements) -> None:
        """Write a chunk. Raises `ResultsError` if that is impossible."""
        _save(self.path(chunk), {"y": measured.y, "sigma": measured.sigma, "offset": measured.scale.offset,
                                 "factor": measured.scale.factor})  # fmt: skip


def image_table(ids: Sequence[str], pixel_sizes: Sequence[float | None], table: pd.DataFrame | None) -> pd.DataFrame:
    """The table of a container: ids, pixel sizes and the metadata of its images."""
    own = pd.DataFrame({_ID: list(ids), _PIXEL_SIZE: np.array(pixel_sizes, dtype=np.float64)})
    return own if table is None else pd.concat([own, table.reset_index(drop=True)], axis=1)


def create(folder: Path, manifest: Manifest, drawn: Mapping[str, torch.Tensor], images: pd.DataFrame) -> Container:
    """A new container without chunks. images: see `image_table`. Raises `ResultsError` if it cannot be written."""
    check_writable_folder(folder / CHUNKS, "measurements", "--out")
    with output_file(folder / TABLE) as temporary:
        images.to_parquet(temporary)
    _save(folder / DRAWN, drawn)
    with output_file(folder / MANIFEST) as temporary:  # last: a folder without it is not a container
        text = json.dumps({"version": VERSION} | asdict(manifest), indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8")
    return Container(folder, manifest)


def open_container(folder: Path) -> Container:
    """The container in a folder. Raises `DataError` if there is none, or one of another version."""
    path = folder / MANIFEST
    try:
        fields = json.loads(read_bounded(path, LARGEST))
        version = fields.pop("version")
        if version != VERSION:
            raise DataError(f"{path} is of version {version!r}, and this version of cryobench reads {VERSION}; "
                            "measure again")  # fmt: skip
        return Container(folder, _checked(Manifest(**fields)))
    except FileNotFoundError as error:
        raise DataError(f"{folder} has no {MANIFEST}; expected what `cryobench measure` writes") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {shortened(reason_of(error))}; measure again with --force") from error


def _checked(manifest: Manifest) -> Manifest:
    """The manifest with tuples for lists. Raises `ValueError` for values that do not make sense."""
    for name in ("operator", "noise", "scaling", "fingerprint"):
        if not isinstance(getattr(manifest, name), str):
            raise ValueError(f"{name} is not text")
    image_shape, measurement_shape = (tuple(getattr(manifest, f"{of}_shape")) for of in ("image", "measurement"))
    counts = (manifest.images, manifest.chunk, *image_shape, *measurement_shape)
    if not all(type(count) is int and count > 0 for count in counts):
        raise ValueError("images, chunk and the shapes must be positive integers")
    if type(manifest.seed) is not int or not isinstance(manifest.about, dict):
        raise ValueError("seed is not an integer, or about is not an object")
    limits = None if manifest.range is None else (float(manifest.range[0]), float(manifest.range[1]))
    if limits is not None and not -np.inf < limits[0] < limits[1] < np.inf:
        raise ValueError("range is not an interval")
    return replace(manifest, image_shape=image_shape, measurement_shape=measurement_shape, range=limits)


def _save(path: Path, arrays: Mapping[str, torch.Tensor]) -> None:
    named: dict[str, Any] = {name: array.cpu().numpy() for name, array in arrays.items()}
    with output_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **named)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, whose checksums are compared. Raises `DataError`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy and zipfile raise many kinds of errors
        raise DataError(
            f"{path} is damaged ({shortened(reason_of(error))}); delete it, and run the `cryobench measure` command "
            "that wrote it again"
        ) from error
