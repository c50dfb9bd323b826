"""Image files: written images are read back, lazily; invalid files are refused in one line."""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
import tempfile
import time
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from cs_files import cs_table, with_fields, write_cs
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryobench.errors import DataError, DataWarning, ParameterError, SelectionError
from cryobench.io import formats
from cryobench.io.conversion import convert
from cryobench.io.cryosparc import euler_angles
from cryobench.io.formats import FORMATS
from cryobench.io.fourier_crop import fourier_resize, square_crop
from cryobench.io.image_files import open_mrc
from cryobench.io.open_files import MAX_OPEN
from cryobench.io.selection import parse_images
from cryobench.io.star_text import parse
from cryobench.physics.ctf import CtfParameters
from cryobench.plan.dataset import load
from cryobench.registry import installed
from cryobench.sources.stacks import File, FileStack
from cryobench.spec import Spec

SHARED = Path(__file__).parents[2].parent / "shared"


def shared(name: str) -> str:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"real data is not here: {path}")
    return str(path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_mrc(path: Path, array: np.ndarray, *, pixel_size: float = 0, stack: bool = True) -> Path:
    with warnings.catch_warnings(), mrcfile.new(path, overwrite=True) as mrc:
        warnings.simplefilter("ignore")  # mrcfile's, about the NaN that some tests write on purpose
        mrc.set_data(array)
        if stack and array.ndim == 3:
            mrc.set_image_stack()
        if pixel_size:
            mrc.voxel_size = pixel_size
    return path


def write_star(path: Path, names: list[str], columns: dict[str, str] | None = None) -> Path:
    """A RELION 3.0 table; `columns` holds the same value for every row."""
    columns = columns or {}
    header = "".join(f"_{name}\n" for name in ["rlnImageName", *columns])
    rows = "".join(" ".join([name, *columns.values()]) + "\n" for name in names)
    path.write_text(f"data_\n\nloop_\n{header}{rows}")
    return path


def read_all(path: Path | str, **fields) -> None:
    stack = File(str(path), **fields).open()
    for index in range(len(stack)):
        stack.read(index)


def packed(path: Path, plain: bytes) -> Path:
    """A file with these bytes, compressed according to its name."""
    path.write_bytes({".gz": gzip, ".bz2": bz2}[path.suffix.lower()].compress(plain))
    return path


def refused(path: Path | str, **fields) -> str:
    """The error message of opening a file or reading its images; the only warnings are about the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DataWarning)
        with pytest.raises(DataError) as caught:
            read_all(path, **fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------- what is written is read


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float32])
def test_mrc_stack_of_every_real_mode(tmp_path, dtype):
    images = (noise(3, 6, 8) * 20 + 40).astype(dtype)
    stack = File(str(write_mrc(tmp_path / "a.mrcs", images, pixel_size=1.5))).open()
    assert (len(stack), stack.shape, stack.label, stack.table) == (3, (6, 8), "a.mrcs", None)
    for index in range(3):
        image = stack.read(index)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, images[index].astype(np.float32))
        assert stack.pixel_size(index) == pytest.approx(1.5)


def test_big_endian_mrc_with_an_extended_header(tmp_path):
    images = noise(2, 4, 4)
    with mrcfile.new(tmp_path / "a.mrcs", images.astype(">f4")) as mrc:
        mrc.set_extended_header(np.zeros(64, dtype="V1"))
    np.testing.assert_array_equal(File(str(tmp_path / "a.mrcs")).open().read(1), images[1])


@pytest.mark.parametrize("name", ["a.mrcs.gz", "a.mrcs.bz2", "A.MRCS.GZ"])
def test_a_compressed_stack_is_unpacked_when_read_and_leaves_no_file(tmp_path, monkeypatch, name):
    images = noise(3, 6, 8)
    path = packed(tmp_path / name, write_mrc(tmp_path / "plain.mrcs", images, pixel_size=1.5).read_bytes())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    stack = File(str(path)).open()
    assert (len(stack), stack.shape, stack.label) == (3, (6, 8), name)
    for index in (2, 0, 1):
        np.testing.assert_array_equal(stack.read(index), images[index])
        assert stack.pixel_size(index) == pytest.approx(1.5)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_damaged_compressed_stacks_are_refused(tmp_path, suffix):
    plain = write_mrc(tmp_path / "plain.mrcs", noise(8, 32, 32)).read_bytes()
    whole = packed(tmp_path / f"whole.mrcs{suffix}", plain)
    for kept in (0.0, 0.01, 0.5, 0.99):
        cut = tmp_path / f"cut{kept}.mrcs{suffix}"
        cut.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
        assert "copy" in refused(cut)
    assert "truncated" in refused(packed(tmp_path / f"short.mrcs{suffix}", plain[:-4]))
    with pytest.warns(DataWarning, match="longer than its header says"):
        read_all(packed(tmp_path / f"long.mrcs{suffix}", plain + b"    "))
    assert "longer than its header says" in refused(packed(tmp_path / f"bomb.mrcs{suffix}", plain + bytes(100_000)))
    assert "not a readable MRC file" in refused(packed(tmp_path / f"text.mrcs{suffix}", b"hello\n" * 400))
    (tmp_path / f"plain.mrcs{suffix}").write_bytes(plain)
    assert "not a readable MRC file" in refused(tmp_path / f"plain.mrcs{suffix}")
    assert "unknown suffix" in refused(packed(tmp_path / f"a.star{suffix}", b"data_"))


@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8), (3, 6, 8), (3, 1, 6, 8)])
@pytest.mark.parametrize("suffix", [".npy", ".pt"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_arrays_and_tensors_of_every_shape(tmp_path, shape, suffix, dtype):
    images = (noise(*shape) * 20 + 100).astype(dtype)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, images)
    else:
        torch.save(torch.from_numpy(images), path)
    stack = File(str(path)).open()
    assert len(stack) == images.size // 48
    assert (stack.shape, stack.pixel_size(0)) == ((6, 8), None)
    for index, expected in enumerate(images.reshape(-1, 6, 8)):
        image = stack.read(index)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, expected.astype(np.float32))


def test_tensors_in_legacy_files_and_bfloat16(tmp_path):
    images = torch.from_numpy(noise(2, 4, 4))
    torch.save(images.bfloat16(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    expected = images[1].bfloat16().float().numpy()
    np.testing.assert_array_equal(File(str(tmp_path / "a.pt")).open().read(1), expected)


@pytest.mark.parametrize("suffix", [".mrcs", ".npy", ".pt"])
def test_an_image_is_a_copy_that_can_be_written_to(tmp_path, suffix):
    path, images = tmp_path / f"a{suffix}", noise(2, 4, 4)
    match suffix:
        case ".mrcs":
            write_mrc(path, images)
        case ".npy":
            np.save(path, images)
        case _:
            torch.save(torch.from_numpy(images), path)
    before, stack = path.read_bytes(), File(str(path)).open()
    stack.read(0)[:] = 7
    np.testing.assert_array_equal(stack.read(0), images[0])
    assert path.read_bytes() == before


def test_suffix_in_capitals(tmp_path):
    np.save(tmp_path / "a.npy", noise(4, 4))
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    assert len(File(str(tmp_path / "A.NPY")).open()) == 1


def test_a_volume_requires_as_stack(tmp_path):
    volume = noise(5, 4, 4)
    path = write_mrc(tmp_path / "volume.mrc", volume, stack=False)
    message = refused(path)
    assert "volume of 5 sections" in message
    assert "--as-stack" in message
    stack = File(str(path), as_stack=True).open()
    assert len(stack) == 5
    np.testing.assert_array_equal(stack.read(4), volume[4])


def test_mrc_files_that_are_stacks_without_as_stack(tmp_path):
    volume = noise(5, 4, 4)
    by_header = write_mrc(tmp_path / "header.mrc", volume)
    by_suffix = write_mrc(tmp_path / "suffix.mrcs", volume, stack=False)
    write_mrc(tmp_path / "volume.mrc", volume, stack=False)
    by_star = write_star(tmp_path / "a.star", [f"{i}@volume.mrc" for i in (1, 2, 3, 4, 5)])
    one_section = write_mrc(tmp_path / "single.mrc", volume[:1], stack=False)
    assert [len(File(str(path)).open()) for path in (by_header, by_suffix, by_star, one_section)] == [5, 5, 5, 1]


# --------------------------------------------------------------------------------------------------- star files

OPTICS_STAR = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
first 1 300.0 2.7 0.1 1.25
second 2 200.0 2.0 0.07 2.50


# version 30001

data_particles

loop_
_rlnImageName #1
_rlnDefocusU #2
_rlnDefocusV #3
_rlnDefocusAngle #4
_rlnOpticsGroup #5
000003@a.mrcs 15000.0 14000.0 30.0 2
000001@b.mrcs 16000.0 15000.0 40.0 1
000001@a.mrcs 17000.0 16000.0 50.0 2
"""


@pytest.fixture
def optics_star(tmp_path):
    a, b = noise(3, 6, 6, seed=1), noise(2, 6, 6, seed=2)
    write_mrc(tmp_path / "a.mrcs", a, pixel_size=9)
    write_mrc(tmp_path / "b.mrcs", b, pixel_size=9)
    (tmp_path / "particles.star").write_text(OPTICS_STAR)
    return tmp_path / "particles.star", [a[2], b[0], a[0]]


def test_relion_31_order_pixel_size_and_ctf(optics_star):
    path, expected = optics_star
    stack = File(str(path)).open()
    assert stack.label == "particles.star"
    for index, image in enumerate(expected):
        np.testing.assert_array_equal(stack.read(index), image)
    assert [stack.pixel_size(index) for index in range(3)] == [2.5, 1.25, 2.5]
    assert stack.table["rlnDefocusU"].tolist() == [15000, 16000, 17000]
    assert stack.table["rlnVoltage"].tolist() == [200, 300, 200]
    assert stack.table["rlnOpticsGroupName"].tolist() == ["second", "first", "second"]


def test_relion_30_pixel_size_takes_precedence_over_the_header(tmp_path):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4), pixel_size=9)
    columns = {"rlnDetectorPixelSize": "5", "rlnMagnification": "40000"}
    stated = File(str(write_star(tmp_path / "stated.star", ["2@a.mrcs"], columns))).open()
    silent = File(str(write_star(tmp_path / "silent.star", ["2@a.mrcs"]))).open()
    assert (stated.pixel_size(0), silent.pixel_size(0)) == (pytest.approx(1.25), pytest.approx(9))
    assert silent.table.columns.tolist() == ["rlnImageName"]
    assert silent.rows([0])["rlnImagePixelSize"].tolist() == [9]  # the header's, for lengths in pixels
    assert stated.table["rlnMagnification"].tolist() == [40000]


def test_every_column_of_a_star_file_is_in_the_table(tmp_path):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4))
    columns = {"rlnAngleRot": "30.5", "rlnOriginX": "-1.25", "rlnMicrographName": "007", "mineScore": "03"}
    table = File(str(write_star(tmp_path / "p.star", ["2@a.mrcs", "1@a.mrcs"], columns))).open().table
    assert table["rlnImageName"].tolist() == ["2@a.mrcs", "1@a.mrcs"]
    assert table.iloc[0, 1:].tolist() == [30.5, -1.25, "007", "03"]


def test_stacks_are_looked_for_in_order(tmp_path, monkeypatch):
    here, project = tmp_path / "here", tmp_path / "project"
    folders = [tmp_path / "root", project / "job", project, here]
    for value, folder in enumerate(folders):
        (folder / "sub").mkdir(parents=True)
        write_mrc(folder / "sub" / "a.mrcs", np.full((1, 4, 4), value, np.float32))
    star = write_star(project / "job" / "p.star", ["1@sub/a.mrcs"])
    monkeypatch.chdir(here)
    for value, folder in enumerate(folders):
        assert File(str(star), data_root=str(folders[0])).open().read(0)[0, 0] == value
        (folder / "sub" / "a.mrcs").unlink()
    message = refused(star, data_root=str(folders[0]))
    positions = [message.index(f"{folder / 'sub' / 'a.mrcs'}") for folder in folders]
    assert positions == sorted(positions)
    assert "--data-root" in message


def test_a_star_file_of_many_stacks_keeps_few_open_and_closes_all(tmp_path):
    count = MAX_OPEN + 3
    for value in range(count):
        write_mrc(tmp_path / f"{value}.mrcs", np.full((2, 4, 4), value, np.float32))
    stack = File(str(write_star(tmp_path / "p.star", [f"2@{value}.mrcs" for value in range(count)]))).open()
    for _ in range(2):
        assert [stack.read(index)[0, 0] for index in range(count)] == list(range(count))
    if Path("/proc/self/fd").exists():
        assert len(open_below(tmp_path)) == MAX_OPEN
        del stack
        assert not open_below(tmp_path)


def open_below(folder: Path) -> list[str]:
    """The files under a folder that this process has open or mapped."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [name for name in [*(str(link.readlink()) for link in links), *maps] if str(folder) in name]


def test_a_single_particle_in_a_block_without_a_loop(tmp_path):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4))
    (tmp_path / "p.star").write_text("data_particles\n\n_rlnImageName 2@a.mrcs\n_rlnDefocusU 1000\n")
    assert len(File(str(tmp_path / "p.star")).open()) == 1


def test_text_is_carried_as_it_is_from_star_file_to_star_file(tmp_path):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4), pixel_size=1.5)
    (tmp_path / "o'brien").mkdir()
    (tmp_path / "a.mrcs").rename(tmp_path / "o'brien" / "a#1.mrcs")
    columns = {
        "rlnMicrographName": "o'brien/m#2.mrc",
        "rlnTomoName": "00255",
        "rlnGroupName": "01",
        "rlnAngleRot": "11",
    }
    star = write_star(tmp_path / "p.star", ["1@o'brien/a#1.mrcs", "2@o'brien/a#1.mrcs"], columns)
    convert(File(str(star)).open(), tmp_path / "out.mrcs")
    table = File(str(tmp_path / "out.star")).open().table
    assert table[list(columns)].to_numpy().tolist() == [["o'brien/m#2.mrc", "00255", "01", 11]] * 2


@pytest.mark.parametrize("name", ["a.star", "a.cs", "a.mrcs", "a.npy", "a.pt"])
@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s9--0\n", "git annex get"),
    ],
)
def test_pointers_to_files_in_other_storage_are_named(tmp_path, name, text, command):
    (tmp_path / name).write_text(text)
    assert f"fetch the file with `{command}`" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("columns", "pixel_size"),
    [
        ({"rlnPixelSize": "1.7"}, 1.7),
        ({"rlnMicrographPixelSize": "1.7"}, 1.7),
        ({"rlnMicrographPixelSize": "0.5", "rlnDetectorPixelSize": "5", "rlnMagnification": "40000"}, 1.25),
        ({"rlnMagnification": "40000", "rlnDetectorPixelSize": "5", "rlnPixelSize": "1.7"}, 1.7),
        ({"rlnPixelSize": "1.7", "rlnMicrographPixelSize": "0.5", "rlnImagePixelSize": "2"}, 2),
        ({"rlnMagnification": "40000"}, 1.0),
    ],
)
def test_the_pixel_size_of_the_table_counts_before_that_of_the_header(tmp_path, columns, pixel_size):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4), pixel_size=1.0)
    stack = File(str(write_star(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs"], columns))).open()
    assert stack.pixel_size(0) == pytest.approx(pixel_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in (0, 1):
            stack.read(index)
    expected = [f"p.star states {pixel_size:.4g} Å per pixel, the header of"] if pixel_size != 1 else []
    assert [str(warning.message).split(f" {tmp_path}")[0] for warning in caught] == expected
    convert(stack, tmp_path / "out.mrcs")  # one pixel size in what is written
    optics = parse((tmp_path / "out.star").read_text())["optics"]
    assert optics["rlnImagePixelSize"].tolist() == pytest.approx([pixel_size])
    assert {"rlnPixelSize", "rlnMagnification"}.isdisjoint(optics)


@pytest.mark.parametrize(("header", "warned"), [(1.709, False), (1.72, True), (1.68, True)])
def test_a_header_that_differs_by_more_than_1_percent_is_warned_of(tmp_path, header, warned):
    write_mrc(tmp_path / "a.mrcs", noise(1, 4, 4), pixel_size=header)
    stack = File(str(write_star(tmp_path / "p.star", ["1@a.mrcs"], {"rlnImagePixelSize": "1.7"}))).open()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stack.read(0)
    assert len(caught) == warned


@pytest.mark.parametrize("missing", ["b", "a"])
def test_a_missing_or_damaged_stack_concerns_its_own_images_only(tmp_path, missing):
    """Also where it is the first that the table names."""
    star = write_star(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs", "1@b.mrcs", "3@b.mrcs", "1@c.mrcs"])
    images = noise(2, 4, 6)
    present, lost = ({"a": range(2), "b": [2]}[name] for name in ("ab" if missing == "b" else "ba"))
    write_mrc(tmp_path / f"{'ab'.replace(missing, '')}.mrcs", images, pixel_size=1.5)
    (tmp_path / "c.mrcs").write_bytes(b"no stack")
    stack = File(str(star)).open()
    assert (len(stack), stack.shape, stack.pixel_size(present[0])) == (5, (4, 6), pytest.approx(1.5))
    np.testing.assert_array_equal(stack.read_block(present), images[: len(present)])
    assert stack.rows(present)["rlnImagePixelSize"].tolist() == pytest.approx([1.5] * len(present))
    convert(stack, tmp_path / "out.mrcs", images=present)
    with pytest.raises(DataError, match=f"names the stack {missing}.mrcs, which does not exist"):
        stack.read(lost[0])
    with pytest.raises(DataError, match="truncated"):
        stack.read(4)
    assert len(load(Spec("file", str(star)), ",".join(map(str, present)), installed()).ids) == len(present)


def test_only_the_stacks_of_chosen_images_are_opened(tmp_path, monkeypatch):
    """Of 3,000 stacks: 4 images of 2 stacks open 2 headers."""
    for name in (7, 2000):
        write_mrc(tmp_path / f"{name}.mrcs", noise(2, 4, 4), pixel_size=1.5)
    star = write_star(tmp_path / "p.star", [f"{page}@{name}.mrcs" for name in range(3000) for page in (1, 2)])
    opened = []
    monkeypatch.setattr(
        formats, "open_mrc", lambda path, **options: opened.append(path.name) or open_mrc(path, **options)
    )
    load(Spec("file", str(star)), "14,15,4000,4001", installed())
    assert opened == ["7.mrcs", "2000.mrcs"]


# ------------------------------------------------------------------------------------------------------ laziness


def bytes_read() -> int:
    """Bytes that this process has read, without page faults of memory maps."""
    return int(Path("/proc/self/io").read_text().split()[1])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sparse_mrcs(path: Path, count: int, side: int) -> Path:
    """A sparse file of a stack of float32 zeros; skips where the file system has no sparse files."""
    write_mrc(path, np.zeros((1, side, side), np.float32))
    with mrcfile.mrcfile.MrcFile(path, header_only=True) as mrc:
        header = mrc.header.copy()
    header.nz, header.ispg = count, 0
    try:
        with path.open("r+b") as file:
            file.write(header.tobytes())
            file.truncate(1024 + count * side * side * 4)
    except OSError as error:
        pytest.skip(f"no sparse files of this size here: {error}")
    return path


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's /proc to count bytes")
def test_fifty_gigabytes_open_at_once_and_only_the_given_images_are_read(tmp_path, monkeypatch):
    count, side = 50_000, 512  # 52 GB
    path = sparse_mrcs(tmp_path / "huge.mrcs", count, side)
    images = np.random.default_rng(0).choice(count, 16, replace=False)
    expected = {int(number): noise(side, side, seed=int(number)) for number in images}
    with path.open("r+b") as file:
        for number, image in expected.items():
            file.seek(1024 + number * image.nbytes)
            file.write(image.tobytes())
    requests, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: requests.append(preadv(*given)) or requests[-1])
    before, resident, start = bytes_read(), resident_bytes(), time.perf_counter()
    stack = File(str(path)).open()
    seconds, opened = time.perf_counter() - start, bytes_read() - before
    for number, image in expected.items():
        np.testing.assert_array_equal(stack.read(number), image)
    assert seconds < 0.5
    assert opened < 16_384  # the header, and what counting it reads of /proc
    assert requests == [side * side * 4] * 16
    assert 16 * side * side * 4 <= bytes_read() - before - opened < 16 * side * side * 4 + 4096
    assert resident_bytes() - resident < 20 * side * side * 4


def test_short_reads_are_completed(tmp_path, monkeypatch):
    images, preadv = noise(3, 7, 9), os.preadv
    stack = File(str(write_mrc(tmp_path / "a.mrcs", images))).open()
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, at: preadv(descriptor, [buffers[0][:10]], at))
    np.testing.assert_array_equal(stack.read(2), images[2])


def test_a_disk_failure_is_reported_in_one_line(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    assert "cannot be read: [Errno 5]" in refused(write_mrc(tmp_path / "a.mrcs", noise(3, 7, 9)))


# ------------------------------------------------------------------------------------------------ CryoSPARC tables


@pytest.fixture
def project(tmp_path):
    """A CryoSPARC project's folder with two stacks, and their images."""
    a, b = noise(3, 6, 6, seed=1), noise(2, 6, 6, seed=2)
    (tmp_path / "J3" / "extract").mkdir(parents=True)
    write_mrc(tmp_path / "J3" / "extract" / "a.mrcs", a, pixel_size=9)
    write_mrc(tmp_path / "J3" / "extract" / "b.mrcs", b, pixel_size=9)
    return tmp_path, a, b


def test_paths_of_a_cryosparc_table_are_relative_to_the_project(project):
    folder, a, b = project
    stack = File(str(write_cs(folder / "J3" / "extracted_particles.cs", cs_table()))).open()
    for index, image in enumerate([b[1], a[2], b[0]]):
        np.testing.assert_array_equal(stack.read(index), image)
        assert stack.pixel_size(index) == 1.25
    ctf = stack.table
    assert ctf["rlnDefocusU"].tolist() == [15000, 16000, 17000]
    assert ctf["rlnDefocusV"].tolist() == [14000, 15000, 16000]
    optics = ctf[["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnDefocusAngle", "rlnPhaseShift"]]
    np.testing.assert_allclose(optics, [[300, 2.7, 0.1, 30, 90]] * 3, rtol=1e-6)
    assert ctf["rlnImagePixelSize"].tolist() == [1.25] * 3
    assert "rlnAngleRot" not in ctf
    plain = cs_table()[["blob/path", "blob/idx"]].copy()
    silent = File(str(write_cs(folder / "J3" / "plain.cs", plain))).open()
    assert (silent.table, silent.pixel_size(0)) == (None, pytest.approx(9))


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's Euler_angles2matrix, as its source writes it out; angles in degrees."""
    (ca, cb, cg), (sa, sb, sg) = np.cos(np.radians([rot, tilt, psi])), np.sin(np.radians([rot, tilt, psi]))
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


POSES = [
    *Rotation.random(20, rng=np.random.default_rng(0)).as_rotvec(),
    *[[0, 0, 0], [0, 0, 0.4], [0, 0, -3], [np.pi, 0, 0], [0, np.pi, 0], [0, 2, 0], [1e-9, 0, 0], [0, 0, 7]],
]


@pytest.mark.parametrize("pose", POSES)
def test_cryosparc_poses_in_relions_angles_are_the_transposed_rotation(pose):
    ((rot, tilt, psi),) = euler_angles(np.array([pose]))
    np.testing.assert_allclose(relion_matrix(rot, tilt, psi), Rotation.from_rotvec(pose).as_matrix().T, atol=1e-12)
    assert 0 <= tilt <= 180
    assert max(abs(rot), abs(psi)) <= 180
    if 1e-3 < tilt < 179.9:
        np.testing.assert_allclose((rot, tilt, psi), Rotation.from_rotvec(pose).as_euler("ZYZ", degrees=True))


def test_cryosparc_alignments_are_in_relions_columns(project):
    folder, *_ = project
    shift = np.array([[1, -2], [0.5, 0], [0, 4]], np.float32)
    fields = {
        "alignments3D/pose": np.array([[0, 0, 0.5], [0, 0.3, 0], [0, 0, 0]], np.float32),
        "alignments3D/shift": shift,
        "alignments3D/split": np.array([0, 1, 1], np.uint32),
        "location/micrograph_path": np.array([b">J1/m 1.mrc", b">J1/m 1.mrc", b"J1/m2.mrc"]),
    }
    path = folder / "p.cs"
    table = File(str(write_cs(path, with_fields(cs_table(), fields)))).open().table
    angles = table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    np.testing.assert_allclose(angles[1], [0, np.degrees(0.3), 0], atol=1e-5)
    np.testing.assert_allclose(angles[[0, 2]] @ [1, 0, 1], [np.degrees(0.5), 0], atol=1e-5)
    np.testing.assert_allclose(table[["rlnOriginXAngst", "rlnOriginYAngst"]], shift * 1.25)
    assert table["rlnRandomSubset"].tolist() == [1, 2, 2]
    assert table["rlnMicrographName"].tolist() == ["J1/m 1.mrc", "J1/m 1.mrc", "J1/m2.mrc"]
    binned = with_fields(cs_table(), {**fields, "alignments3D/psize_A": np.full(3, 5.0)})
    table = File(str(write_cs(path, binned))).open().table
    np.testing.assert_allclose(table[["rlnOriginXAngst", "rlnOriginYAngst"]], shift * 5)
    bare = with_fields(cs_table()[["blob/path", "blob/idx"]].copy(), {"alignments3D/shift": shift})
    table = File(str(write_cs(path, bare))).open().table
    np.testing.assert_allclose(table[["rlnOriginX", "rlnOriginY"]], shift)


def data_warnings(path: Path) -> tuple[FileStack, list[str]]:
    """The opened file and the warnings about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stack = File(str(path)).open()
    return stack, [str(warning.message) for warning in caught]


def test_a_cryosparc_table_of_many_classes_is_read(project):
    folder, a, _ = project
    names = ("pose_0", "class", "class_posterior", "error", "cross_cor", "alpha")
    fields = {f"alignments_class3D_{k}/{name}": np.zeros(3, np.float32) for k in range(100) for name in names}
    rows = with_fields(cs_table(), fields)
    assert len(repr(rows.dtype.descr)) > 2 * 10_000  # numpy's limit
    np.testing.assert_array_equal(File(str(write_cs(folder / "p.cs", rows))).open().read(1), a[2])
    objects = np.array([(b"x", {})], [("blob/path", "S1"), ("blob/idx", object)])
    np.save(folder / "o.npy", objects, allow_pickle=True)
    (folder / "o.npy").rename(folder / "o.cs")
    assert "allow_pickle=False" in refused(folder / "o.cs")


@pytest.mark.parametrize(("split", "subset"), [([0, 0, 0], None), ([1, 1, 1], None), ([1, 0, 1], [2, 1, 2])])
def test_half_sets_that_were_never_assigned_are_left_out(project, split, subset):
    folder, *_ = project
    rows = with_fields(cs_table(), {"alignments3D/split": np.array(split, np.uint32)})
    table = File(str(write_cs(folder / "p.cs", rows))).open().table
    assert (table["rlnRandomSubset"].tolist() if subset else "rlnRandomSubset" in table) == (subset or False)


def test_the_b_factor_of_cryosparc_is_that_of_the_ctf(project):
    folder, *_ = project
    rows = with_fields(cs_table(), {"ctf/bfactor": np.array([80, 90, 100], np.float32)})
    table = File(str(write_cs(folder / "p.cs", rows))).open().table
    assert CtfParameters.from_table(table).b_factor.tolist() == [80, 90, 100]


def test_images_of_both_signs_get_the_contrast_of_sign_1(project):
    folder, a, b = project
    rows = with_fields(cs_table(), {"blob/sign": np.array([1, -1, 1], np.float32)})
    stack, said = data_warnings(write_cs(folder / "p.cs", rows))
    assert [text.split(": ", 1)[1] for text in said] == [
        "blob/sign is -1 for 1 of 3 images; inverting their contrast to that of the others"
    ]
    np.testing.assert_array_equal(stack.read_block([0, 1, 2]), [b[1], -a[2], b[0]])
    np.testing.assert_array_equal(File(str(folder / "p.cs"), invert=True).open().read_block([1, 0]), [a[2], -b[1]])
    rows["blob/sign"] = -1  # one contrast: the images are as stored
    stack, said = data_warnings(write_cs(folder / "p.cs", rows))
    assert not said
    np.testing.assert_array_equal(stack.read(1), a[2])
    rows["blob/sign"] = [1, 0, 1]
    assert "row 2 has blob/sign 0; expected 1 or -1" in refused(write_cs(folder / "p.cs", rows))


def test_the_beam_tilt_of_cryosparc_is_in_mrad(project):
    """Its shift in the image is Cs sin(tilt): 1 mrad at Cs = 2.7 mm is 27,000 Å."""
    folder, *_ = project
    tilt = np.array([[27_000, 0], [-13_500, 27_000], [0, 0]])
    path = write_cs(folder / "p.cs", with_fields(cs_table(), {"ctf/tilt_A": tilt}))
    table = File(str(path)).open().table
    np.testing.assert_allclose(table[["rlnBeamTiltX", "rlnBeamTiltY"]], tilt / 27_000, rtol=1e-6)
    assert (
        "rlnBeamTiltX" not in File(str(write_cs(path, with_fields(cs_table(), {"ctf/tilt_A": 0 * tilt})))).open().table
    )
    impossible = with_fields(cs_table(ctf_cs_mm=0), {"ctf/tilt_A": tilt})
    assert "row 1 has ctf/tilt_A [27000.0, 0.0]" in refused(write_cs(path, impossible))


def test_fields_that_are_not_converted_are_named(project):
    folder, *_ = project
    fields = {
        "ctf/trefoil_A": np.array([[0, 0], [0, 1], [0, 0]]),
        "ctf/tetra_A": np.zeros((3, 4)),
        "ctf/anisomag": np.full((3, 4), 0.01),
        "ctf/scale": np.ones(3),
        "location/center_x_frac": np.full(3, 0.5),
        "alignments2D/pose": np.zeros(3),
        "alignments3D/class": np.array([0, 2, 1], np.uint32),
    }
    stack, said = data_warnings(write_cs(folder / "p.cs", with_fields(cs_table(), fields)))
    assert said == [
        f"{folder / 'p.cs'}: not converted to RELION's columns: ctf/trefoil_A, ctf/anisomag, location/center_x_frac, "
        "alignments2D/pose"
    ]
    assert stack.table["rlnClassNumber"].tolist() == [1, 3, 2]
    neutral = {name: fields[name] for name in ("ctf/tetra_A", "ctf/scale")}
    assert not data_warnings(write_cs(folder / "p.cs", with_fields(cs_table(), neutral)))[1]


def test_invalid_cryosparc_tables_are_refused(project):
    folder, *_ = project
    path = folder / "p.cs"
    signed = with_fields(cs_table()[["blob/path"]].copy(), {"blob/idx": np.array([0, -1, 0])})
    assert "row 2 names image 0 of" in refused(write_cs(path, signed))
    for field, values in {"pose": np.zeros((3, 2)), "shift": np.zeros(3), "psize_A": np.zeros(3)}.items():
        fields = {"alignments3D/shift": np.zeros((3, 2)), f"alignments3D/{field}": values}
        message = refused(write_cs(path, with_fields(cs_table(), fields)))
        assert ("row 1 has a pixel size of 0" if field == "psize_A" else f"alignments3D/{field} has shape") in message
    texts = with_fields(cs_table()[["blob/path"]].copy(), {"blob/idx": np.array(["0", "1", "2"])})
    assert "blob/idx has shape (3,) of <U1; expected one number" in refused(write_cs(path, texts))
    for several in (np.zeros((3, 0), "S4"), np.zeros((3, 2), "S4"), np.zeros(3)):
        paths = with_fields(cs_table()[["blob/idx"]].copy(), {"blob/path": several})
        assert "blob/path has shape" in refused(write_cs(path, paths))
    assert "blob/path" in refused(write_cs(path, cs_table()[["uid", "ctf/df1_A"]].copy()))
    assert "passthrough" in refused(write_cs(path, np.zeros(3)))
    assert "lists no images" in refused(write_cs(path, cs_table()[:0]))
    assert "row 1 has a pixel size of 0" in refused(write_cs(path, cs_table(blob_psize_A=0)))
    assert "row 2 names image 4" in refused(write_cs(path, cs_table(blob_idx=[0, 3, 0])))
    assert "--data-root" in refused(write_cs(path, cs_table(blob_path=b"J3/none.mrcs")))
    with path.open("wb") as file:
        np.savez(file, rows=cs_table())
    assert "archive" in refused(path)


# -------------------------------------------------------------------------------------------------------- refusals


def test_missing_files_folders_and_unknown_suffixes_are_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "a.mrc")
    assert "does not exist" in refused(tmp_path / "a.star")
    (tmp_path / "folder.mrcs").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.mrcs")
    (tmp_path / "a.jpg").write_bytes(b"II*")
    message = refused(tmp_path / "a.jpg")
    assert "'.jpg'" in message
    assert all(suffix in message for suffix in FORMATS)
    assert "volume:" not in message


@pytest.mark.parametrize("name", ["a.map", "A.MAP.GZ", "a.map.bz2"])
def test_a_map_is_an_mrc_file(tmp_path, name):
    def written(array: np.ndarray, stack: bool) -> Path:
        plain = write_mrc(tmp_path / "plain.mrc", array, stack=stack)
        if name.lower().endswith(".map"):
            return plain.rename(tmp_path / name)
        return packed(tmp_path / name, plain.read_bytes())

    for array, stack in ((noise(3, 4, 5), True), (noise(1, 4, 5), False), (noise(4, 5), False)):
        opened = File(str(written(array, stack))).open()
        np.testing.assert_array_equal(opened.read_block(range(len(opened))), array.reshape(-1, 4, 5))
    volume = written(noise(3, 4, 5), False)
    assert f"--data volume:{volume}" in refused(volume)
    assert len(File(str(volume), as_stack=True).open()) == 3


@pytest.mark.parametrize("suffix", FORMATS)
def test_empty_and_foreign_files_are_refused(tmp_path, suffix):
    empty = tmp_path / f"empty{suffix}"
    empty.touch()
    assert "0 bytes" in refused(empty)
    for name, content in {"text": b"hello\n" * 400, "binary": bytes(range(256)) * 8}.items():
        foreign = tmp_path / f"{name}{suffix}"
        foreign.write_bytes(content)
        assert str(foreign) in refused(foreign)


@pytest.mark.parametrize("suffix", [".mrcs", ".npy", ".pt"])
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, suffix, kept):
    path, images = tmp_path / f"a{suffix}", noise(8, 32, 32)
    if suffix == ".mrcs":
        write_mrc(path, images)
    elif suffix == ".npy":
        np.save(path, images)
    else:
        torch.save(torch.from_numpy(images), path)
    os.truncate(path, int(path.stat().st_size * kept))
    message = refused(path)
    assert "copy" in message
    if suffix != ".npy":
        assert "truncated" in message


def test_bytes_after_the_last_image_are_a_warning(tmp_path):
    images = noise(2, 4, 4)
    path = write_mrc(tmp_path / "a.mrcs", images)
    with path.open("ab") as file:
        file.write(b"\0" * 8)
    with pytest.warns(
        DataWarning, match=r"longer than .* \(2 x 4 x 4\) requires 1152 bytes, the file has 1160; the rest"
    ):
        stack = File(str(path)).open()
    np.testing.assert_array_equal(stack.read_block([0, 1]), images)


def test_a_stack_with_fewer_images_than_its_header_says_is_refused_also_in_a_star_file(tmp_path):
    path = write_mrc(tmp_path / "a.mrcs", noise(4, 8, 8))
    star = write_star(tmp_path / "p.star", ["1@a.mrcs"])
    os.truncate(path, 1024 + 3 * 256)
    for file in (path, star):
        assert f"{path} is truncated: its header (4 x 8 x 8) requires 2048 bytes, the file has 1792" in refused(file)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("change", ["cut", "grown", "gone"])
def test_a_file_changed_after_its_header_was_read_is_refused(tmp_path, opened, change):
    path, images = tmp_path / "a.mrcs", noise(4, 8, 8)
    stack = File(str(write_mrc(path, images))).open()
    if opened:
        stack.read(0)
    if change == "gone":
        path.unlink()
    else:
        os.truncate(path, {"cut": 1500, "grown": 5000}[change])
    if opened and change != "cut":  # what was read of is still there
        np.testing.assert_array_equal(stack.read(3), images[3])
        return
    with pytest.raises(DataError, match=r"^.*a\.mrcs changed while it was in use; open it again$"):
        stack.read(3)


def test_a_header_without_a_cell_gives_no_pixel_size(tmp_path):
    images = noise(2, 4, 4)
    path = write_mrc(tmp_path / "a.mrcs", images)
    assert File(str(path)).open().pixel_size(0) is None
    assert File(str(path), size=2).open().pixel_size(0) is None


def damaged_mrc(tmp_path: Path, **fields: int) -> Path:
    path = write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4))
    with mrcfile.mrcfile.MrcFile(path, header_only=True) as mrc:
        header = mrc.header.copy()
    for name, value in fields.items():
        header[name] = value
    with path.open("r+b") as file:
        file.write(header.tobytes())
    return path


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": 5}, "unknown mode 5; expected mode 0, 1, 2, 6 or 12"),
        ({"mode": 3}, "complex"),
        ({"mode": 4}, "complex"),
        ({"mode": 16}, "colours (RGB)"),
        ({"mode": 101}, "packed 4-bit integers (MRC mode 101)"),
        ({"nx": 0}, "no pixels"),
        ({"ny": -4}, "no pixels"),
        ({"nz": 0}, "no pixels"),
        ({"nz": 2**30}, "truncated"),
        ({"nsymbt": -8}, "an extended header of -8 bytes"),
        ({"nsymbt": 4096}, "truncated"),
        ({"nsymbt": 2**31 - 1}, "truncated"),
        ({"ispg": 401, "mz": 0}, "2 sections in volumes of 0"),
        ({"ispg": 401, "mz": 3}, "2 sections in volumes of 3"),
        ({"mapc": 2}, "its axes are [2, 2, 3]"),
        ({"mapr": -2}, "its axes are [1, -2, 3]"),
        ({"mapc": 3, "maps": 1}, "columns along z, rows along y and sections along x"),
        ({"ispg": 401, "mz": 1}, "[2, 1, 4, 4]"),
    ],
)
def test_invalid_mrc_headers_are_refused(tmp_path, fields, said):
    if said == "[2, 1, 4, 4]":  # a stack of one-section volumes is a stack of images
        assert len(File(str(damaged_mrc(tmp_path, **fields))).open()) == 2
    else:
        assert said in refused(damaged_mrc(tmp_path, **fields))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4, 4), (1, 1, 1, 4, 4), (0, 4, 4), (3, 0, 4)])
@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_arrays_that_are_not_images_are_refused(tmp_path, shape, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, np.zeros(shape, np.float32))
    else:
        torch.save(torch.zeros(shape), path)
    assert f"[{', '.join(map(str, shape))}]" in refused(path)


def test_values_that_are_not_real_are_refused(tmp_path):
    np.save(tmp_path / "complex.npy", np.zeros((4, 4), np.complex64))
    np.save(tmp_path / "text.npy", np.full((4, 4), "a"))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    torch.save(torch.zeros(4, 4, dtype=torch.complex64), tmp_path / "complex.pt")
    torch.save(torch.zeros(4, 4).to_sparse(), tmp_path / "sparse.pt")
    torch.save({"images": torch.zeros(4, 4)}, tmp_path / "dict.pt")
    assert "complex64" in refused(tmp_path / "complex.npy")
    assert "<U1" in refused(tmp_path / "text.npy")
    assert "objects" in refused(tmp_path / "objects.npy")
    assert "complex64" in refused(tmp_path / "complex.pt")
    assert "sparse" in refused(tmp_path / "sparse.pt")
    assert "holds a dict" in refused(tmp_path / "dict.pt")


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def test_pickled_objects_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap()))
    assert "pickled Python objects" in refused(tmp_path / "zip.pt")
    assert "pickled Python objects" in refused(tmp_path / "plain.pt")
    assert "not a readable .npy" in refused(tmp_path / "plain.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_named_and_the_others_are_read(tmp_path, value):
    images = noise(3, 4, 4)
    images[1, 2, 2] = value
    path = write_mrc(tmp_path / "a.mrcs", images)
    star = write_star(tmp_path / "p.star", ["1@a.mrcs", "3@a.mrcs", "2@a.mrcs"])
    stack = File(str(path)).open()
    stack.read(0)
    stack.read(2)
    with pytest.raises(DataError, match=r"image 1 of a\.mrcs has 1 value that is not finite"):
        stack.read(1)
    assert f"2@{path}" in refused(star)


def test_float64_beyond_float32_is_not_finite(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 4), 1e300))
    assert "16 values that are not finite" in refused(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.mrcs", "0@a.mrcs", "-1@a.mrcs", "x@a.mrcs", "1.5@a.mrcs", "1@", "@a.mrcs", "nan"])
def test_malformed_star_references_are_refused(tmp_path, name):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4))
    message = refused(write_star(tmp_path / "p.star", ["1@a.mrcs", name], {"rlnMicrographName": "m"}))
    assert "row 2" in message
    assert "NUMBER@STACK" in message


def test_star_references_beyond_the_end_are_refused(tmp_path):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4))
    message = refused(write_star(tmp_path / "p.star", ["2@a.mrcs", "3@a.mrcs"]))
    assert "row 2 names image 3" in message
    assert "which has 2" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_\n\nloop_\n_rlnMicrographName\nm.mrc\n", "no rlnImageName"),
        ("data_particles\n\nloop_\n_rlnImageName\n", "lists no images"),
        ("data_particles\n", "no rlnImageName"),
        ("data_particles\n\nloop_\n_rlnImageName\n_rlnVoltage\n1@a.mrcs\n", "not a readable star file"),
        (OPTICS_STAR.replace("50.0 2", "50.0 7"), "row 3 is of optics group 7"),
        (OPTICS_STAR.replace("second 2", "second 1"), "optics group twice"),
        (OPTICS_STAR.replace("2.50", "-1"), "row 1 has a pixel size of -1"),
        (OPTICS_STAR.replace("1.25", "0"), "row 2 has a pixel size of 0"),
        (OPTICS_STAR.replace("2.50", "wide"), "row 1 has a pixel size of nan"),
        (OPTICS_STAR.replace("_rlnOpticsGroup #5", "_rlnElse #5"), "not rlnOpticsGroup in both tables"),
    ],
)
def test_invalid_star_tables_are_refused(optics_star, text, said):
    path, _ = optics_star
    path.write_text(text)
    assert said in refused(path)


def test_a_corrected_star_file_is_read_again(optics_star):
    path, _ = optics_star
    path.write_text("data_particles\n")
    refused(path)
    path.write_text(OPTICS_STAR)
    assert len(File(str(path)).open()) == 3


def test_zero_magnification_is_refused(tmp_path):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4))
    columns = {"rlnDetectorPixelSize": "5", "rlnMagnification": "0"}
    assert "pixel size of inf" in refused(write_star(tmp_path / "p.star", ["1@a.mrcs"], columns))


def test_stacks_of_different_shapes_in_a_star_file_are_refused(tmp_path):
    write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4))
    write_mrc(tmp_path / "b.mrcs", noise(2, 4, 6))
    message = refused(write_star(tmp_path / "p.star", ["1@a.mrcs", "1@b.mrcs"]))
    assert "4 x 4" in message
    assert "4 x 6" in message


def test_data_root_must_be_a_folder(optics_star):
    path, _ = optics_star
    assert "data_root" in refused(path, data_root=str(path.parent / "nowhere"))


def test_an_index_beyond_the_end_is_refused(tmp_path):
    stack = File(str(write_mrc(tmp_path / "a.mrcs", noise(2, 4, 4)))).open()
    for index in (-1, 2):
        with pytest.raises(SelectionError, match="does not exist"):
            stack.read(index)


# ------------------------------------------------------------------------------------------------ size and contrast


@pytest.mark.parametrize(("size", "pixel_size"), [(12, 3.0), (24, 1.5), (48, 0.75)])
def test_size_crops_to_a_square_resamples_and_scales_the_pixel_size(tmp_path, size, pixel_size):
    images = noise(2, 24, 32)
    stack = File(str(write_mrc(tmp_path / "a.mrcs", images, pixel_size=1.5)), size=size).open()
    assert stack.shape == (size, size)
    assert stack.pixel_size(0) == pytest.approx(pixel_size)
    assert stack.stored_pixel_size(0) == pytest.approx(1.5)
    np.testing.assert_array_equal(square_crop(images[1]), images[1, :, 4:28])
    np.testing.assert_array_equal(stack.read(1), fourier_resize(images[1, :, 4:28], size))


def test_size_is_at_least_one(tmp_path):
    with pytest.raises(ParameterError, match="at least 1"):
        File(str(tmp_path / "a.mrcs"), size=0)


@pytest.mark.parametrize("size", [None, 12])
def test_contrast_inversion_is_a_change_of_sign(tmp_path, size):
    path = write_mrc(tmp_path / "a.mrcs", noise(2, 24, 24))
    star = write_star(tmp_path / "p.star", ["2@a.mrcs"])
    plain, inverted = (File(str(path), size=size, invert=invert).open().read(1) for invert in (False, True))
    np.testing.assert_array_equal(inverted, -plain)
    np.testing.assert_array_equal(File(str(star), size=size, invert=True).open().read(0), -plain)


# ------------------------------------------------------------------------------------------------------ selection


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        (None, 10, [0, 1, 2, 3]),
        (None, 2, [0, 1]),
        ("0:8", 8, list(range(8))),
        ("3,7,9", 10, [3, 7, 9]),
        ("9,3", 10, [9, 3]),
        ("5", 6, [5]),
        ("2:", 5, [2, 3, 4]),
        (":4", 5, [0, 1, 2, 3]),
        (":", 3, [0, 1, 2]),
        ("0:10:2", 9, [0, 2, 4, 6, 8]),
        ("1::3", 9, [1, 4, 7]),
        ("0:2,7", 8, [0, 1, 7]),
        (" 0:2 , 7 ", 8, [0, 1, 7]),
    ],
)
def test_selections_of_images(text, n, expected):
    assert parse_images(text, n) == expected


@pytest.mark.parametrize(
    ("text", "n", "said"),
    [
        ("5:3", 10, "'5:3' selects no image"),
        ("4:4", 10, "'4:4' selects no image"),
        ("7:", 7, "'7:' selects no image"),
        ("-1", 10, "'-1' counts from the end"),
        ("0:-1", 10, "'0:-1' counts from the end"),
        ("", 10, "'' is not a selection of images"),
        ("1,", 10, "'' is not a selection of images"),
        ("a", 10, "'a' is not a selection of images"),
        ("1.5", 10, "'1.5' is not a selection of images"),
        ("0:8:2:1", 10, "'0:8:2:1' is not a selection of images"),
        ("٣", 10, "is not a selection of images"),
        ("0:8:0", 10, "the step of '0:8:0' is 0"),
        ("0:8", 7, "--images 0:8 selects image 7, but FILE has 7 images, 0 to 6"),
        ("0:99999999999", 7, "selects image 7, but FILE"),
        ("1:20:5", 7, "selects image 11, but FILE"),
        ("50:60", 7, "selects image 50, but FILE"),
        ("1", 1, "selects image 1, but FILE has 1 image, number 0"),
        ("3,1:5", 7, "selects image 3 twice"),
        (None, 0, "FILE has no images"),
    ],
)
def test_invalid_selections_are_refused(text, n, said):
    with pytest.raises(SelectionError) as caught:
        parse_images(text, n, label="FILE")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 40), st.integers(1, 5))
def test_a_range_within_the_stack_is_that_of_python(n, start, stop, step):
    numbers = list(range(start, stop, step))
    if numbers and numbers[-1] < n:
        assert parse_images(f"{start}:{stop}:{step}", n) == numbers
    else:
        with pytest.raises(SelectionError):
            parse_images(f"{start}:{stop}:{step}", n)


# ------------------------------------------------------------------------------------------------------- real data


def test_real_particles_of_empiar_10076():
    stack = File(shared("empiar_10076_7.star")).open()
    assert (len(stack), stack.shape) == (7, (320, 320))
    assert stack.pixel_size(0) == pytest.approx(1.31, abs=0.01)
    assert stack.table["rlnDefocusU"].iloc[0] == 15301.1
    with mrcfile.mmap(shared("empiar_10076_7.mrc"), permissive=True) as mrc:
        assert mrc.data is not None
        np.testing.assert_array_equal(stack.read(6), mrc.data[6])
    small = File(shared("empiar_10076_7.star"), size=128).open()
    assert small.pixel_size(0) == pytest.approx(3.275, abs=0.01)
    assert small.read(0).mean() == pytest.approx(stack.read(0).mean(), abs=1e-5)


def test_the_real_volume_that_is_a_stack():
    path = shared("empiar_10076_7.mrc")
    assert "--as-stack" in refused(path)
    stack = File(path, as_stack=True).open()
    assert (len(stack), stack.pixel_size(0)) == (7, None)


def test_the_real_stack_and_tensor():
    stack = File(shared("empiar10146_average_64.mrcs")).open()
    assert (len(stack), stack.shape, stack.pixel_size(0)) == (64, (128, 128), None)
    tensor = File(shared("sample_empiar10076.pt")).open()
    image = tensor.read(0)
    assert (len(tensor), tensor.shape) == (1, (128, 128))
    assert (image.min(), image.max()) == (0, 1)
