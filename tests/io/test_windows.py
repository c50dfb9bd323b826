"""Windows of volumes: the same values as of the whole, and no more is read than the format needs."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
import zarr

from cryobench.core import Stack
from cryobench.errors import DataError
from cryobench.io import image_files
from cryobench.sources.tissue import Tissue
from cryobench.sources.volume import Volume
from cryobench.training.examples import StackExamples

G = np.random.default_rng(0)
WORDS = G.integers(0, 65536, (7, 9, 11), np.uint16)
WINDOWS = [
    (slice(2, 5), slice(1, 7), slice(3, 10)),
    (slice(6, 7), slice(0, 9), slice(0, 11)),
    (slice(0, 7), slice(8, 9), slice(10, 11)),
]


def mrc(path: Path, values: np.ndarray, axes: tuple[int, int, int] = (1, 2, 3)) -> None:
    stored = values.transpose([3 - axis for axis in reversed(axes)])
    with mrcfile.new(path, data=np.ascontiguousarray(stored)) as file:
        file.header.mapc, file.header.mapr, file.header.maps = axes


def sections(folder: Path, values: np.ndarray) -> None:
    folder.mkdir()
    for z, section in enumerate(values):
        tifffile.imwrite(folder / f"s{z + 8}.tif", section)


def packed(path: Path, values: np.ndarray) -> None:
    mrc(path.with_suffix(""), values)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


WRITERS = {
    "a.mrc": mrc,
    "yxz.mrc": lambda path, values: mrc(path, values, (2, 1, 3)),
    "zxy.mrc": lambda path, values: mrc(path, values, (3, 1, 2)),
    "a.mrc.gz": packed,
    "a.npy": np.save,
    "a.tif": lambda path, values: tifffile.imwrite(path, values, photometric="minisblack", compression="zlib"),
    "a.zarr": lambda path, values: zarr.create_array(path, data=values, chunks=(2, 3, 4)),
    "folder": sections,
}


def opened(path: Path, **options) -> Stack:
    return Volume((str(path),), sections=path.name == "folder", **options).open()


@pytest.mark.parametrize("name", WRITERS)
def test_a_window_has_the_values_of_the_whole(tmp_path, name):
    WRITERS[name](tmp_path / name, WORDS)
    volume, inverted = opened(tmp_path / name), opened(tmp_path / name, invert=True)
    assert volume.reads_windows
    for window in WINDOWS:
        found = volume.read_window(0, window)
        assert found.dtype == np.float32
        assert np.array_equal(found, WORDS.astype(np.float32)[window])
        assert np.array_equal(inverted.read_window(0, window), -found)


def test_of_several_volumes_the_right_one_is_read(tmp_path):
    several = G.normal(size=(3, 4, 5, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", several)
    with mrcfile.new(tmp_path / "a.mrcs", data=several):
        pass
    window = (slice(1, 3), slice(0, 5), slice(2, 4))
    for name in ("a.npy", "a.mrcs"):
        for number in range(3):
            assert np.array_equal(opened(tmp_path / name).read_window(number, window), several[number][window])


def test_a_resampled_volume_is_cut_from_the_whole(tmp_path):
    mrc(tmp_path / "a.mrc", G.normal(size=(8, 8, 8)).astype(np.float32))
    volume, window = opened(tmp_path / "a.mrc", size=6), (slice(1, 3), slice(0, 6), slice(2, 4))
    assert not volume.reads_windows
    assert np.array_equal(volume.read_window(0, window), volume.read(0)[window])


@pytest.mark.parametrize(("skipped", "bytes_read"), [(1 << 14, 3 * 6 * 11 * 2), (0, 3 * 6 * 7 * 2)])
def test_of_an_mrc_file_rows_are_read_whole_or_of_long_rows_the_window(tmp_path, monkeypatch, skipped, bytes_read):
    read, preadv = [], os.preadv
    mrc(tmp_path / "a.mrc", WORDS)
    volume = opened(tmp_path / "a.mrc")
    monkeypatch.setattr(image_files, "_SKIPPED", skipped)
    monkeypatch.setattr(os, "preadv", lambda *given: read.append(preadv(*given)) or read[-1])
    assert np.array_equal(volume.read_window(0, WINDOWS[0]), WORDS.astype(np.float32)[WINDOWS[0]])
    assert sum(read) == bytes_read


def test_a_volume_much_larger_than_memory_is_read_by_windows(tmp_path):
    """Sparse files of 800 GB, zero but for one voxel."""
    shape, place = (2000, 20000, 20000), (1500, 12345, 678)
    stored = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.uint8, shape=shape)
    stored[place] = 7
    del stored
    with mrcfile.new(tmp_path / "a.mrc", data=np.zeros((2, 2, 2), np.int8)) as file:
        file.header.nz, file.header.ny, file.header.nx = shape
        file.header.mz, file.header.my, file.header.mx = shape
    with (tmp_path / "a.mrc").open("r+b") as file:
        file.truncate(1024 + int(np.prod(shape, dtype=np.int64)))
        file.seek(1024 + int(np.ravel_multi_index(place, shape)))
        file.write(b"\x07")
    for name in ("a.npy", "a.mrc"):
        volume = opened(tmp_path / name)
        found = volume.read_window(0, tuple(slice(n - 1, n + 3) for n in place))
        assert found[1, 1, 1] == found.sum() == 7
        with pytest.raises(DataError, match=r"a volume of 2000 x 20000 x 20000 voxels needs 6.4 TB of memory"):
            volume.read(0)


def test_of_a_tiff_other_pages_are_not_decoded(tmp_path):
    path = tmp_path / "a.tif"
    WRITERS["a.tif"](path, WORDS)
    with tifffile.TiffFile(path) as file:
        places = [page.dataoffsets[0] for page in file.pages]
    content = bytearray(path.read_bytes())
    for z in (0, 1, 5, 6):
        content[places[z] : places[z] + 4] = b"\xff" * 4
    path.write_bytes(content)
    volume = opened(path)
    assert np.array_equal(volume.read_window(0, WINDOWS[0]), WORDS.astype(np.float32)[WINDOWS[0]])
    with pytest.raises(DataError, match="damaged"):
        volume.read_window(0, WINDOWS[1])


def test_of_a_zarr_other_chunks_are_not_read(tmp_path):
    path = tmp_path / "a.zarr"
    array = zarr.create_array(path, shape=(8, 9, 12), chunks=(2, 3, 4), dtype="uint8", zarr_format=2)
    array[...] = values = G.integers(1, 256, (8, 9, 12), np.uint8)
    kept = {f"{z}.{y}.{x}" for z in (1, 2) for y in (0,) for x in (1, 2)}
    for chunk in path.rglob("*.*.*"):
        if chunk.name not in kept:
            chunk.write_bytes(b"damaged")
    window = (slice(2, 6), slice(1, 3), slice(4, 9))
    assert np.array_equal(opened(path).read_window(0, window), values.astype(np.float32)[window])
    with pytest.raises(DataError, match="is damaged"):
        opened(path).read_window(0, (slice(2, 7), *window[1:]))


def test_of_a_folder_other_sections_are_not_opened(tmp_path):
    sections(tmp_path / "folder", WORDS)
    volume = opened(tmp_path / "folder")
    for z in (0, 1, 5, 6):
        (tmp_path / "folder" / f"s{z + 8}.tif").unlink()
    assert np.array_equal(volume.read_window(0, WINDOWS[0]), WORDS.astype(np.float32)[WINDOWS[0]])


def test_only_the_window_must_be_finite(tmp_path):
    values = np.ones((4, 5, 6), np.float32)
    values[1, 2, 3] = np.inf
    np.save(tmp_path / "a.npy", values)
    volume = opened(tmp_path / "a.npy")
    assert volume.read_window(0, (slice(1, 2), slice(0, 2), slice(0, 6))).sum() == 12
    with pytest.raises(DataError, match=r"a.npy.* has 1 value that is not finite"):
        volume.read_window(0, (slice(0, 2), slice(0, 3), slice(3, 4)))


def test_a_file_that_vanished_is_an_error(tmp_path):
    mrc(tmp_path / "a.mrc", WORDS)
    volume = opened(tmp_path / "a.mrc")
    (tmp_path / "a.mrc").unlink()
    with pytest.raises(DataError, match="changed while it was in use"):
        volume.read_window(0, WINDOWS[0])


@pytest.mark.parametrize("view", ["sections", "reslices"])
def test_training_windows_of_planes_are_read_alone(tmp_path, monkeypatch, view):
    mrc(tmp_path / "a.mrc", WORDS)
    stack = opened(tmp_path / "a.mrc", view=view)
    planes = [stack.read(index) for index in range(len(stack))]
    stack = opened(tmp_path / "a.mrc", view=view)
    monkeypatch.setattr("cryobench.sources.volume.VolumeStack.read", None)
    window = (slice(2, 6), slice(1, 9))
    for index, plane in enumerate(planes):
        (found,) = StackExamples(stack).read(index, window)
        assert np.array_equal(found, plane[window])


def test_planes_of_a_volume_that_is_made_as_a_whole_are_cut_from_it():
    stack = Tissue(depth=8, size=16, view="reslices").open()
    window = (slice(2, 6), slice(1, 9))
    assert np.array_equal(stack.read_window(3, window), Tissue(depth=8, size=16).open().read(0)[:, 3][window])


def test_clean_images_are_cut_too():
    class Both(Stack):
        shape, label = (4, 5), "both"

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> np.ndarray:
            return np.arange(20, dtype=np.float32).reshape(4, 5)

        def clean(self, index: int) -> np.ndarray:
            return -self.read(index)

    window = (slice(1, 3), slice(2, 5))
    noisy, clean = StackExamples(Both(), clean=True).read(0, window)
    assert np.array_equal(noisy, Both().read(0)[1:3, 2:5])
    assert np.array_equal(clean, -noisy)
