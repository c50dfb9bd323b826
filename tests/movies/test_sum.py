"""`cryobench movies sum`: a folder of pairs, the same for any order, interruption and worker; bad input is one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from kills import killed
from movie_files import counts, write_eer, write_mrc, write_packed, write_tiff

from cryobench.core.pairs import Pairs
from cryobench.errors import DataError, ResultsError
from cryobench.io.movies.pair_folder import PairFolder
from cryobench.io.movies.settings import MovieSettings
from cryobench.io.movies.summing import Summer, open_movie
from cryobench.io.scaling import digest_of
from cryobench.measuring.chunks import ChunkObserver, Where, run_chunks
from cryobench.movies.task import SumTask
from cryobench.workers.executors import ExecutorSpec

SHAPE = (48, 60)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three movies with a gain reference that has a dead pixel, and hot pixels."""
    folder = tmp_path_factory.mktemp("movies")
    gain = np.random.default_rng(1).normal(1, 0.1, SHAPE).astype(np.float32)
    gain[9, 9] = 0
    write_mrc(folder / "gain.mrc", gain)
    for number in range(3):
        expected = 10 / np.maximum(gain, 0.1)
        frames = np.random.default_rng(number).poisson(expected, (6, *SHAPE)).astype(np.uint8)
        frames[:, 20, 30] = 255
        write_tiff(folder / f"{number}.tif", frames)
    return folder


def task(data: Path, out: Path, movies: str = "*.tif", **settings) -> SumTask:
    return SumTask((str(data / movies),), MovieSettings(**{"gain": str(data / "gain.mrc"), **settings}), str(out))


def done(task: SumTask, order=None, **start):
    work = task.open()
    work.start(**start)
    for chunk in work.todo() if order is None else order:
        work.run(chunk, lambda fraction: None)
    return work


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pairs(data, tmp_path_factory) -> Path:
    """A complete folder of counts."""
    out = tmp_path_factory.mktemp("sums") / "pairs"
    done(task(data, out, dose=1.5, pixel_size=0.66))
    return out


def test_counts_are_stored_and_corrected_when_they_are_read(data, pairs):
    found = PairFolder(pairs)
    assert isinstance(found, Pairs)
    assert ([found.name(i) for i in range(len(found))], found.shape(1)) == (["0", "1", "2"], SHAPE)
    assert found.pixel_size(2) == 0.66
    for number in range(3):
        summer = Summer(MovieSettings(gain=str(data / "gain.mrc")))
        expected = summer.sum(open_movie(data / f"{number}.tif"))
        np.testing.assert_array_equal(found.read(number), expected.images)
        with mrcfile.open(pairs / f"{number}.mrcs") as stored:  # raw, which any program reads
            assert stored.data.dtype == np.uint16
            np.testing.assert_array_equal(stored.data, expected.halves)
            assert mrcfile.validate(pairs / f"{number}.mrcs")
        assert (expected.images[:, 9, 9] > 20).all()  # the dead pixel is replaced, and so is the hot one
        assert (expected.images[:, 20, 30] < 60).all()
        record = found.record(number)
        assert (record.replaced, record.frames, record.dose, record.rounding) == (2, 6, 9.0, 0.0)


@pytest.mark.parametrize("settings", [{}, {"bin": 1.5}])
def test_a_window_is_that_of_the_whole(data, tmp_path, settings):
    done(task(data, tmp_path / "pairs", **settings))
    found = PairFolder(tmp_path / "pairs")
    whole = found.read(1)
    rng = np.random.default_rng(0)
    h, w = found.shape(1)
    windows = [(slice(0, h), slice(0, w)), (slice(9, 10), slice(9, 10)), (slice(20, 21), slice(0, w))]
    for _ in range(40):
        top, left = int(rng.integers(0, h - 8)), int(rng.integers(0, w - 8))
        windows.append((slice(top, top + int(rng.integers(1, 9))), slice(left, left + int(rng.integers(1, 9)))))
    for window in windows:
        part = found.read(1, window)
        np.testing.assert_array_equal(part, whole[:, *window])
        assert (part.dtype, part.flags.writeable) == (np.float32, True)
    one = slice(0, 1)
    for window in [(slice(0, h + 1), one), (one,), (slice(-4, None), one), (slice(2, 2), one)]:
        with pytest.raises(ValueError, match="no window"):
            found.read(1, window)


@pytest.mark.parametrize("settings", [{"bin": 2}, {"align": True}, {"weight": True, "dose": 2.0, "pixel_size": 1.0}])
def test_what_is_interpolated_is_float16_within_the_stated_rounding(data, tmp_path, settings):
    done(task(data, tmp_path / "pairs", **settings))
    found = PairFolder(tmp_path / "pairs")
    exact = Summer(MovieSettings(gain=str(data / "gain.mrc"), **settings)).sum(open_movie(data / "0.tif")).images
    difference = np.sqrt(np.square(found.read(0) - exact, dtype=np.float64).mean()) / exact.std()
    assert found.record(0).rounding == pytest.approx(difference, rel=1e-3)
    assert 1e-5 < difference < 3e-4
    with mrcfile.open(tmp_path / "pairs" / "0.mrcs") as stored:
        assert stored.data.dtype == np.float16
        assert abs(float(stored.data.mean())) < 1e-2  # within the range of float16 whatever the units of the movie
    assert (found.record(0).shifts is not None) == ("align" in settings)


def test_digests_are_those_of_the_images(pairs):
    found = PairFolder(pairs)
    digests = [found.digests(number) for number in range(3)]
    assert digests[1] == tuple(digest_of(half, "it") for half in found.read(1))
    assert len({digest for both in digests for digest in both}) == 6


def test_the_order_of_the_movies_does_not_matter(data, pairs, tmp_path):
    done(task(data, tmp_path / "pairs", dose=1.5, pixel_size=0.66), order=[2, 0, 1])
    assert files(tmp_path / "pairs") == files(pairs)


def test_a_killed_run_is_continued_and_no_file_is_cut(data, pairs, tmp_path):
    """Killed at any event of the file system, the same command completes the folder."""
    wanted, interrupted = files(pairs), 0
    own = task(data, tmp_path / "pairs", dose=1.5, pixel_size=0.66)
    for at in range(1, 400, 11):
        shutil.rmtree(tmp_path / "pairs", ignore_errors=True)
        if not killed(lambda: done(own) and None, tmp_path, at):
            break
        interrupted += 1
        for name, content in files(tmp_path / "pairs").items() if (tmp_path / "pairs").exists() else ():
            assert name.startswith(".") or content == wanted[name]
        work = done(own)
        assert work.todo() == []
        work.finish()
        assert files(tmp_path / "pairs") == wanted
    assert interrupted > 4


def test_movies_are_added_and_other_corrections_refused(data, tmp_path):
    out = tmp_path / "pairs"
    done(task(data, out, "[02].tif"))
    before = files(out)
    work = task(data, out).open()
    work.start()
    assert [work.writer.names[chunk] for chunk in work.todo()] == ["1"]
    with pytest.raises(
        DataError, match=r"incomplete: 1 of 3 pairs are missing, the first of 1; run the `cryobench mov"
    ):
        PairFolder(out)
    done(task(data, out))
    assert {name: content for name, content in files(out).items() if name in before and name != "movies.json"} == {
        name: content for name, content in before.items() if name != "movies.json"
    }
    with pytest.raises(ResultsError, match=r"holds pairs with other corrections.*--force"):
        task(data, out, hot=0.0).open().start()
    (out / "notes.txt").write_text("mine")
    done(task(data, out, hot=0.0, bin=2.0), force=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert PairFolder(out).shape(0) == (24, 30)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    with pytest.raises(DataError, match=r"other has no movies.json"):
        task(data, tmp_path / "other").open().start()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["x"]


def test_a_changed_gain_is_another_correction(data, tmp_path):
    gain = data / "gain.mrc"
    shutil.copy(gain, tmp_path / "g.mrc")
    own = task(data, tmp_path / "pairs", gain=str(tmp_path / "g.mrc"))
    done(own, order=[0])
    with mrcfile.open(tmp_path / "g.mrc", "r+") as file:
        file.data[0, 0] += 0.5
    with pytest.raises(ResultsError, match="other corrections"):
        own.open().start()


def test_shards_share_the_movies(data, tmp_path):
    own = task(data, tmp_path / "pairs")
    for part, left in (((1, 2), [1, 2]), ((2, 2), [])):
        work = own.open()
        work.start()
        run_chunks(work.task, work, Where(shard=part), ChunkObserver())
        assert work.todo() == left


@pytest.mark.slow
def test_processes_write_the_same_files(data, pairs, tmp_path):
    work = task(data, tmp_path / "pairs", dose=1.5, pixel_size=0.66).open()
    work.start()
    run_chunks(work.task, work, Where(ExecutorSpec("processes", 2)), ChunkObserver())
    assert files(tmp_path / "pairs") == files(pairs)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "1.json").write_text("{"), r"1.json is damaged: .*delete .*1.json and run"),
        (lambda folder: edit(folder / "1.json", shape=[48, -1]), r"1.json is damaged: .*shape or mode is wrong"),
        (lambda folder: edit(folder / "1.json", gain="../x.mrc"), r"gain is not a file of this folder"),
        (lambda folder: edit(folder / "1.json", mode=2), r"shape or mode is wrong"),
        (lambda folder: (folder / "1.mrcs").write_bytes(b"x" * 2000), r"1.mrcs has 2000 bytes, expected 12544"),
        (lambda folder: (folder / "1.npz").write_bytes(b"PK"), r"1.npz is damaged"),
        (lambda folder: np.savez(folder / "1.npz", positions=[1, 9999], values=np.zeros((2, 2), np.float32)), "order"),
        (lambda folder: (folder / "1.mrcs").unlink(), r"1.mrcs cannot be read"),
        (lambda folder: (folder / "movies.json").write_text("[]"), r"movies.json is damaged"),
        (lambda folder: edit(folder / "movies.json", version=9), r"version 9, and this version of cryobench reads 1"),
    ],
)
def test_a_damaged_folder_is_one_line(pairs, tmp_path, damage, message):
    shutil.copytree(pairs, tmp_path / "pairs")
    damage(tmp_path / "pairs")
    with pytest.raises(DataError, match=message) as error:
        PairFolder(tmp_path / "pairs").read(1)
    assert "\n" not in str(error.value)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_format_is_summed(tmp_path):
    frames = counts((4, 16, 24), 3)
    write_mrc(tmp_path / "a.mrc", frames.astype(np.int8))
    write_packed(tmp_path / "b.mrcs", frames)
    write_tiff(tmp_path / "c.tiff", frames)
    write_eer(tmp_path / "d.eer", np.minimum(frames, 1))
    done(SumTask((str(tmp_path),), MovieSettings(hot=0), str(tmp_path / "pairs")))
    found = PairFolder(tmp_path / "pairs")
    assert [found.name(i) for i in range(4)] == ["a", "b", "c", "d"]
    for number in range(4):
        own = frames if number < 3 else np.minimum(frames, 1)
        np.testing.assert_array_equal(found.read(number), [own[0::2].sum(axis=0), own[1::2].sum(axis=0)])


def test_counts_beyond_16_bits_or_below_zero_are_float16(tmp_path):
    write_mrc(tmp_path / "a.mrc", np.random.default_rng(0).integers(20_000, 60_000, (4, 16, 16)).astype(np.uint16))
    write_mrc(tmp_path / "b.mrc", np.random.default_rng(0).normal(0, 1e6, (4, 16, 16)).astype(np.float32))
    done(SumTask((str(tmp_path),), MovieSettings(), str(tmp_path / "pairs")))
    found = PairFolder(tmp_path / "pairs")
    for number, name in enumerate("ab"):
        exact = Summer(MovieSettings()).sum(open_movie(tmp_path / f"{name}.mrc")).images
        np.testing.assert_allclose(found.read(number), exact, atol=2e-3 * exact.std())
        assert found.record(number).mode == 12


# ------------------------------------------------------------------------------------------------------- command line


def test_the_command_writes_a_source(cli, data, tmp_path):
    arguments = ("movies", "sum", data / "*.tif", "--gain", data / "gain.mrc", "--out", "out")
    code, out, err = cli(*arguments)
    assert (code, out, err) == (0, "", "3 micrographs in out\n")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mrcs")}
    assert cli(*arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mrcs")} == before
    for source in ("sums:out", "./out", "out"):
        code, out, _ = cli("data", "info", source, "--json")
        assert (code, json.loads(out)["images"], json.loads(out)["shape"]) == (0, 3, list(SHAPE))


def test_the_command_takes_every_setting(cli, data):
    """An option of the command for each parameter of the source."""
    code, out, _ = cli("movies", "sum", "--help")
    names = [field.name for field in dataclasses.fields(MovieSettings)]
    assert code == 0
    assert all(f"--{name.replace('_', '-')}" in out for name in names)


def bad(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Bad input by what is wrong: arguments and the message."""
    small = counts((4, 16, 24), 3).astype(np.int16)
    write_tiff(folder / "whole.tif", small)
    cut = (folder / "whole.tif").read_bytes()
    (folder / "cut.tif").write_bytes(cut[: len(cut) // 2])
    write_mrc(folder / "one.mrc", small[:1])
    dark = small.copy()
    dark[2] = 0
    write_mrc(folder / "dark.mrc", dark)
    write_mrc(folder / "g.mrc", np.ones((24, 24), np.float32))
    (folder / "again").mkdir()
    write_mrc(folder / "again" / "whole.mrc", small)
    return {
        "truncated": (["cut.tif"], "cut.tif is "),
        "one frame": (["one.mrc"], "one.mrc has 1 frame"),
        "zeros": (["dark.mrc"], "frame 3 of 4 is zero everywhere"),
        "gain": (["whole.tif", "--gain", "g.mrc"], "g.mrc has 24 x 24 pixels"),
        "no gain": (["whole.tif", "--gain", "nope.mrc"], "nope.mrc does not exist"),
        "dm4": (["whole.tif", "--gain", "g.dm4"], "the format .dm4 is not read"),
        "defects": (["whole.tif", "--defects", "nope.txt"], "nope.txt"),
        "nothing": (["*.eer"], "no file matches *.eer"),
        "one name": (["whole.tif", "again/whole.mrc"], "have one name"),
        "setting": (["whole.tif", "--rotate", "45"], "rotate must be one of 0, 90, 180, 270, got 45"),
        "weight": (["whole.tif", "--weight"], "weight=true needs dose"),
    }


@pytest.mark.parametrize("what", ["truncated", "one frame", "zeros", "gain", "no gain", "dm4", "defects", "nothing",
                                  "one name", "setting", "weight"])  # fmt: skip
def test_bad_input_is_one_line(cli, tmp_path, what):
    arguments, message = bad(tmp_path)[what]
    code, out, err = cli("movies", "sum", *arguments, "--out", "pairs")
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("pairs/*.mrcs"))


def test_what_was_finished_before_a_bad_movie_is_kept(cli, tmp_path):
    bad(tmp_path)
    code, _, err = cli("movies", "sum", "whole.tif", "cut.tif", "--out", "pairs")
    assert (code, "cut.tif" in err) == (2, True)
    assert (tmp_path / "pairs" / "whole.json").exists()
    code, _, err = cli("movies", "sum", "one.mrc", "--out", "pairs")  # without the bad movie it goes on
    assert (code, "one.mrc has 1 frame" in err) == (2, True)
    assert cli("movies", "sum", "whole.tif", "--out", "pairs")[::2] == (0, "1 micrograph in pairs\n")


def test_movies_of_different_sizes_are_pairs_but_not_a_stack(cli, tmp_path):
    write_mrc(tmp_path / "a.mrc", counts((2, 16, 24), 3).astype(np.int16))
    write_mrc(tmp_path / "b.mrc", counts((2, 20, 24), 3).astype(np.int16))
    assert cli("movies", "sum", "a.mrc", "b.mrc", "--out", "pairs")[0] == 0
    found = PairFolder(tmp_path / "pairs")
    assert (found.shape(0), found.shape(1), found.read(1).shape) == ((16, 24), (20, 24), (2, 20, 24))
    for source in ("sums:pairs", 'movies:"a.mrc,b.mrc"'):
        code, _, err = cli("data", "info", source)
        assert (code, err.count("\n")) == (2, 1)
        assert "has 20 x 24 pixels, the first micrograph 16 x 24; choose micrographs of one shape with --images" in err


def test_a_folder_that_cannot_be_written_is_one_line(cli, tmp_path):
    write_mrc(tmp_path / "a.mrc", counts((2, 16, 24), 3).astype(np.int16))
    (tmp_path / "file").write_text("x")
    code, _, err = cli("movies", "sum", "a.mrc", "--out", "file/pairs")
    assert (code, err.count("\n")) == (2, 1)


def test_no_warning_for_good_movies(data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done(task(data, tmp_path / "pairs"))
