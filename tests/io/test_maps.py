"""Maps in MRC files against mrcfile: axes, place and voxel size."""

from __future__ import annotations

import gzip

import mrcfile
import numpy as np
import pytest

from cryobench.errors import DataError
from cryobench.io.maps import read_map, write_map

VOLUME = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)


def test_a_map_of_other_axes_is_turned_with_its_place(tmp_path):
    path = tmp_path / "a.mrc"
    with mrcfile.new(path, data=VOLUME) as file:
        file.voxel_size = 2.0
        # columns along z, rows along x, sections along y
        file.header.mapc, file.header.mapr, file.header.maps = 3, 1, 2
        file.header.nxstart, file.header.nystart, file.header.nzstart = 7, 8, 9  # of columns, rows and sections
        file.header.origin = (1.0, 2.0, 3.0)
    found = read_map(path)
    np.testing.assert_array_equal(found.volume, VOLUME.transpose(2, 0, 1))  # sections y, rows x, columns z
    assert (found.pixel_size, found.start, found.origin) == (2.0, (8, 9, 7), (1.0, 2.0, 3.0))


def test_a_written_map_reads_back_also_packed(tmp_path):
    first, second = tmp_path / "a.mrc", tmp_path / "b.mrc"
    write_map(first, first, VOLUME, 1.5)
    with mrcfile.open(first) as file:
        assert file.is_volume()
        assert file.header.origin.tolist() == (0, 0, 0)
        assert float(file.header.rms) == pytest.approx(VOLUME.std(), rel=1e-5)
    packed = tmp_path / "a.mrc.gz"
    packed.write_bytes(gzip.compress(first.read_bytes()))
    found = read_map(packed)
    write_map(second, second, found.volume, found.pixel_size, found)
    assert second.read_bytes() == first.read_bytes()
    write_map(second, second, VOLUME, None)
    assert read_map(second).pixel_size is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [((6, 6, 8), "6 x 6 x 8 voxels; expected a cube as mask"), ((2, 6, 6, 6), "holds 2 volumes; expected one mask")],
)
def test_what_is_no_cube_is_refused(tmp_path, shape, message):
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(np.ones(shape, np.float32))
        if len(shape) == 3:
            file.set_volume()
    with pytest.raises(DataError, match=message):
        read_map(path, "mask")
