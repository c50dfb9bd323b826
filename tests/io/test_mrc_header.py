"""MRC headers as they are in practice: byte order, signed and unsigned bytes, axes; what was assumed is said once."""

from __future__ import annotations

import gzip
import struct
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryobench.errors import DataError, DataWarning
from cryobench.sources.stacks import File
from cryobench.sources.volume import Volume

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
IMOD = 1146047817
MODES = {"i1": 0, "u1": 0, "i2": 1, "f4": 2, "u2": 6, "f2": 12}
SIGNED, FOUR_BITS = 1, 16
"""Bits of IMOD's flags."""


def write(
    path: Path,
    array: np.ndarray,
    *,
    order: str = "<",
    text: bytes = b"MAP ",
    stamp: bytes | None = None,
    limits: tuple[float, float] = (0, 0),
    imod: tuple[int, int] = (0, 0),
    axes: tuple[int, int, int] = (1, 2, 3),
) -> Path:
    """An MRC file of an array [N, H, W], field by field; its voxels are 1.5 Å."""
    nz, ny, nx = array.shape
    sides = [0, 0, 0]
    for axis, side in zip(axes, (nx, ny, nz), strict=True):
        sides[axis - 1] = side
    header = bytearray(1024)
    mode = MODES[array.dtype.str[1:]]
    struct.pack_into(f"{order}10i", header, 0, nx, ny, nz, mode, 0, 0, 0, *sides)
    struct.pack_into(f"{order}6f", header, 40, *(1.5 * side for side in sides), 90, 90, 90)
    struct.pack_into(f"{order}3i3f", header, 64, *axes, *limits, 0)
    struct.pack_into(f"{order}2i", header, 152, *imod)
    header[208:212] = text
    header[212:216] = {"<": b"\x44\x44\0\0", ">": b"\x11\x11\0\0"}[order] if stamp is None else stamp
    path.write_bytes(bytes(header) + array.astype(array.dtype.newbyteorder(order)).tobytes())
    return path


def read(path: Path) -> np.ndarray:
    stack = File(str(path)).open()
    return stack.read_block(range(len(stack)))


def read_silently(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(path)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_silently(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images(dtype: str = "f4", shape: tuple[int, ...] = (3, 12, 16)) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 20 + 40).clip(0, 99).astype(dtype)


# ---------------------------------------------------------------------------------------------------- byte order


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "f4", "u2", "f2"])
def test_a_standard_header_is_read_as_mrcfile_reads_it_and_without_a_warning(tmp_path, dtype, order):
    path = write(tmp_path / "a.mrcs", images(dtype), order=order)
    np.testing.assert_array_equal(read_silently(path), mrcfile.read(path).astype(np.float32))
    np.testing.assert_array_equal(read_silently(path), images(dtype))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "f4"])
@pytest.mark.parametrize(
    ("text", "stamp", "said"),
    [
        (b"MAP ", b"\x44\0\0\0", r"has an unknown machine stamp \(44 00\)"),
        (b"MAP ", b"\x44\x20\x20\x20", r"has an unknown machine stamp \(44 20\)"),
        (b"MAP ", b"\0\0\0\0", r"has an unknown machine stamp \(00 00\)"),
        (b"\0\0\0\0", b"\0\0\0\0", r"has no map string and an unknown machine stamp \(00 00\)"),
        (b"\0\0\0\0", None, "has no map string"),
        (b"MAP ", "other", r"has the wrong machine stamp"),
    ],
)
@pytest.mark.parametrize("name", ["a.mrcs", "a.mrcs.gz"])
def test_the_byte_order_is_that_of_plausible_sizes_and_mode(tmp_path, order, dtype, text, stamp, said, name):
    if stamp == "other":
        stamp = {"<": b"\x11\x11\0\0", ">": b"\x44\x44\0\0"}[order]
    path = write(tmp_path / "a.mrcs", images(dtype), order=order, text=text, stamp=stamp)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / name
    with pytest.warns(DataWarning, match=f"{said}.*read as {'little' if order == '<' else 'big'}-endian MRC"):
        found = read(path)
    np.testing.assert_array_equal(found, images(dtype))


def test_a_file_without_a_map_string_must_have_the_size_of_its_header(tmp_path):
    path = write(tmp_path / "a.mrcs", images(), text=b"\0\0\0\0", stamp=b"\0\0\0\0")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    assert "it has no map string, and its header (3 x 12 x 16) requires 3328 bytes, the file has 3329" in refused(path)
    path.write_bytes(whole[:-1])
    assert "truncated" in refused(path)
    for foreign in (bytes(5000), b"II*\0" * 1000, np.random.default_rng(0).bytes(5000)):
        path.write_bytes(foreign)
        assert "it has no map string, and its sizes and mode are valid in neither byte order" in refused(path)


def test_a_warning_is_given_once_for_a_folder_of_such_stacks(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.mrcs", images(), stamp=b"\0\0\0\0")
    rows = "".join(f"{k}@{name}.mrcs\n" for name in "abc" for k in (1, 2, 3))
    (tmp_path / "p.star").write_text(f"data_\n\nloop_\n_rlnImageName\n{rows}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read(tmp_path / "p.star")
    (said,) = [str(one.message) for one in caught]
    assert said.startswith(
        f"{tmp_path / 'a.mrcs'} has an unknown machine stamp (00 00); it was read as little-endian MRC"
    )
    np.testing.assert_array_equal(found, np.concatenate([images()] * 3))


@pytest.mark.filterwarnings("ignore")
def test_the_real_stack_of_relion_without_map_string():
    path = SHARED / "relion31_nomap.star"
    if not path.exists():
        pytest.skip(f"real data is not here: {path}")
    stack = File(str(path)).open()
    with mrcfile.open(path.with_suffix(".mrcs"), permissive=True) as file:
        np.testing.assert_array_equal(stack.read_block(range(5)), file.data)
    assert (len(stack), stack.shape, stack.pixel_size(0)) == (5, (256, 256), 2.806)


# ---------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "limits", "imod"),
    [
        ("u1", (0, 0), (IMOD, 0)),
        ("u1", (0, 230), (IMOD, 8)),  # a bit of another meaning
        ("u1", (-5, 100), (IMOD, 0)),  # the stamp decides, not the limits
        ("i1", (0, 0), (IMOD, SIGNED)),
        ("i1", (0, 230), (IMOD, SIGNED | 8)),
        ("i1", (-100, 100), (0, 0)),
        ("i1", (-100, 200), (0, 0)),
        ("i1", (0, 127), (0, 0)),
        ("i1", (0, 0), (0, 0)),  # not filled in
        ("i1", (0, -1), (0, 0)),  # not filled in, as MRC2014 says
        ("i1", (np.nan, np.nan), (0, 0)),
        ("i1", (0, 0), (7, 0)),  # something else in IMOD's place
    ],
)
def test_signed_and_unsigned_bytes(tmp_path, order, dtype, limits, imod):
    values = np.arange(256, dtype=np.uint8).view(dtype).reshape(1, 16, 16)
    path = write(tmp_path / "a.mrcs", values, order=order, limits=limits, imod=imod)
    found = read_silently(path)
    np.testing.assert_array_equal(found, values.astype(np.float32))
    if dtype == "i1":  # all that mrcfile knows
        np.testing.assert_array_equal(found, mrcfile.read(path).reshape(1, 16, 16))


@pytest.mark.parametrize("dims", [2, 3])
def test_bytes_are_unsigned_by_the_maximum_in_the_header_which_is_said(tmp_path, dims):
    values = np.random.default_rng(0).normal(120, 36, (4, 12, 16)).clip(0, 255).round().astype("u1")
    path = write(tmp_path / "a.map", values, limits=(values.min(), values.max()))
    opened = Volume((str(path),)) if dims == 3 else File(str(path), as_stack=True)
    with pytest.warns(DataWarning, match=f"unsigned bytes, because the maximum in its header is {values.max()}"):
        stack = opened.open()
    found = np.stack([stack.read(index) for index in range(len(stack))])
    np.testing.assert_array_equal(found.reshape(values.shape), values)


def test_packed_4_bit_integers_in_bytes_are_refused(tmp_path):
    path = write(tmp_path / "a.mrcs", images("u1"), imod=(IMOD, FOUR_BITS))
    assert "packed 4-bit integers (MRC mode 0)" in refused(path)


# ----------------------------------------------------------------------------------------------------------- axes


def test_images_whose_columns_are_along_y_are_transposed(tmp_path):
    stack = images()
    path = write(tmp_path / "a.mrcs", np.ascontiguousarray(stack.transpose(0, 2, 1)), axes=(2, 1, 3))
    opened = File(str(path)).open()
    assert (opened.shape, opened.pixel_size(0)) == ((12, 16), 1.5)
    np.testing.assert_array_equal(opened.read_block([2, 0, 1]), stack[[2, 0, 1]])


def test_empty_axes_are_the_standard_ones(tmp_path):
    path = write(tmp_path / "a.mrcs", images())
    with path.open("r+b") as file:
        file.seek(64)
        file.write(bytes(12))
    np.testing.assert_array_equal(read_silently(path), images())


def test_a_volume_without_map_string_is_read_in_the_order_of_its_axes(tmp_path):
    volume = images(shape=(4, 5, 6))
    turned = np.ascontiguousarray(volume.transpose(2, 0, 1))  # sections x, rows z, columns y
    path = write(tmp_path / "a.map", turned, axes=(2, 3, 1), order=">", text=bytes(4), stamp=bytes(4))
    with pytest.warns(DataWarning, match="big-endian"):
        stack = Volume((str(path),)).open()
    assert stack.pixel_size(0) == 1.5
    np.testing.assert_array_equal(stack.read(0), volume)
