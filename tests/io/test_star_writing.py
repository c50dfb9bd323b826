"""Written stacks and star files, as read by mrcfile, starfile and the file source."""

from __future__ import annotations

import io
import os
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from star_files import write_star

from cryobench.errors import DataError
from cryobench.io.writing import write_mrcs
from cryobench.sources.stacks import File


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def refused(function, *given, **options) -> str:
    with pytest.raises(DataError) as caught:
        function(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ images


def test_mrcfile_reads_a_stack_with_a_valid_and_correct_header(tmp_path):
    path, images = tmp_path / "a.mrcs", noise(11, 6, 10) * 1e-3 + 1e3  # a mean that a naive sum of squares loses
    chunks = (images[start : start + 4] for start in (0, 4, 8))
    assert write_mrcs(path, chunks, 1.31) == 11
    assert mrcfile.validate(path, print_file=io.StringIO())
    with mrcfile.open(path) as mrc:
        assert mrc.is_image_stack()
        assert mrc.data.dtype == np.float32
        np.testing.assert_array_equal(mrc.data, images)
        assert mrc.header.mode == 2
        np.testing.assert_allclose([mrc.voxel_size.x, mrc.voxel_size.y], 1.31, rtol=1e-6)
        assert (mrc.header.dmin, mrc.header.dmax) == (images.min(), images.max())
        assert mrc.header.dmean == pytest.approx(images.mean(dtype=np.float64), rel=1e-7)
        assert mrc.header.rms == pytest.approx(images.std(dtype=np.float64), rel=1e-6)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_array_is_one_chunk_and_the_file_source_reads_it(tmp_path):
    images = noise(3, 8, 8)
    assert write_mrcs(tmp_path / "a.mrc", images.astype(">f8")[:, ::-1], 2.5) == 3
    stack = File(str(tmp_path / "a.mrc")).open()
    assert (len(stack), stack.pixel_size(0)) == (3, pytest.approx(2.5))
    np.testing.assert_array_equal(stack.read(2), images[2, ::-1])
    write_mrcs(tmp_path / "b.mrcs", (chunk for _, chunk in stack.stream()))
    again = File(str(tmp_path / "b.mrcs")).open()
    assert again.pixel_size(0) is None
    np.testing.assert_array_equal(again.read(2), stack.read(2))


def failing(images: np.ndarray):
    yield images
    raise DataError("image 3 is bad")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "no images to write"),
        ([noise(0, 4, 4)], "no images to write"),
        ([noise(2, 4, 4), noise(1, 4, 5)], "got images of (4, 5) after images of (4, 4)"),
        ([noise(4, 4)], "got images of shape [4, 4]"),
        ([noise(2, 4, 4), np.full((2, 4, 4), np.nan)], "image 2 is not finite"),
        (failing(noise(2, 4, 4)), "image 3 is bad"),
    ],
)
def test_a_failed_write_leaves_the_existing_file(tmp_path, images, said):
    path = tmp_path / "a.mrcs"
    path.write_text("before")
    assert said in refused(write_mrcs, path, images)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_paths_are_refused(tmp_path):
    assert "cannot write" in refused(write_mrcs, tmp_path / "nowhere" / "a.mrcs", noise(1, 4, 4))
    assert "cannot write" in refused(write_mrcs, tmp_path, noise(1, 4, 4))
    assert "cannot write" in refused(write_star, tmp_path, None, "a.mrcs", 1.0, 4, count=1)


# ------------------------------------------------------------------------------------------------------- tables


def blocks(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The optics and particle tables, as starfile reads them."""
    read = starfile.read(path, parse_as_string=["rlnImageName", "rlnMicrographName", "rlnOpticsGroupName"])
    assert list(read) == ["optics", "particles"]
    return read["optics"], read["particles"]


def table(**changed) -> pd.DataFrame:
    columns = {
        "rlnImageName": [f"{i}@old.mrcs" for i in (7, 8, 9, 10)],
        "rlnDefocusU": [15301.123456789012, 1 / 3, 1e-7, 15000.0],
        "rlnMicrographName": ["m 1.mrc", "m2.mrc", "m2.mrc", "003"],
        "rlnRandomSubset": [1, 2, 1, 2],
        "rlnVoltage": [300.0, 300.0, 200.0, 300.0],
        "rlnAmplitudeContrast": 0.07,
        "mineScore": [0.5, np.nan, 2.0, 3.0],
    }
    return pd.DataFrame({**columns, **changed})


def test_the_star_file_has_relions_two_tables(tmp_path):
    path = tmp_path / "p.star"
    write_star(path, table(), "a.mrcs", 1.31, 64)
    optics, particles = blocks(path)
    assert optics["rlnOpticsGroup"].tolist() == [1, 2]
    assert optics["rlnOpticsGroupName"].tolist() == ["opticsGroup1", "opticsGroup2"]
    assert optics["rlnVoltage"].tolist() == [300, 200]
    assert optics["rlnAmplitudeContrast"].tolist() == [0.07, 0.07]
    assert (
        optics[["rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality"]].to_numpy().tolist()
        == [[1.31, 64, 2]] * 2
    )
    assert particles["rlnOpticsGroup"].tolist() == [1, 1, 2, 1]
    assert particles["rlnImageName"].tolist() == [f"{i:06d}@a.mrcs" for i in (1, 2, 3, 4)]
    assert set(particles) == {
        *("rlnImageName", "rlnDefocusU", "rlnMicrographName", "rlnRandomSubset", "mineScore", "rlnOpticsGroup")
    }
    assert particles["rlnDefocusU"].tolist() == table()["rlnDefocusU"].tolist()  # to the last digit
    assert particles["rlnMicrographName"].tolist() == ["m 1.mrc", "m2.mrc", "m2.mrc", "003"]
    np.testing.assert_array_equal(particles["mineScore"], table()["mineScore"])


def test_optics_groups_and_their_names_are_kept(tmp_path):
    path = tmp_path / "p.star"
    given = table(
        rlnOpticsGroup=[5, 5, 2, 9], rlnOpticsGroupName=["five", "five", "two", "nine"], rlnBeamTiltX=[1, 1, 0, 1]
    )
    write_star(path, given, "a.mrcs", [1.0, 1.0, 2.0, 1.0], 64)
    optics, particles = blocks(path)
    assert optics["rlnOpticsGroupName"].tolist() == ["five", "two", "nine"]
    assert optics["rlnImagePixelSize"].tolist() == [1, 2, 1]
    assert optics["rlnBeamTiltX"].tolist() == [1, 0, 1]
    assert particles["rlnOpticsGroup"].tolist() == [1, 1, 2, 3]
    write_star(path, given.assign(rlnOpticsGroupName="same"), "a.mrcs", None, 64)
    optics, _ = blocks(path)
    assert optics["rlnOpticsGroupName"].tolist() == ["opticsGroup1", "opticsGroup2", "opticsGroup3"]
    assert "rlnImagePixelSize" not in optics
    write_star(path, given, "a.mrcs", [None] * 4, 64)
    assert "rlnImagePixelSize" not in blocks(path)[0]
    assert "row 2 has a pixel size of nan" in refused(write_star, path, given, "a.mrcs", [1.0, None, 1.0, 1.0], 64)


def test_relion_30_columns_become_those_of_31(tmp_path):
    path = tmp_path / "p.star"
    old = table(rlnDetectorPixelSize=5.0, rlnMagnification=[40000, 40000, 20000, 40000], rlnOriginX=[2, -4, 0, 1])
    write_star(path, old, "a.mrcs", 3.0, 64)
    optics, particles = blocks(path)
    assert particles["rlnOriginXAngst"].tolist() == [2.5, -5, 0, 1.25]
    assert {"rlnDetectorPixelSize", "rlnMagnification", "rlnOriginX"}.isdisjoint({*optics, *particles})
    assert optics["rlnImagePixelSize"].tolist() == [3, 3]
    silent = table(rlnOriginX=[2, -4, 0, 1], rlnOriginY=1)
    assert "rlnOriginX is in pixels of an unknown size" in refused(write_star, path, silent, "a.mrcs", 3.0, 64)
    write_star(path, silent, "a.mrcs", 3.0, 64, stored_pixel_size=1.5)
    assert blocks(path)[1][["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy().tolist() == [
        [3, 1.5],
        [-6, 1.5],
        [0, 1.5],
        [1.5, 1.5],
    ]


def test_without_a_table_the_images_are_numbered(tmp_path):
    path = tmp_path / "p.star"
    write_star(path, None, "my stack.mrcs", 2.0, 16, count=3)
    optics, particles = blocks(path)
    assert particles["rlnImageName"].tolist() == [f"00000{i}@my stack.mrcs" for i in (1, 2, 3)]
    assert particles["rlnOpticsGroup"].tolist() == [1, 1, 1]
    assert optics["rlnImageSize"].tolist() == [16]
    write_mrcs(tmp_path / "my stack.mrcs", noise(3, 16, 16))
    assert File(str(path)).open().pixel_size(2) == 2.0


def test_the_given_table_is_not_modified(tmp_path):
    given = table(rlnOriginX=[2, -4, 0, 1], rlnImagePixelSize=1.5).set_index(pd.Index([9, 8, 7, 6]))
    before = given.copy()
    write_star(tmp_path / "p.star", given, "a.mrcs", 1.5, 8)
    pd.testing.assert_frame_equal(given, before)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (None, {}, "neither a table nor a number of images"),
        (table(), {"count": 3}, "4 rows for 3 images"),
        (None, {"count": 0}, "no images to list"),
        (table(rlnOriginX=1, rlnImagePixelSize=[1, 0, 1, 1]), {}, "row 2 has a pixel size of 0"),
    ],
)
def test_invalid_tables_are_refused(tmp_path, given, options, said):
    assert said in refused(write_star, tmp_path / "p.star", given, "a.mrcs", 1.0, 8, **options)
    assert said == "row 2 has a pixel size of 0" or not list(tmp_path.iterdir())
    assert "row 1 has a pixel size of 0" in refused(write_star, tmp_path / "p.star", table(), "a.mrcs", 0.0, 8)


def test_cryosparc_alignments_are_kept(tmp_path):
    fields = [("blob/path", "S8"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4"), ("alignments3D/pose", "<f4", (3,))]
    rows = np.zeros(3, [*fields, ("alignments3D/shift", "<f4", (2,)), ("ctf/df1_A", "<f4")])
    rows["blob/path"], rows["blob/idx"], rows["blob/psize_A"] = b"a.mrcs", [2, 0, 1], 1.5
    rows["alignments3D/pose"], rows["alignments3D/shift"] = noise(3, 3), noise(3, 2, seed=1)
    rows["ctf/df1_A"] = [1e4, 2e4, 3e4]
    write_mrcs(tmp_path / "a.mrcs", noise(3, 8, 8))
    with (tmp_path / "p.cs").open("wb") as file:
        np.save(file, rows)
    first = File(str(tmp_path / "p.cs")).open()
    write_star(tmp_path / "p.star", first.table, "a.mrcs", 1.5, 8)
    second = File(str(tmp_path / "p.star")).open().table
    for column in first.table:
        np.testing.assert_array_equal(second[column], first.table[column])


def again(stack, folder: Path, name: str):
    """The stack written with its table, and opened."""
    folder.mkdir(exist_ok=True)
    write_mrcs(folder / f"{name}.mrcs", (images for _, images in stack.stream()), stack.pixel_size(0))
    sizes = [stack.pixel_size(index) for index in range(len(stack))]
    write_star(folder / f"{name}.star", stack.table, f"{name}.mrcs", sizes, stack.shape[0])
    return File(str(folder / f"{name}.star")).open()


@pytest.mark.parametrize("size", [None, 64])
def test_real_particles_are_the_same_after_writing_and_reading(shared, tmp_path, size):
    real = File(str(shared / "data" / "empiar_10076_7.star"), size=size).open()
    first = again(real, tmp_path, "a")
    second = again(first, tmp_path / "again", "a")
    for name in ("a.mrcs", "a.star"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (len(first), first.shape) == (7, real.shape)
    for index in range(7):
        np.testing.assert_array_equal(first.read(index), real.read(index))
        assert first.pixel_size(index) == real.pixel_size(index)
    for column in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage", "rlnMicrographName"):
        assert first.table[column].tolist() == real.table[column].tolist()
    optics, _ = blocks(tmp_path / "a.star")
    assert len(optics) == 1
    assert optics["rlnImageSize"].tolist() == [real.shape[0]]
    pd.testing.assert_frame_equal(first.table, second.table)
