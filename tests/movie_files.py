"""Writers of movies for tests, independent of the readers."""

from __future__ import annotations

import struct
from pathlib import Path

import mrcfile
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE


def write_mrc(path: Path, frames: np.ndarray, pixel_size: float = 1.0) -> Path:
    """An MRC stack of the type of the frames."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(frames)
        if frames.ndim == 3:
            file.set_image_stack()
        file.voxel_size = pixel_size
    return path


def write_packed(path: Path, frames: np.ndarray) -> Path:
    """An MRC file of mode 101: two pixels a byte, the first in the low bits, rows padded to whole bytes."""
    count, height, width = frames.shape
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nx"], header["ny"], header["nz"], header["mode"] = width, height, count, 101
    header["mapc"], header["mapr"], header["maps"], header["map"] = 1, 2, 3, b"MAP "
    header["machst"] = [0x44, 0x44, 0, 0]
    data = bytearray()
    for row in frames.reshape(-1, width):
        values = [*map(int, row), 0]
        data += bytes(values[x] | values[x + 1] << 4 for x in range(0, width, 2))
    path.write_bytes(header.tobytes() + bytes(data))
    return path


def write_tiff(path: Path, frames: np.ndarray, compression: str | None = "lzw", **options) -> Path:
    import tifffile

    tifffile.imwrite(path, frames, compression=compression, photometric="minisblack", metadata=None, **options)
    return path


def eer_frame(counts: np.ndarray, skip_bits: int, sub_pixel: int) -> bytes:
    """Electron events of a frame: for each the number of pixels without one before it, then 4 bits of the sub-pixel.

    The largest number skips as many pixels without an event. Bits are filled from the lowest. (EER file format
    documentation 3.0, section 4.)
    """
    codes: list[tuple[int, int]] = []
    largest, position = 2**skip_bits - 1, 0
    for place in np.flatnonzero(counts):
        gap = int(place) - position
        codes += [(largest, skip_bits)] * (gap // largest)
        codes += [(gap % largest, skip_bits), (sub_pixel, 4)]
        position = int(place) + 1
    left = counts.size - position  # the last code ends the frame
    codes += [(largest, skip_bits)] * (left // largest) + [(left % largest, skip_bits)]
    number, length = 0, 0
    for value, bits in codes:
        number |= value << length
        length += bits
    return number.to_bytes(2 * (length // 16 + 2), "little")  # an even number of bytes, with some to spare


def write_eer(path: Path, frames: np.ndarray, compression: int = 65001, pixel_size: float = 0.75) -> Path:
    """A BigTIFF of electron events, a frame (0 or 1 for each pixel) a page."""
    metadata = (
        f'<metadata><item name="sensorPixelSize.width" unit="m">{pixel_size * 1e-10!r}</item></metadata>'.encode()
    )
    data = bytearray(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
    pointer = 8
    for number, frame in enumerate(frames):
        strip = eer_frame(frame, 7 if compression == 65001 else 8, number % 16)
        start = len(data)
        data += strip + metadata
        height, width = frame.shape
        entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 1), (259, 3, 1, compression), (262, 3, 1, 1),
                   (273, 16, 1, start), (277, 3, 1, 1), (278, 4, 1, height), (279, 16, 1, len(strip)),
                   (65001, 7, len(metadata), start + len(strip))]  # fmt: skip
        struct.pack_into("<Q", data, pointer, len(data))
        data += struct.pack("<Q", len(entries)) + b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
        pointer = len(data)
        data += bytes(8)
    path.write_bytes(bytes(data))
    return path


def counts(shape: tuple[int, ...], mean: float = 1.0, seed: int = 0) -> np.ndarray:
    """Poisson counts as uint8."""
    return np.random.default_rng(seed).poisson(mean, shape).astype(np.uint8)
