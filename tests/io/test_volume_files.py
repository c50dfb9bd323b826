"""TIFF, OME-TIFF and OME-Zarr: read against what their own libraries wrote, written against what these read."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import zarr

from cryobench.errors import DataError
from cryobench.io.conversion import convert
from cryobench.io.tiff import open_tiff
from cryobench.io.zarr_files import open_zarr
from cryobench.sources.stacks import File
from cryobench.sources.volume import Volume

G = np.random.default_rng(0)
BYTES = G.integers(0, 256, (5, 6, 7), np.uint8)
WORDS = G.integers(0, 65536, (5, 6, 7), np.uint16)
CM = {"resolution": (1e8 / 40, 1e8 / 40), "resolutionunit": "CENTIMETER"}


def all_of(stack):
    return stack.read_block(range(len(stack)))


@pytest.mark.parametrize("values", [BYTES, WORDS, WORDS.astype(np.float32) / 7])
@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"bigtiff": True, "compression": "zlib"}])
def test_a_tiff_is_a_stack_of_images_or_a_volume(tmp_path, values, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", **options, **CM)
    images = File(str(path)).open()
    assert np.array_equal(all_of(images), values.astype(np.float32))
    assert images.pixel_size(3) == pytest.approx(40)
    volume = Volume((str(path),)).open()
    assert volume.shape == (5, 6, 7)
    assert np.array_equal(volume.read(0), values.astype(np.float32))
    assert volume.files([0]) == [path]


@pytest.mark.parametrize(("unit", "size"), [("µm", 0.01), ("nm", 10.0), ("Å", 100.0)])
def test_voxel_sizes_of_ome_tiff(tmp_path, unit, size):
    def write(z):
        metadata = {"axes": "ZYX"}
        for axis, value in (("Z", z), ("Y", size), ("X", size)):
            metadata |= {f"PhysicalSize{axis}": value, f"PhysicalSize{axis}Unit": unit}
        tifffile.imwrite(tmp_path / "a.ome.tif", BYTES, metadata=metadata)
        return str(tmp_path / "a.ome.tif")

    assert Volume((write(size),)).open().pixel_size(0) == pytest.approx(100)
    path = write(4 * size)
    with pytest.raises(DataError, match=r"voxels of 100 x 100 x 400 Å along x, y and z; expected cubes"):
        Volume((path,)).open()
    assert File(path).open().pixel_size(0) == pytest.approx(100)


def test_voxel_sizes_of_imagej(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", WORDS, imagej=True, resolution=(100, 100),
                     metadata={"axes": "ZYX", "unit": "um", "spacing": 0.01})  # fmt: skip
    volume = Volume((f"{tmp_path}/a.tif",)).open()
    assert volume.pixel_size(0) == pytest.approx(100)
    assert np.array_equal(volume.read(0), WORDS.astype(np.float32))


def test_a_tiff_that_is_no_stack_of_grey_images_is_refused_in_one_line(tmp_path):
    def refused(message):
        with pytest.raises(DataError, match=message) as error:
            open_tiff(tmp_path / "a.tif")
        assert "\n" not in str(error.value)

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, G.integers(0, 256, (6, 7, 3), np.uint8), photometric="rgb")
    refused("expected a real number for each pixel: write it without colours")
    tifffile.imwrite(path, BYTES[0], photometric="palette", colormap=G.integers(0, 9, (3, 256), np.uint16))
    refused("a palette of colours; expected a real number")
    with tifffile.TiffWriter(path) as file:
        file.write(BYTES[0])
        file.write(BYTES[0, :4])
    refused("page 2 has 4 x 7 pixels, the first 6 x 7; expected pages of one shape")
    tifffile.imwrite(path, WORDS)
    path.write_bytes(path.read_bytes()[:-50])
    refused("truncated")
    path.write_bytes(b"no picture")
    refused("is damaged or truncated")
    values = np.ones((3, 8, 8), np.float32)
    values[1, 2, 3] = np.nan
    tifffile.imwrite(path, values, photometric="minisblack")
    with pytest.raises(DataError, match="not finite"):
        Volume((str(path),)).open().read(0)


@pytest.mark.parametrize("name", ["b.tif", "b.ome.tif", "b.zarr", "b.npy"])
def test_what_is_written_reads_back_with_its_voxel_size(tmp_path, name):
    tifffile.imwrite(tmp_path / "a.tif", WORDS, imagej=True, resolution=(100, 100),
                     metadata={"axes": "ZYX", "unit": "um", "spacing": 0.01})  # fmt: skip
    for source in (Volume((f"{tmp_path}/a.tif",)), File(f"{tmp_path}/a.tif")):
        convert(source.open(), tmp_path / name)
        again = Volume((f"{tmp_path}/{name}",)).open()
        assert np.array_equal(again.read(0), WORDS.astype(np.float32))
        sized = name == "b.zarr" or (name == "b.ome.tif" and isinstance(source, Volume))
        assert again.pixel_size(0) == (pytest.approx(100) if sized else None)
        if name != "b.npy":
            assert File(f"{tmp_path}/{name}").open().pixel_size(0) == pytest.approx(100)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_large_sections_of_a_zarr_are_in_flat_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("cryobench.io.zarr_files._AT_ONCE", 2 * 6 * 7)
    np.save(tmp_path / "a.npy", WORDS)
    convert(Volume((f"{tmp_path}/a.npy",)).open(), tmp_path / "b.zarr")
    array = zarr.open(tmp_path / "b.zarr")["0"]
    assert array.chunks == (2, 6, 7)
    assert np.array_equal(array[...], WORDS)


def ome(path, values, version, scale, axes, units="nanometer"):
    """An OME-Zarr as the specification has it: 0.4 in Zarr 2, 0.5 in Zarr 3."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    array = group.create_array("s0", shape=values.shape, chunks=tuple(min(n, 3) for n in values.shape),
                               dtype=values.dtype)  # fmt: skip
    array[...] = values
    stated = {"multiscales": [{
        "axes": [{"name": name, "type": "space", "unit": units} for name in axes],
        "datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
        "coordinateTransformations": [{"type": "scale", "scale": [2.0] * len(scale)}],
    }]}  # fmt: skip
    group.attrs.update(stated if version == 2 else {"ome": {"version": "0.5", **stated}})
    return str(path)


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr_of_both_versions(tmp_path, version):
    path = ome(tmp_path / "a.zarr", WORDS[None, None], version, [1, 1, 4.0, 4.0, 4.0], "tczyx")
    volume = Volume((path,)).open()
    assert volume.pixel_size(0) == pytest.approx(80)
    assert np.array_equal(volume.read(0), WORDS.astype(np.float32))
    assert volume.files([0]) is None  # an edit of a chunk does not change the folder
    images = File(path).open()
    assert (len(images), images.shape, images.pixel_size(0)) == (5, (6, 7), pytest.approx(80))
    assert np.array_equal(images.read(3), WORDS[3].astype(np.float32))


def test_sections_of_a_zarr_are_read_alone(tmp_path):
    path = tmp_path / "a.zarr"
    array = zarr.create_array(path, shape=BYTES.shape, chunks=(1, 6, 7), dtype="uint8", zarr_format=2)
    array[...] = BYTES
    # only chunk 2 of the array is left as it was
    for chunk in path.rglob("*"):
        if chunk.is_file() and chunk.name[0].isdigit() and not chunk.name.startswith("2"):
            chunk.write_bytes(b"damaged")
    read = open_zarr(path).open()
    out = np.empty((1, 6, 7), np.float32)
    read(2, out)
    assert np.array_equal(out[0], BYTES[2])
    with pytest.raises(DataError, match="is damaged"):
        read(3, out)


@pytest.mark.parametrize(("values", "axes", "message"), [
    (np.stack([BYTES, BYTES]), "czyx", "2 entries along the axis c; expected one volume"),
    (BYTES, "xyz", "the axes x, y, z; expected z, y and x in this order"),
    (BYTES[0], "yx", "the axes y, x; expected z, y and x"),
    (BYTES.astype(np.complex64), "zyx", "values of type complex64; expected real numbers"),
])  # fmt: skip
def test_other_zarrs_are_refused_in_one_line(tmp_path, values, axes, message):
    path = ome(tmp_path / "a.zarr", values, 3, [1.0] * values.ndim, axes)
    with pytest.raises(DataError, match=message) as error:
        Volume((path,)).open()
    assert "\n" not in str(error.value)


def test_a_zarr_that_is_none_is_refused(tmp_path):
    for name, message in (("none.zarr", "does not exist"), ("a.zarr", "is not a readable OME-Zarr")):
        (tmp_path / "a.zarr").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            open_zarr(tmp_path / name)
    zarr.open_group(tmp_path / "g.zarr", mode="w")
    with pytest.raises(DataError, match="without the metadata of OME-Zarr"):
        open_zarr(tmp_path / "g.zarr")


def test_a_folder_of_numbered_sections_is_a_volume(tmp_path):
    for z, section in enumerate(WORDS):  # 8, 9, 10 ...: not in the order of text
        tifffile.imwrite(tmp_path / f"cell_s{z + 8}.tif", section, **CM)
    volume = Volume((str(tmp_path),), sections=True).open()
    assert np.array_equal(volume.read(0), WORDS.astype(np.float32))
    assert len(volume.files([0])) == 5
    reslices = Volume((str(tmp_path),), sections=True, view="reslices").open()
    assert np.array_equal(all_of(reslices), WORDS.swapaxes(0, 1).astype(np.float32))
    tifffile.imwrite(tmp_path / "cell_s20.tif", WORDS[0, :5])
    with pytest.raises(DataError, match=r"cell_s20.tif has 1 of 5 x 7 pixels; expected one section of 6 x 7"):
        Volume((str(tmp_path),), sections=True).open()
