"""The source `volume`: density maps, such as those of the Electron Microscopy Data Bank.

Opening reads only headers, reading a volume reads only that volume, and reading a window little more than the window:
rows of MRC files, pages of TIFFs, chunks of Zarr, files of sections.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cryobench.core import Shape, Source, Stack, Window
from cryobench.core.source import size_text
from cryobench.errors import DataError, ParameterError
from cryobench.io.fourier_crop import fourier_resize, square_crop
from cryobench.io.image_files import (
    ImageFile,
    ReadImages,
    ReadWindow,
    Voxel,
    changed,
    cubic,
    files_of,
    mrc_header,
    open_mrc,
    open_npy,
)
from cryobench.io.open_files import OpenFiles
from cryobench.io.paths import matching_files, suffix_of
from cryobench.io.tiff import open_tiff
from cryobench.io.zarr_files import open_zarr
from cryobench.limits import check_memory
from cryobench.sources.sections import View, viewed
from cryobench.text import not_finite

SUFFIXES = (".mrc", ".map", ".mrcs", ".npy", ".tif", ".tiff", ".zarr")
_BYTES_PER_VOXEL, _READ_BYTES_PER_VOXEL = 48, 8
"""Peak memory in bytes when a volume is resampled, for each voxel stored and resampled; and when it is read."""


@dataclass(frozen=True)
class Volume(Source):
    """Volumes of MRC maps (one per file, or several as an MRC2014 volume stack), of .npy files [D, H, W] or
    [N, D, H, W], TIFFs with a page for each section, OME-Zarr, or folders with a file for each section.

    Volumes are arrays in the order z, y, x, for any axis order in the header of the map. All must have the same shape.
    Maps with non-cubic voxels are refused, because shells and balls would be ellipsoids.
    """

    path: Annotated[
        tuple[str, ...],
        f"files ({', '.join(SUFFIXES)}; maps also .gz or .bz2), folders of them, or patterns such as maps/*.mrc; "
        "several are separated by commas, in double quotes",
    ]
    size: Annotated[
        int | None, "crop volumes to a cube and resample them in Fourier space to this many voxels a side"
    ] = None
    invert: Annotated[bool, "multiply by -1: contrast inversion"] = False
    sections: Annotated[
        bool, "the files of a folder are the sections of one volume, in the order of the numbers in their names"
    ] = False
    view: Annotated[View, "whole volumes, their sections Y x X as images, or their reslices Z x X as images"] = (
        "volumes"
    )

    def __post_init__(self) -> None:
        if not self.path:
            raise ParameterError("volume: the path is empty; expected a map, such as volume:MAP.mrc")
        if self.size is not None and self.size < 2:
            raise ParameterError(f"volume: size must be at least 2 voxels, got {self.size}")

    def open(self) -> Stack:
        """Open the maps by their headers. Raises `DataError` for a file that cannot be read as volumes."""
        files = self._files()
        if not self.sections:  # of which nothing is known along z
            files = [dataclasses.replace(file, pixel_size=cubic(file.path, file.voxel)) for file in files]
        return viewed(self._volumes(files), self.view)

    def open_anisotropic(self) -> VolumeStack:
        """`open`, with voxels of any shape: their side along x is `pixel_size`, all sides are `VolumeStack.voxel`.

        Raises `ParameterError` for a size or a view.
        """
        if self.size is not None or self.view != "volumes":
            raise ParameterError("volume: size and view are not possible here; give the volume as it is")
        return self._volumes(self._files())

    def _files(self) -> list[ImageFile]:
        paths = [path for text in self.path for path in matching_files(text, SUFFIXES, "maps")]
        return [_joined(Path(self.path[0]), paths)] if self.sections else [_opened(path) for path in paths]

    def _volumes(self, files: list[ImageFile]) -> VolumeStack:
        label = files[0].path.name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        return VolumeStack(self.path[0] if self.sections else label, files, size=self.size, invert=self.invert)


class VolumeStack(Stack):
    """The volumes of one or more files, in the order of the files. Raises `DataError` if their shapes differ.

    size: voxels a side to resample to. invert: multiply by -1.
    """

    def __init__(self, label: str, files: list[ImageFile], *, size: int | None = None, invert: bool = False):
        self.label, self._size, self._invert = label, size, invert
        self._stored: Shape = files[0].shape
        for file in files:
            if file.shape != self._stored:
                raise DataError(
                    f"{files[0].path} holds a volume of {size_text(self._stored)} and {file.path} one of "
                    f"{size_text(file.shape)} voxels; the volumes of a run must have the same shape: run them "
                    "separately"
                )
        self.shape: Shape = self._stored if size is None else (size, size, size)
        self.reads_windows = size is None
        if size is not None:
            needed = _BYTES_PER_VOXEL * (math.prod(self._stored) + math.prod(self.shape))
            self._check_memory(f" at size={size}", needed, "give a smaller size, or other volumes")
        self._volumes = [(file, number) for file in files for number in range(file.count)]
        self._windows: OpenFiles[ReadWindow] = OpenFiles(lambda file: file.open_windows())

    def __len__(self) -> int:
        return len(self._volumes)

    def read(self, index: int) -> np.ndarray:
        """Volume `index`, float32 [D, H, W] (z, y, x), in the units of the file. Raises `DataError` if not finite."""
        self.check(index)
        file, number = self._volumes[index]
        self._check_memory("", _READ_BYTES_PER_VOXEL * math.prod(file.shape), "give a smaller one")
        volume = np.empty(file.shape, np.float32)
        try:
            read = file.open()
        except (OSError, ValueError) as error:  # deleted since its header was read
            raise changed(file.path) from error
        read(number, volume[None])
        self._check_finite(index, volume, "", "leave it out with --images")
        if self._size is not None:
            volume = fourier_resize(square_crop(volume), self._size)
        return -volume if self._invert else volume

    def read_window(self, index: int, window: Window) -> np.ndarray:
        """A window of volume `index`, float32. Without a size, no more is read than the format needs for the window.

        Raises `DataError` if it is not finite.
        """
        if self._size is not None:
            return super().read_window(index, window)
        self.check(index)
        file, number = self._volumes[index]
        part = np.empty([side.stop - side.start for side in window], np.float32)
        self._windows.reader(file.path, lambda: file)(number, window, part)
        place = ", ".join(f"{side.start}:{side.stop}" for side in window)
        self._check_finite(index, part, f" at {place} (z, y, x)", "correct the file")
        return -part if self._invert else part

    def files(self, images: Sequence[int]) -> list[Path] | None:
        """The files of these volumes; None for those of Zarr folders."""
        return files_of(self._volumes[index][0] for index in images)

    def pixel_size(self, index: int) -> float | None:
        """Å per voxel of the volume as read, or None if unknown."""
        self.check(index)
        stored = self._volumes[index][0].pixel_size
        return stored if stored is None or self._size is None else stored * min(self._stored) / self._size

    def voxel(self, index: int) -> Voxel:
        """Å per voxel of the volume in its file along z, y and x."""
        self.check(index)
        return self._volumes[index][0].voxel

    def voxel_size(self, index: int) -> tuple[float, ...] | None:
        """Å per voxel of the volume as read along z, y and x, or None if unknown."""
        z, y, x = self.voxel(index)
        if z is None or y is None or x is None or self._size is not None:
            return super().voxel_size(index)
        return z, y, x

    def _check_memory(self, how: str, needed: int, advice: str) -> None:
        check_memory(f"a volume of {size_text(self._stored)} voxels{how}", needed, advice, DataError)

    def _check_finite(self, index: int, pixels: np.ndarray, where: str, advice: str) -> None:
        bad = int(pixels.size - np.isfinite(pixels).sum())
        if bad:
            path = self._volumes[index][0].path
            raise DataError(f"volume {index} of {self.label} ({path}) has {not_finite(bad)}{where}; {advice}")


def _joined(folder: Path, paths: Sequence[Path]) -> ImageFile:
    """Files of one image each as the sections of one volume, in the order of the numbers in their names. Raises
    `DataError` for files of several images or of different shapes."""
    ordered = sorted(paths, key=lambda path: (*(int(n) for n in re.findall(r"\d+", path.stem)), path.name))
    files = []
    for path in ordered:
        open_one = {".npy": open_npy, ".tif": open_tiff, ".tiff": open_tiff}.get(suffix_of(path))
        file = open_mrc(path, as_stack=True) if open_one is None else open_one(path)
        if file.count != 1 or (files and file.shape != files[0].shape):
            what = f"{file.count} of {size_text(file.shape)}"
            wanted = f"of {size_text(files[0].shape)} as in {files[0].path.name}" if files else ""
            raise DataError(f"{path} has {what} pixels; expected one section {wanted}: leave it out, or resample it")
        files.append(file)

    def open_sections() -> ReadImages:
        def read(first: int, out: np.ndarray) -> None:
            for file, section in zip(files, out[0], strict=True):
                file.open()(0, section[None])

        return read

    def read_window(number: int, window: Window, out: np.ndarray) -> None:
        sections, *sides = window
        for file, section in zip(files[sections], out, strict=True):
            file.open_windows()(0, tuple(sides), section)

    size = files[0].pixel_size
    return ImageFile(folder, 1, (len(files), *files[0].shape), size, open_sections, tuple(ordered),
                     lambda: read_window, (None, size, size))  # fmt: skip


def _opened(path: Path) -> ImageFile:
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} has the unknown suffix {path.suffix!r}; expected {', '.join(SUFFIXES)}, for maps also with .gz or "
            ".bz2"
        )
    openers = {".npy": open_npy, ".tif": open_tiff, ".tiff": open_tiff, ".zarr": open_zarr}
    file = openers[suffix](path, axes=3) if suffix in openers else _opened_map(path)
    if min(file.shape) < 2:
        raise DataError(f"{path} holds a volume of {size_text(file.shape)} voxels; expected at least 2 a side")
    return file


def _opened_map(path: Path) -> ImageFile:
    """An MRC map, its axes in the order z, y, x."""
    file = open_mrc(path, as_stack=True, axes=3)
    if suffix_of(path) == ".mrcs" and not mrc_header(path).is_volume_stack:
        raise DataError(f"{path} is a stack of images by its name and header; give it without volume:")
    return file
