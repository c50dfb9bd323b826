"""The command `cryobench data simulate-movies`: its files, read by other libraries."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest
import starfile
import tifffile

from cryobench.sources.simulate_movies import SimulateMovies

SMALL = "3mht,size=64,frames=6,gain_error=0.02"


@pytest.fixture(scope="module")
def stack():
    return SimulateMovies("3mht", count=2, size=64, frames=6, gain_error=0.02).open()


def test_movies_gain_and_truths(cli, tmp_path, stack):
    code, _, err = cli("data", "simulate-movies", "made", "--count", "2", "--spec", SMALL)
    assert code == 0, err
    made = tmp_path / "made"
    with mrcfile.open(made / "gain.mrc") as file:
        gain = file.data.copy()
    np.testing.assert_array_equal(gain, stack.gain)
    for index in range(2):
        name = f"micrograph_{index:05d}"
        path = made / "movies" / f"{name}.mrcs"
        assert mrcfile.validate(path)
        with mrcfile.open(path) as file:
            frames = file.data.copy()
            assert (int(file.header.mode), file.is_image_stack(), float(file.voxel_size.x)) == (
                6,
                True,
                pytest.approx(2.4),
            )
        # the sums of odd and of even frames are the halves of the source
        np.testing.assert_allclose(frames[::2].sum(axis=0) * gain, stack.read(index), rtol=1e-6)
        np.testing.assert_allclose(frames[1::2].sum(axis=0) * gain, stack.other(index), rtol=1e-6)
        for truth in ("ice", "particles"):
            with mrcfile.open(made / "truth" / truth / f"{name}.mrc") as file:
                np.testing.assert_array_equal(file.data, stack.expected(index, truth))
    assert err.splitlines()[-1] == "2 movies in made/movies.star and made/particles.star"


def test_tables_are_in_relions_format(cli, tmp_path, stack):
    assert cli("data", "simulate-movies", "made", "--count", "2", "--spec", SMALL)[0] == 0
    movies = starfile.read(tmp_path / "made" / "movies.star")
    particles = starfile.read(tmp_path / "made" / "particles.star")
    assert movies["optics"]["rlnVoltage"].tolist() == [300]
    assert movies["optics"]["rlnMicrographOriginalPixelSize"].tolist() == [2.4]
    names = [f"movies/micrograph_{index:05d}.mrcs" for index in range(2)]
    assert movies["movies"]["rlnMicrographMovieName"].tolist() == names
    np.testing.assert_allclose(movies["movies"]["rlnDefocusU"], stack.table["rlnDefocusU"], rtol=1e-9)
    for index, name in enumerate(names):
        own = particles["particles"][particles["particles"]["rlnMicrographName"] == name]
        wanted = stack.particles(index)
        for column in ("rlnCoordinateX", "rlnCoordinateY", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusV"):
            np.testing.assert_allclose(own[column], wanted[column], rtol=1e-9)


def test_tiff_and_files_that_exist(cli, tmp_path, stack):
    command = ("data", "simulate-movies", "made", "--spec", f"simulate_movies:{SMALL},count=1", "--format", "tif")
    assert cli(*command)[0] == 0
    frames = tifffile.imread(tmp_path / "made" / "movies" / "micrograph_00000.tif")
    np.testing.assert_array_equal(frames, np.stack(list(stack.frames(0))))
    assert frames.dtype == np.uint16
    code, _, err = cli(*command)
    assert (code, err.count("\n")) == (2, 1)
    assert "made/movies.star exists; give another folder, or --force" in err
    assert cli(*command, "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--spec", "3mht,frames=9"), "frames must be a multiple of ratio + 1 = 2, got 9"),
        (("--spec", "3mht,ratio=3"), "the truths of movies are of half of the frames: give ratio=1, not 3"),
        (("--spec", "3mht,sise=9"), "size"),
        (("--count", "0"), "count must be at least 1, got 0"),
    ],
)
def test_wrong_requests_are_one_line(cli, tmp_path, arguments, says):
    code, _, err = cli("data", "simulate-movies", "made", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
    assert not (tmp_path / "made").exists()
