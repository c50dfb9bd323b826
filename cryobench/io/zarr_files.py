"""OME-Zarr images and plain Zarr arrays of three axes, of Zarr versions 2 and 3: opened by their metadata, read lazily.

The metadata are those of OME-NGFF 0.4 and 0.5 (Moore et al. 2023, Histochem. Cell Biol. 160:223): of several
resolutions the first, the finest, is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cryobench.core import Shape, Stack, Window
from cryobench.core.source import size_text
from cryobench.errors import DataError, DependencyError, described
from cryobench.io.image_files import ImageFile, ReadImages, check_file
from cryobench.io.tiff import ANGSTROM
from cryobench.io.writing import sections_shape

SUFFIX = ".zarr"
_SPACE = ("z", "y", "x")
_CHUNK = 64
"""Voxels a side of the chunks of volumes that are written. Those of large sections have as many voxels and are flatter,
because the sections of a chunk are in memory at once."""
_AT_ONCE = 2**22
"""Voxels of the sections of a chunk, if it is flatter."""


def zarr(path: Path) -> ModuleType:
    """The module that reads Zarr. Raises `DependencyError`, which names the file, without it."""
    try:
        import zarr
    except Exception as error:  # incompatible builds of its dependencies raise more than ImportError
        raise DependencyError(f"{path}: Zarr needs the package zarr: pip install 'cryobench[volumes]'") from error
    return zarr


def open_zarr(path: Path, *, axes: int = 2) -> ImageFile:
    """Open a Zarr by its metadata: its sections across z as images, or with axes=3 one volume.

    Reading images or a window reads the chunks that contain them alone. Raises `DataError` for several channels or
    times, and for arrays that are not three-dimensional or not of real numbers; `DependencyError` without the package
    zarr.
    """
    library = zarr(path)
    if not path.is_dir():
        check_file(path, "Zarr folder")
        raise DataError(f"{path} is a file; a Zarr is a folder: unpack it, or give another")
    try:
        node = library.open(str(path), mode="r")
        array, voxel = (node, {}) if hasattr(node, "shape") else _finest(path, node)
        names = voxel.pop("axes", None)
    except DataError:
        raise
    except Exception as error:  # the package raises many kinds of errors for damaged metadata
        raise DataError(f"{path} is not a readable OME-Zarr: {described(error)}; copy it again") from error
    names = names or [*["?"] * (array.ndim - 3), *_SPACE[-min(array.ndim, 3) :]]
    for name, n in zip(names, array.shape, strict=False):
        if name not in _SPACE and n != 1:
            raise DataError(f"{path} has {n} entries along the axis {name}; expected one volume: give an array of one")
    if [name for name in names if name in _SPACE] != list(_SPACE) or len(names) != array.ndim:
        raise DataError(f"{path} has the axes {', '.join(map(str, names))}; expected z, y and x in this order")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path} holds values of type {array.dtype}; expected real numbers, such as uint8")
    shape = tuple(int(n) for name, n in zip(names, array.shape, strict=True) if name in _SPACE)
    if min(shape) < 1:
        raise DataError(f"{path} holds no voxels: its shape is {size_text(shape)}")
    lead = tuple(0 if name not in _SPACE else slice(None) for name in names)
    z = lead.index(slice(None))

    def read_sections(first: int, out: np.ndarray) -> None:
        out[...] = _chosen(path, array, (*lead[:z], slice(first, first + len(out)), *lead[z + 1 :]))

    def read_volume(first: int, out: np.ndarray) -> None:
        read_sections(0, out[0])

    def read_window(number: int, window: Window, out: np.ndarray) -> None:
        sides = dict(zip(_SPACE, window, strict=True))
        out[...] = _chosen(path, array, tuple(sides.get(name, 0) for name in names))

    sizes = voxel.get("z"), voxel.get("y"), voxel.get("x")
    if axes == 3:
        return ImageFile(path, 1, shape, sizes[2], lambda: read_volume, windows=lambda: read_window, voxel=sizes)
    reader: ReadImages = read_sections
    return ImageFile(path, shape[0], shape[1:], sizes[2], lambda: reader)


def _chosen(path: Path, array: Any, where: tuple[Any, ...]) -> np.ndarray:
    try:
        return array[where]
    except Exception as error:  # codecs raise many kinds of errors for damaged chunks
        raise DataError(f"{path} is damaged: {described(error)}; copy it again") from error


def _finest(path: Path, group: Any) -> tuple[Any, dict[str, Any]]:
    """The array of the finest resolution of an OME-Zarr group; the names of its axes, and Å per voxel by axis."""
    stated: Mapping[str, Any] = dict(group.attrs)
    images = stated.get("ome", stated).get("multiscales")
    if not images:
        raise DataError(f"{path} is a Zarr group without the metadata of OME-Zarr; give the array in it")
    image, finest = images[0], images[0]["datasets"][0]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", ())]
    steps = [
        change["scale"]
        for place in (image, finest)
        for change in place.get("coordinateTransformations", ())
        if change.get("type") == "scale"
    ]
    found: dict[str, Any] = {"axes": [axis["name"] for axis in axes] or None}
    for i, axis in enumerate(axes):
        unit = ANGSTROM.get(axis.get("unit", ""))
        if steps and unit is not None:
            found[axis["name"]] = float(np.prod([step[i] for step in steps])) * unit
    return group[finest["path"]], found


def write_zarr(
    files: Sequence[Path], path: Path, chunks: Iterator[np.ndarray], stack: Stack, numbers: Sequence[int]
) -> None:
    """Write chunks [n, *shape] as the float32 array of an OME-Zarr 0.5 folder, to files[0]: one volume, or images as
    its sections. Raises `DataError` for several volumes, `DependencyError` without the package zarr."""
    library = zarr(path)
    shape = sections_shape(path, stack, numbers, "an OME-Zarr")
    voxel = stack.voxel_size(numbers[0])
    group = library.open_group(str(files[0]), mode="w", zarr_format=3)
    pieces = _chunk_shape(shape) if len(stack.shape) == 3 else (1, *shape[1:])
    array = group.create_array("0", shape=shape, chunks=pieces, dtype="float32", dimension_names=list(_SPACE))
    start = 0
    for sections in _regrouped((chunk.reshape(-1, *shape[1:]) for chunk in chunks), pieces[0]):
        array[start : start + len(sections)] = sections
        start += len(sections)
    scale = [1.0] * 3 if voxel is None else [*[voxel[0]] * (3 - len(voxel)), *voxel]
    unit = {} if voxel is None else {"unit": "angstrom"}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{"name": name, "type": "space", **unit} for name in _SPACE],
                "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
            }
        ],
    }


def _chunk_shape(shape: Shape) -> Shape:
    """The shape of the chunks of a volume."""
    depth = max(1, min(_CHUNK, _AT_ONCE // (shape[1] * shape[2])))
    side = round((_CHUNK**3 / depth) ** 0.5)
    return min(shape[0], depth), min(shape[1], side), min(shape[2], side)


def _regrouped(chunks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The sections of chunks [n, H, W] in blocks of `size`, so that each chunk of a Zarr is written once."""
    waiting: list[np.ndarray] = []
    for section in (section for chunk in chunks for section in chunk):
        waiting.append(section)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
