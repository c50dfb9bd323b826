"""Readers of movies: every mode and format, by files that the test writes; damaged ones are one line."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest
from movie_files import counts, write_eer, write_mrc, write_packed, write_tiff

from cryobench.errors import CryobenchError, DataError, DependencyError
from cryobench.io.movies.movie import grouped
from cryobench.io.movies.summing import open_movie

FRAMES = counts((5, 12, 15))


def read(path):
    movie = open_movie(path)
    frames = list(movie.read())
    assert len(frames) == movie.frames
    assert {frame.shape for frame in frames} == {movie.shape}
    return movie, np.stack(frames)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.float32, np.uint16, np.float16])
def test_modes_0_1_2_6_and_12_of_mrc(tmp_path, kind):
    stored = FRAMES.astype(kind) * (-1 if np.dtype(kind).kind in "if" else 1)
    movie, frames = read(write_mrc(tmp_path / "a.mrc", stored, 1.25))
    np.testing.assert_array_equal(frames, stored)
    assert movie.pixel_size == pytest.approx(1.25)


@pytest.mark.parametrize("width", [14, 15])
def test_packed_four_bit_rows_have_whole_bytes(tmp_path, width):
    stored = np.random.default_rng(1).integers(0, 16, (3, 4, width), dtype=np.uint8)
    movie, frames = read(write_packed(tmp_path / "a.mrcs", stored))
    np.testing.assert_array_equal(frames, stored)
    assert (movie.frames, movie.shape) == (3, (4, width))


def test_a_compressed_mrc_movie(tmp_path):
    write_mrc(tmp_path / "a.mrc", FRAMES.astype(np.int16))
    (tmp_path / "a.mrc.gz").write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()))
    np.testing.assert_array_equal(read(tmp_path / "a.mrc.gz")[1], FRAMES)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("compression", ["lzw", None])
def test_tiff_of_8_and_16_bits_signed_or_not(tmp_path, kind, compression):
    stored = FRAMES.astype(kind) * (-1 if np.dtype(kind).kind == "i" else 1)
    movie, frames = read(write_tiff(tmp_path / "a.tif", stored, compression, resolution=(1e8 / 0.83, 1e8 / 0.83),
                                    resolutionunit=3))  # fmt: skip
    np.testing.assert_array_equal(frames, stored)
    assert movie.pixel_size == pytest.approx(0.83, rel=1e-4)


def test_a_resolution_of_a_screen_is_no_pixel_size(tmp_path):
    assert open_movie(write_tiff(tmp_path / "a.tif", FRAMES, resolution=(72, 72))).pixel_size is None


@pytest.mark.parametrize("compression", [65000, 65001])
def test_eer_events(tmp_path, compression):
    stored = (np.random.default_rng(2).random((6, 32, 64)) < 0.02).astype(np.uint8)  # gaps longer than a code
    movie, frames = read(write_eer(tmp_path / "a.eer", stored, compression))
    np.testing.assert_array_equal(frames, stored)
    assert movie.pixel_size == pytest.approx(0.75)
    assert movie.divided_by_gain
    groups = list(grouped(movie, 3))
    np.testing.assert_array_equal(groups, [stored[:3].sum(axis=0), stored[3:].sum(axis=0)])


def test_frames_left_over_by_groups_are_not_read(tmp_path):
    groups = list(grouped(open_movie(write_tiff(tmp_path / "a.tif", FRAMES)), 2))
    np.testing.assert_array_equal(groups, [FRAMES[:2].sum(axis=0), FRAMES[2:4].sum(axis=0)])


@pytest.mark.parametrize("suffix", ["mrc", "tif", "eer", "packed"])
def test_a_file_that_is_cut_anywhere_is_one_line(tmp_path, suffix):
    name = f"movie.{'mrc' if suffix == 'packed' else suffix}"
    path, cut = tmp_path / name, tmp_path / f"cut-{name}"
    if suffix == "mrc":
        write_mrc(path, FRAMES.astype(np.int16))
    else:
        write = {"tif": write_tiff, "eer": write_eer, "packed": write_packed}[suffix]
        write(path, np.minimum(FRAMES, 1) if suffix == "eer" else FRAMES)
    whole, stored = path.read_bytes(), list(open_movie(path).read())
    refused = 0
    for length in np.linspace(0, len(whole) - 1, 25).astype(int):
        cut.write_bytes(whole[:length])
        try:
            frames = list(open_movie(cut).read())
        except DataError as error:
            refused += str(cut) in str(error) and "\n" not in str(error)
        else:  # what was cut is not needed
            np.testing.assert_array_equal(frames, stored)
    assert refused >= 24


def test_pages_of_different_sizes(tmp_path):
    import tifffile

    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(FRAMES[0], photometric="minisblack")
        file.write(FRAMES[1, :8], photometric="minisblack")
    with pytest.raises(DataError, match=r"frame 2 has 8 x 15 pixels, the first 12 x 15"):
        open_movie(tmp_path / "a.tif")


def test_colours_an_unknown_suffix_and_a_missing_file(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4, 3), np.uint8), photometric="rgb")
    with pytest.raises(DataError, match="expected a real number for each pixel"):
        open_movie(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"unknown suffix '.txt'"):
        open_movie(tmp_path / "a.txt")
    for suffix in ("mrc", "tif", "eer"):
        with pytest.raises(DataError, match="does not exist"):
            open_movie(tmp_path / f"b.{suffix}")


def test_frames_of_zeros_or_nan_are_refused(tmp_path):
    dark, broken = FRAMES.astype(np.float32), FRAMES.astype(np.float32)
    dark[3], broken[1, 2, 2] = 0, np.nan
    with pytest.raises(DataError, match=r"frame 4 of 5 is zero everywhere"):
        list(grouped(open_movie(write_mrc(tmp_path / "a.mrc", dark)), 1))
    with pytest.raises(DataError, match=r"frame 2 has values that are not finite"):
        list(grouped(open_movie(write_mrc(tmp_path / "b.mrc", broken)), 1))


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tif", FRAMES)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(DependencyError, match=r"a.tif: TIFF and EER files need .* pip install 'cryobench\[movies\]'"):
        open_movie(tmp_path / "a.tif")


def test_real_stacks_read_as_movies(shared):
    """Stacks of real particles have headers of several programs."""
    for name in ("particles_17x200.mrcs", "relion31_nomap.mrcs"):
        try:
            movie, frames = read(shared / "data" / name)
        except CryobenchError as error:
            raise AssertionError(name) from error
        assert np.isfinite(frames).all()
        assert movie.frames in (5, 17)
