"""The source `volume`: maps are read as arrays z, y, x with their voxel size; others are refused in one line."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryobench.errors import DataError, ParameterError
from cryobench.io.summary import summarise, summary_lines
from cryobench.registry import installed
from cryobench.sources.stacks import File
from cryobench.sources.volume import VolumeStack


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_map(path: Path, volume: np.ndarray, voxel_size: float | tuple[float, float, float] = 1.5) -> Path:
    with mrcfile.new(path, data=volume, overwrite=True) as file:
        file.voxel_size = voxel_size
    return path


def opened(text: Path | str) -> VolumeStack:
    return installed().make("sources", f"volume:{text}").open()


def read_all(text: Path | str) -> None:
    stack = opened(text)
    for index in range(len(stack)):
        stack.read(index)


def refused(text: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read_all(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.mrc", "a.map", "a.MRC", "a.mrc.gz", "a.map.gz", "a.mrc.bz2"])
def test_a_map_is_one_volume_in_the_order_z_y_x(tmp_path, name):
    volume = noise(4, 5, 6)
    plain = write_map(tmp_path / "plain.mrc", volume).read_bytes()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(plain))
    stack = opened(tmp_path / name)
    assert (len(stack), stack.shape, stack.label) == (1, (4, 5, 6), name)
    assert stack.pixel_size(0) == pytest.approx(1.5)
    assert stack.read(0).dtype == np.float32
    np.testing.assert_array_equal(stack.read(0), volume)


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1), (0, 0, 0)])
def test_stored_axes_are_put_in_the_order_z_y_x(tmp_path, axes):
    volume = noise(4, 5, 6)  # z, y, x
    columns_rows_sections = axes if any(axes) else (1, 2, 3)
    stored = volume.transpose([3 - axis for axis in reversed(columns_rows_sections)])
    with mrcfile.new(tmp_path / "a.mrc", data=np.ascontiguousarray(stored)) as file:
        file.header.mapc, file.header.mapr, file.header.maps = axes
        file.header.mx, file.header.my, file.header.mz = 6, 5, 4
        file.header.cella = (12, 10, 8)
    stack = opened(tmp_path / "a.mrc")
    assert (stack.shape, stack.pixel_size(0)) == ((4, 5, 6), 2.0)
    np.testing.assert_array_equal(stack.read(0), volume)


def test_axes_that_are_not_a_permutation_are_refused(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc", data=noise(4, 4, 4)) as file:
        file.header.mapc = 2
    assert "its axes are [2, 2, 3]" in refused(tmp_path / "a.mrc")


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 1, 4, 5, 6)])
def test_npy_volumes(tmp_path, shape):
    volumes = noise(*shape)
    np.save(tmp_path / "a.npy", volumes)
    stack = opened(tmp_path / "a.npy")
    assert (len(stack), stack.shape, stack.pixel_size(1)) == (2, (4, 5, 6), None)
    np.testing.assert_array_equal(stack.read(1), volumes.reshape(2, 4, 5, 6)[1])
    np.save(tmp_path / "one.npy", volumes.reshape(2, 4, 5, 6)[0])
    assert len(opened(tmp_path / "one.npy")) == 1


def test_a_volume_stack_has_several_volumes(tmp_path):
    volumes = noise(3, 4, 5, 6)
    path = write_map(tmp_path / "a.mrcs", volumes, 2.5)
    stack = opened(path)
    assert (len(stack), stack.shape, stack.pixel_size(2)) == (3, (4, 5, 6), 2.5)
    np.testing.assert_array_equal(stack.read(2), volumes[2])
    with pytest.raises(DataError, match="--data volume:"):
        File(str(path)).open()


def test_several_maps_by_list_folder_and_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    maps = {name: noise(4, 4, 4, seed=seed) for seed, name in enumerate(("b.mrc", "a.mrc", "c.map"))}
    for name, volume in maps.items():
        write_map(tmp_path / name, volume, 1.0 + len(name))
    (tmp_path / "notes.txt").write_text("")
    for text, names in (
        ('"b.mrc,a.mrc"', ["b.mrc", "a.mrc"]),
        (".", ["a.mrc", "b.mrc", "c.map"]),
        (tmp_path, ["a.mrc", "b.mrc", "c.map"]),
        ("*.mrc", ["a.mrc", "b.mrc"]),
        (f"{tmp_path}/*.mrc", ["a.mrc", "b.mrc"]),
        ('"c.map,*.mrc"', ["c.map", "a.mrc", "b.mrc"]),
    ):
        stack = opened(text)
        assert len(stack) == len(names)
        for index, name in enumerate(names):
            np.testing.assert_array_equal(stack.read(index), maps[name])
        assert stack.label == f"{names[0]} and {len(names) - 1} more"


def test_only_the_selected_volumes_are_read(tmp_path):
    write_map(tmp_path / "a.mrc", noise(4, 4, 4))
    broken = noise(4, 4, 4)
    broken[0, 1, 2] = np.inf
    np.save(tmp_path / "b.npy", broken)
    stack = opened(tmp_path)
    assert np.isfinite(stack.read(0)).all()
    with pytest.raises(DataError, match=r"volume 1 of .*b.npy.* has 1 value that is not finite"):
        stack.read(1)


def test_contrast_inversion_and_resampling_in_fourier_space(tmp_path):
    z, y, x = np.mgrid[:16, :16, :16] / 16
    wave = (2 + np.cos(2 * np.pi * (x + 2 * y - z) + 0.3)).astype(np.float32)
    path = write_map(tmp_path / "a.mrc", wave, 1.5)
    np.testing.assert_array_equal(opened(f"{path},invert=true").read(0), -wave)
    smaller, larger = opened(f"{path},size=8"), opened(f"{path},size=24")
    assert (smaller.shape, smaller.pixel_size(0)) == ((8, 8, 8), 3.0)
    np.testing.assert_allclose(smaller.read(0), wave[::2, ::2, ::2], atol=1e-5)
    np.testing.assert_allclose(larger.read(0)[::3, ::3, ::3], wave[::2, ::2, ::2], atol=1e-5)
    slab = write_map(tmp_path / "slab.mrc", wave[4:12], 1.5)
    assert opened(f"{slab},size=8").pixel_size(0) == pytest.approx(1.5)
    np.testing.assert_array_equal(opened(f"{slab},size=8").read(0), wave[4:12, 4:12, 4:12])


def test_voxels_must_be_cubes(tmp_path):
    message = refused(write_map(tmp_path / "a.mrc", noise(4, 4, 4), (1.0, 1.0, 2.0)))
    assert "voxels of 1 x 1 x 2 Å" in message
    # a cell of 4 voxels of 1.06 Å, rounded
    stack = opened(write_map(tmp_path / "b.mrc", noise(4, 4, 4), (1.06, 1.06, 1.0602)))
    assert stack.pixel_size(0) == pytest.approx(1.06)
    assert opened(write_map(tmp_path / "c.mrc", noise(4, 4, 4), 0)).pixel_size(0) is None


def test_files_that_are_not_volumes_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_map(tmp_path / "a.mrc", noise(4, 4, 4))
    write_map(tmp_path / "b.mrc", noise(4, 4, 5))
    assert "a.mrc holds a volume of 4 x 4 x 4 and b.mrc one of 4 x 4 x 5 voxels" in refused('"a.mrc,b.mrc"')
    (tmp_path / "short.mrc").write_bytes((tmp_path / "a.mrc").read_bytes()[:-4])
    assert "truncated" in refused("short.mrc")
    assert "does not exist" in refused("nowhere.mrc")
    assert "no file matches x*.mrc" in refused("x*.mrc")
    (tmp_path / "empty").mkdir()
    assert "has no maps" in refused("empty")
    (tmp_path / "a.txt").write_text("a.mrc")
    assert "unknown suffix '.txt'" in refused("a.txt")
    np.save(tmp_path / "image.npy", noise(4, 4))
    assert "one volume [D, H, W] or several" in refused("image.npy")
    write_map(tmp_path / "flat.mrc", noise(1, 4, 4))
    assert "at least 2 a side" in refused("flat.mrc")
    with mrcfile.new("images.mrcs", data=noise(3, 4, 4)) as file:
        file.set_image_stack()
    assert "is a stack of images" in refused("images.mrcs")
    for spec in ('volume:""', "volume:a.mrc,size=1"):
        with pytest.raises(ParameterError, match="volume:"):
            installed().make("sources", spec)


def test_a_file_that_vanishes_after_opening(tmp_path):
    stack = opened(write_map(tmp_path / "a.mrc", noise(4, 4, 4)))
    (tmp_path / "a.mrc").unlink()
    with pytest.raises(DataError, match="changed while it was in use"):
        stack.read(0)


def test_a_summary_counts_voxels(tmp_path):
    lines = summary_lines(summarise(opened(write_map(tmp_path / "a.mrc", noise(4, 5, 6)))))
    assert (lines["images"], lines["size"], lines["pixel size"]) == ("1", "4 x 5 x 6 voxels", "1.5 Å per pixel")
