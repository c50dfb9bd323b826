"""Streaming gives the images of `read`, in bounded memory, with one thread that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryobench.core import Stack
from cryobench.errors import DataError, SelectionError
from cryobench.io.streaming import AHEAD, stream
from cryobench.sources.stacks import File

IMAGE = 4 * 6 * 8
"""Bytes of an image of these tests."""


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_mrc(path: Path, images: np.ndarray) -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(images)
        mrc.set_image_stack()
    return path


@pytest.fixture
def star(tmp_path) -> Path:
    """30 images of two stacks of different modes, in runs, single ones, twice and backwards."""
    write_mrc(tmp_path / "a.mrcs", noise(12, 6, 8))
    write_mrc(tmp_path / "b.mrcs", (noise(9, 6, 8, seed=1) * 50).astype(np.int16))
    rows = [f"{i}@a.mrcs" for i in (*range(3, 10), 1, 1, 12, 11, 10)] + [f"{i}@b.mrcs" for i in range(1, 10)]
    rows += [f"{i % 12 + 1}@a.mrcs" for i in range(9)]
    (tmp_path / "p.star").write_text("data_\n\nloop_\n_rlnImageName\n" + "\n".join(rows) + "\n")
    return tmp_path / "p.star"


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("stream")}


def same(stack: Stack, chunks) -> list[int]:
    """The numbers of the streamed images, each checked against `read`."""
    seen = []
    for numbers, images in chunks:
        assert images.dtype == np.float32
        assert images.shape == (len(numbers), *stack.shape)
        for number, image in zip(numbers, images, strict=True):
            np.testing.assert_array_equal(image, stack.read(number))
        seen += numbers
    return seen


@pytest.mark.parametrize("fields", [{}, {"size": 4}, {"size": 9, "invert": True}])
@pytest.mark.parametrize("chunk_bytes", [1, IMAGE, 4 * IMAGE + 3, 1 << 20])
def test_streamed_images_are_those_of_read(star, fields, chunk_bytes):
    stack = File(str(star), **fields).open()
    assert same(stack, stack.stream(chunk_bytes=chunk_bytes)) == list(range(30))
    chosen = [29, 3, 4, 5, 6, 0, 17, 17]
    assert same(stack, stack.stream(chosen, chunk_bytes=chunk_bytes)) == chosen
    assert same(stack, stack.stream(np.array(chosen))) == chosen
    assert not threads()


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".mrcs.gz"])
def test_every_kind_of_file_streams(tmp_path, suffix):
    import gzip

    import torch

    images, path = noise(7, 6, 8), tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, images.astype(np.float64))
    elif suffix == ".pt":
        torch.save(torch.from_numpy(images).bfloat16(), path)
    else:
        path.write_bytes(gzip.compress(write_mrc(tmp_path / "plain.mrcs", images).read_bytes()))
    stack = File(str(path)).open()
    assert same(stack, stack.stream(chunk_bytes=3 * IMAGE)) == list(range(7))


def test_chunks_have_the_given_size(star):
    stack = File(str(star)).open()
    assert [len(numbers) for numbers, _ in stack.stream(chunk_bytes=8 * IMAGE)] == [8, 8, 8, 6]
    assert [len(numbers) for numbers, _ in stack.stream([], chunk_bytes=IMAGE)] == []


def test_consecutive_images_are_read_in_one_request(tmp_path, monkeypatch):
    stack = File(str(write_mrc(tmp_path / "a.mrcs", noise(20, 6, 8)))).open()
    requests, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: requests.append(preadv(*given)) or requests[-1])
    for _ in stack.stream(chunk_bytes=8 * IMAGE):
        pass
    assert requests == [8 * IMAGE, 8 * IMAGE, 4 * IMAGE]
    requests.clear()
    stack.read_block([2, 3, 4, 9, 8, 8])
    assert requests == [3 * IMAGE, IMAGE, IMAGE, IMAGE]


class Counting(Stack):
    """Images that count how many were read, and fail at one."""

    shape, label = (6, 8), "counting"

    def __init__(self, n: int, bad: int | None = None):
        self.n, self.bad, self.reads = n, bad, 0

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> np.ndarray:
        self.reads += 1
        if index == self.bad:
            raise DataError(f"image {index} of counting is bad; leave it out")
        return np.full(self.shape, index, np.float32)


def test_any_stack_streams():
    assert same(Counting(24), stream(Counting(24), chunk_bytes=5 * IMAGE)) == list(range(24))


def test_volumes_stream_in_chunks_of_the_given_size():
    stack = Counting(5)
    stack.shape = (2, 6, 8)
    chunks = list(stream(stack, chunk_bytes=4 * IMAGE))
    assert same(stack, chunks) == list(range(5))
    assert [len(numbers) for numbers, _ in chunks] == [2, 2, 1]


def test_a_block_is_the_images_of_read_by_default():
    stack = Counting(5)
    np.testing.assert_array_equal(stack.read_block([3, 1, 1]), np.stack([stack.read(i) for i in (3, 1, 1)]))
    assert stack.read_block([]).shape == (0, 6, 8)
    assert stack.clean_block([0, 1]) is None
    stack.shape = (1, 8)
    stack.read = lambda index: np.zeros((6, 8), np.float32)
    with pytest.raises(DataError, match=r"image 2 of counting has shape \(6, 8\); expected \(1, 8\)"):
        stack.read_block([2])


def test_reading_keeps_a_bounded_number_of_chunks_ahead():
    stack = Counting(100)
    chunks = stream(stack, chunk_bytes=2 * IMAGE)
    for taken in range(1, 11):
        next(chunks)
        time.sleep(0.02)
        assert stack.reads == 2 * (taken + AHEAD)
    chunks.close()


def test_closing_the_iterator_ends_the_thread():
    stack = Counting(1000)
    for _ in stream(stack, chunk_bytes=IMAGE):
        assert threads()
        break
    assert not threads()
    assert stack.reads <= 2 + AHEAD


def collect(chunks, seen: list[int]) -> None:
    for numbers, _ in chunks:
        seen += numbers


def test_an_error_is_raised_after_the_chunks_before_it_and_ends_the_thread():
    seen = []
    with pytest.raises(DataError, match="image 7 of counting is bad"):
        collect(stream(Counting(20, bad=7), chunk_bytes=2 * IMAGE), seen)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert not threads()


def test_an_image_that_is_not_finite_is_named(tmp_path):
    images = noise(20, 6, 8)
    images[13, 2, 3], images[15] = np.nan, np.inf
    np.save(tmp_path / "a.npy", images)
    stack, seen = File(str(tmp_path / "a.npy")).open(), []
    with pytest.raises(DataError, match=r"image 13 of a\.npy has 1 value that is not finite"):
        collect(stack.stream(chunk_bytes=4 * IMAGE), seen)
    assert seen == list(range(12))
    assert same(stack, stack.stream([12, 14, 16], chunk_bytes=4 * IMAGE)) == [12, 14, 16]


def test_a_number_beyond_the_end_is_refused(star):
    with pytest.raises(SelectionError, match=r"image 30 of p\.star does not exist"):
        list(File(str(star)).open().stream([0, 30]))


def test_a_file_cut_while_it_is_streamed(tmp_path):
    path = write_mrc(tmp_path / "a.mrcs", noise(20, 6, 8))
    chunks = File(str(path)).open().stream(chunk_bytes=IMAGE)
    next(chunks)
    os.truncate(path, 2000)
    with pytest.raises(DataError, match="changed while it was in use"):
        list(chunks)


def test_two_threads_may_read_while_it_streams(star, monkeypatch):
    monkeypatch.setattr("cryobench.io.open_files.MAX_OPEN", 1)  # every change of file closes the other
    stack = File(str(star)).open()
    expected = np.stack([stack.read(index) for index in range(30)])
    wrong: list[int] = []

    def read_often() -> None:
        for index in np.random.default_rng(0).integers(0, 30, 500):
            if not np.array_equal(stack.read(int(index)), expected[index]):
                wrong.append(int(index))

    reader = threading.Thread(target=read_often)
    reader.start()
    for _ in range(20):
        for numbers, images in stack.stream(chunk_bytes=2 * IMAGE):
            np.testing.assert_array_equal(images, expected[numbers])
    reader.join()
    assert not wrong


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from cryobench.sources.stacks import File

def anonymous():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("RssAnon")) / 1024

before, most, count = anonymous(), 0.0, 0
for numbers, images in File(sys.argv[1]).open().stream():
    assert not images.any()
    count += len(numbers)
    most = max(most, anonymous())
print(count, most - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to measure memory")
@pytest.mark.parametrize(("dtype", "count"), [(np.float32, 1500), (np.int16, 1000)])
def test_gigabytes_stream_in_a_hundred_megabytes(tmp_path, dtype, count):
    """1.6 GB as they are, and 1 GB that are converted."""
    side = 512
    path = write_mrc(tmp_path / "huge.mrcs", np.zeros((1, side, side), dtype))
    with path.open("r+b") as file:
        file.seek(8)
        file.write(np.int32(count).tobytes())  # nz
        try:
            file.truncate(1024 + count * side * side * np.dtype(dtype).itemsize)
        except OSError as error:
            pytest.skip(f"no sparse files of this size here: {error}")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    read, grown = done.stdout.split()
    assert int(read) == count
    assert float(grown) < 100
