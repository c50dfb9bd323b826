"""The table of file formats: one entry is enough to read and to write a format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryobench.core import Stack
from cryobench.errors import DataError, ParameterError
from cryobench.io.conversion import CleanStack, convert, written_files
from cryobench.io.formats import FORMATS, FileImages, Format
from cryobench.io.image_files import ImageFile
from cryobench.sources.stacks import File

IMAGES = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)


class Volumes(Stack):
    """Three volumes."""

    label = "volumes"

    def __init__(self) -> None:
        self.shape = IMAGES.shape[1:]  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return len(IMAGES)

    def read(self, index: int) -> np.ndarray:
        return IMAGES[index].copy()


def open_raw(path: Path, as_stack: bool, data_root: str | None) -> FileImages:
    """Volumes of 4 x 5 x 6 voxels without a header."""
    images = np.fromfile(path, np.float32).reshape(-1, 4, 5, 6)

    def read(first: int, out: np.ndarray) -> None:
        out[...] = images[first : first + len(out)]

    return FileImages.from_file(ImageFile(path, len(images), images.shape[1:], 1.5, lambda: read))  # pyright: ignore[reportArgumentType]


def write_raw(files, path: Path, chunks, stack: Stack, numbers) -> None:
    files[0].write_bytes(b"".join(chunk.tobytes() for chunk in chunks))


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """A file in a format that is registered by one entry of the table."""
    monkeypatch.setitem(FORMATS, ".raw", Format(open_raw, write_raw))
    return convert(Volumes(), tmp_path / "a.raw")[0]


def test_one_entry_registers_a_format_of_volumes(raw):
    stack = File(str(raw)).open()
    assert (len(stack), stack.shape, stack.pixel_size(1)) == (3, (4, 5, 6), 1.5)
    np.testing.assert_array_equal(stack.read_block([2, 0]), IMAGES[[2, 0]])
    np.testing.assert_array_equal(stack.read(1), IMAGES[1])
    with pytest.raises(DataError, match=r"unknown suffix .*expected .*\.raw"):
        File("a.jpg").open()
    with pytest.raises(ParameterError, match=r"expected one of \.mrcs, \.npy, .*\.raw"):
        written_files(Path("a.jpg"))


def test_operations_on_2d_images_refuse_volumes(raw, tmp_path):
    with pytest.raises(DataError, match=r"size=4 resamples 2-D images, but a.raw has 4 x 5 x 6"):
        _ = File(str(raw), size=4).open().shape
    with pytest.raises(DataError, match=r"cannot write .*b.mrcs: volumes has volumes of 4 x 5 x 6; give a .npy"):
        convert(Volumes(), tmp_path / "b.mrcs")
    assert not list(tmp_path.glob("b.*"))


def test_volumes_are_written_as_npy(tmp_path):
    (path,) = convert(Volumes(), tmp_path / "a.npy", images=[2, 1], normalize="minmax")
    written = np.load(path)
    assert written.shape == (2, 4, 5, 6)
    assert (written.min(axis=(1, 2, 3)) == -1).all()
    assert (written.max(axis=(1, 2, 3)) == 1).all()


def test_unknown_clean_images_are_refused():
    with pytest.raises(DataError, match="the clean images of volumes are not known"):
        CleanStack(Volumes()).read(0)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_help_of_the_file_source_names_every_format(suffix):
    from cryobench.spec import fields_of

    assert suffix in fields_of(File)[0].doc
