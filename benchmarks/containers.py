"""Write and read chunks of measurements as .npz, zarr 3 and HDF5: processor time of each, without compression.

uv run --with zarr --with h5py python benchmarks/containers.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CHUNKS, IMAGES, SHAPE = 40, 512, (4, 32, 32)  # 8 MiB each: images of 128 x 128 at C = 4


def seconds(work: Callable[[Path], None], folder: str) -> float:
    """Processor time of a call."""
    start = time.process_time()
    work(Path(folder))
    return time.process_time() - start


def main() -> None:
    """Print a row for each format: the median of five repetitions, and the ratio to .npz."""
    import h5py
    import zarr

    data = np.random.default_rng(0).normal(size=(IMAGES, *SHAPE)).astype(np.float32)
    whole, one = (CHUNKS * IMAGES, *SHAPE), (IMAGES, *SHAPE)
    parts = [slice(chunk * IMAGES, (chunk + 1) * IMAGES) for chunk in range(CHUNKS)]

    def write_npz(folder: Path) -> None:
        for chunk in range(CHUNKS):
            np.savez(folder / f"{chunk}.npz", y=data)

    def read_npz(folder: Path) -> None:
        for chunk in range(CHUNKS):
            with np.load(folder / f"{chunk}.npz") as file:
                assert np.array_equal(file["y"][0], data[0])

    def write_zarr(folder: Path) -> None:
        array = zarr.create_array(store=folder / "z", shape=whole, chunks=one, dtype="f4",
                                  compressors=zarr.codecs.Crc32cCodec())  # fmt: skip
        for part in parts:
            array[part] = data

    def read_zarr(folder: Path) -> None:
        array = zarr.open_array(folder / "z")
        for part in parts:
            assert np.array_equal(np.asarray(array[part])[0], data[0])

    def write_hdf5(folder: Path) -> None:
        with h5py.File(folder / "h.h5", "w") as file:
            array = file.create_dataset("y", whole, "f4", chunks=one, fletcher32=True)
            for part in parts:
                array[part] = data

    def read_hdf5(folder: Path) -> None:
        with h5py.File(folder / "h.h5") as file:
            for part in parts:
                assert np.array_equal(file["y"][part][0], data[0])

    forms = {
        ".npz (CRC-32)": (write_npz, read_npz),
        "zarr 3 (CRC-32C)": (write_zarr, read_zarr),
        "HDF5 (Fletcher-32)": (write_hdf5, read_hdf5),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(5):
        for name, (write, read) in forms.items():
            with tempfile.TemporaryDirectory() as folder:
                times[name].append((seconds(write, folder), seconds(read, folder)))
    medians = {name: np.median(found, axis=0) for name, found in times.items()}
    first = next(iter(medians.values()))
    for name, (writing, reading) in medians.items():
        ratios = f"write {writing / first[0]:.2f}, read {reading / first[1]:.2f}"
        print(f"{name:20} write {writing:.2f} s, read {reading:.2f} s, ratios: {ratios}")


if __name__ == "__main__":
    main()
