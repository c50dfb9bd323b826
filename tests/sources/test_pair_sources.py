"""Sources of micrographs in two halves."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from movie_files import counts, write_mrc, write_tiff

from cryobench.errors import DataError, SelectionError
from cryobench.io.movies.settings import MovieSettings
from cryobench.io.movies.summing import Summer, open_movie
from cryobench.io.scaling import digest_of
from cryobench.movies.task import SumTask
from cryobench.plan.dataset import open_stack
from cryobench.registry import installed

SHAPE = (16, 24)


def opened(spec: str):
    return open_stack(spec, {}, installed())


def halves(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)


NAMES = {
    "MotionCor": ("a{}_ODD.mrc", "a{}_EVN.mrc"),
    "CryoSPARC": ("sets/00{}_a_odd.mrc", "sets/00{}_a_even.mrc"),
    "Warp": ("average/odd/a{}.mrc", "average/even/a{}.mrc"),
    "prefix": ("odd-{}.npy", "even-{}.npy"),
}


@pytest.mark.parametrize("program", NAMES)
def test_halves_are_matched_by_name(tmp_path, program):
    odd, even = (str(tmp_path / name) for name in NAMES[program])
    for number in range(12):
        for half, name in zip(halves(number), (odd, even), strict=True):
            path = Path(name.format(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npy":
                np.save(path, half)
            else:
                write_mrc(path, half, 1.5)
    stack = opened(f"pairs:{odd.format('*')},even={even.format('*')}")
    assert (len(stack), stack.shape) == (12, SHAPE)
    numbers = sorted(range(12), key=str) if program != "CryoSPARC" else sorted(range(12), key=lambda n: f"00{n}_")
    for place, number in enumerate(numbers):
        np.testing.assert_array_equal(stack.read(place), halves(number)[0])
        np.testing.assert_array_equal(stack.other(place), halves(number)[1])
        window = slice(3, 9), slice(5, 24)
        np.testing.assert_array_equal(stack.pairs.read(place, window), halves(number)[:, *window])
        assert stack.pairs.digests(place) == tuple(digest_of(half, "it") for half in halves(number))
    if program != "prefix":
        assert stack.pixel_size(0) == pytest.approx(1.5)


def test_folders_and_single_stacks(tmp_path):
    both = np.stack([halves(number) for number in range(3)], axis=1)
    for name, half in zip(("left", "right"), both, strict=True):
        write_mrc(tmp_path / f"{name}.mrcs", half)
        (tmp_path / name).mkdir()
        for number, image in enumerate(half):
            write_mrc(tmp_path / name / f"{number}.mrc", image)
    for odd, even in (("left.mrcs", "right.mrcs"), ("left", "right")):
        stack = opened(f"pairs:{tmp_path / odd},even={tmp_path / even}")
        assert len(stack) == 3
        np.testing.assert_array_equal([stack.read(i) for i in range(3)], both[0])
        np.testing.assert_array_equal([stack.other(i) for i in range(3)], both[1])
        assert len({stack.pairs.name(i) for i in range(3)}) == 3


def test_halves_that_do_not_belong_together_are_one_line(tmp_path):
    for number in range(3):
        write_mrc(tmp_path / f"{number}_odd.mrc", halves(number)[0])
        if number:
            write_mrc(tmp_path / f"{number}_even.mrc", halves(number)[1])
    odd, even = tmp_path / "*_odd.mrc", tmp_path / "*_even.mrc"
    with pytest.raises(DataError, match=r"0_odd.mrc has no even half in .*\(3 odd and 2 even files\)"):
        opened(f"pairs:{odd},even={even}")
    with pytest.raises(DataError, match=r"0_odd.mrc has no odd half in .*\(2 odd and 3 even files\)"):
        opened(f"pairs:{even},even={odd}")
    write_mrc(tmp_path / "0_even.mrc", halves(0, (16, 25))[1])
    with pytest.raises(
        DataError, match=r"0_odd.mrc has 16 x 24 pixels and .*0_even.mrc 16 x 25; expected halves of one"
    ):
        opened(f"pairs:{odd},even={even}")
    with pytest.raises(DataError, match=r"have one name without odd and even"):
        opened(f"pairs:{tmp_path},even={even}")
    write_mrc(tmp_path / "two.mrcs", halves(0))
    write_mrc(tmp_path / "one.mrcs", halves(0)[:1])
    with pytest.raises(DataError, match=r"two.mrcs has 2 images and .*one.mrcs 1"):
        opened(f"pairs:{tmp_path / 'two.mrcs'},even={tmp_path / 'one.mrcs'}")
    with pytest.raises(DataError, match=r"no file matches"):
        opened(f"pairs:{odd},even={tmp_path / 'x*.mrc'}")


def test_values_that_are_not_finite_are_refused(tmp_path):
    odd = halves(0)[0]
    odd[3, 4] = np.nan
    np.save(tmp_path / "a_odd.npy", odd)
    np.save(tmp_path / "a_even.npy", halves(0)[1])
    stack = opened(f"pairs:{tmp_path / 'a_odd.npy'},even={tmp_path / 'a_even.npy'}")
    with pytest.raises(DataError, match=r"a of a_odd.npy has values that are not finite"):
        stack.read(0)


def test_movies_are_summed_when_they_are_read(tmp_path):
    for number in range(3):
        write_tiff(tmp_path / f"{number}.tif", counts((4, *SHAPE), 6, number))
    stack = opened(f"movies:{tmp_path / '*.tif'},bin=2,pixel_size=0.5")
    assert (len(stack), stack.shape, stack.pixel_size(1)) == (3, (8, 12), 1.0)
    expected = Summer(MovieSettings(bin=2)).sum(open_movie(tmp_path / "1.tif")).images
    np.testing.assert_array_equal([stack.read(1), stack.other(1)], expected)
    window = slice(1, 5), slice(2, 12)
    np.testing.assert_array_equal(stack.pairs.read(1, window), expected[:, *window])
    with pytest.raises(SelectionError, match=r"image 3 of 0.tif and 2 more does not exist"):
        stack.read(3)


def test_one_half_has_one_digest_in_every_source(tmp_path):
    """So that a network that saw it is recognised."""
    write_tiff(tmp_path / "a.tif", counts((4, *SHAPE), 6))
    work = SumTask((str(tmp_path / "a.tif"),), MovieSettings(), str(tmp_path / "sums")).open()
    work.start()
    work.run(0, lambda fraction: None)
    odd, even = opened(str(tmp_path / "sums")).pairs.read(0)
    write_mrc(tmp_path / "a_odd.mrc", odd)
    write_mrc(tmp_path / "a_even.mrc", even)
    specs = (f"movies:{tmp_path / 'a.tif'}", f"sums:{tmp_path / 'sums'}",
             f"pairs:{tmp_path / 'a_odd.mrc'},even={tmp_path / 'a_even.mrc'}")  # fmt: skip
    assert len({opened(spec).pairs.digests(0) for spec in specs}) == 1
    for spec in specs:
        files = opened(spec).files([0])
        assert files
        assert all(path.is_file() for path in files)
    for spec in specs:  # for loaders in other processes
        stack = opened(spec)
        for sent in (pickle.loads(pickle.dumps(stack)).pairs, pickle.loads(pickle.dumps(stack.pairs))):
            np.testing.assert_array_equal(sent.read(0), stack.pairs.read(0))
