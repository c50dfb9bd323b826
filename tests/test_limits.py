"""Requests that would need more memory or cells than there are, and oversized files, are refused at once."""

from __future__ import annotations

import bz2
import gzip
import struct
import zipfile

import mrcfile
import numpy as np
import pytest
import torch

from cryobench import limits
from cryobench.core import Imaging, check_operator
from cryobench.errors import CryobenchError, DataError, ParameterError, SpecError, SuiteError
from cryobench.io.image_files import MAX_TRAILING, open_mrc, open_pt
from cryobench.measuring.measurements import load
from cryobench.operators.masks import Checkerboard
from cryobench.plan.presets import read_preset
from cryobench.plan.suite_file import read_suite
from cryobench.registry import installed
from cryobench.sources.stacks import File
from cryobench.sources.volume import Volume


@pytest.fixture(autouse=True)
def _eight_gigabytes(monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 8 * 10**9)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (65_536 * 10**9, "65.5 TB"),
        (10**26, "more than 10^21 bytes"),
    ],
)
def test_numbers_of_bytes(count, text):
    assert limits.bytes_text(count) == text


@pytest.mark.parametrize("count", ["100000", "1000000000000", "1" + "0" * 26, "9" * 4000])
@pytest.mark.parametrize("after", ["", "@ctf:15000", "@identity"])
def test_too_many_masks(count, after):
    recipe = installed().make("operators", f"sumpool:16,count={count}{after}")
    with pytest.raises(CryobenchError, match=r"needs (8\.19 GB|81\.9 PB|more than 10\^21 bytes) of memory") as error:
        check_operator(recipe, Imaging((128, 128), (1.0,)))
    assert "8 GB here; give a smaller count or block" in str(error.value)
    assert len(str(error.value)) < 300


def test_usual_operators_are_accepted():
    for spec in ("sumpool:32", "sumpool:16,count=2000", "fourier:0.5"):
        check_operator(installed().make("operators", spec), Imaging((256, 256), (1.0,)))


def test_a_tile_larger_than_the_image_is_one_tile():
    huge, fitting = (Checkerboard(tile=tile).draw(4, (8, 6), 0) for tile in (10**12, 8))
    assert huge.shape == fitting.shape == (4, 8, 6)
    assert all(len(mask.unique()) == 1 for mask in huge)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [("count=1000000000", "needs 650 GB"), ("count=5000000000", r"at most 2\^32"), ("size=100000", "needs 128 PB")],
)
def test_sizes_of_simulated_images(parameters, message):
    with pytest.raises(ParameterError, match=message):
        installed().make("sources", f"simulate:{parameters}")


def test_resampling_to_a_size_that_does_not_fit(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8)))
    with pytest.raises(DataError, match="size=1000000 needs 48 TB of memory"):
        _ = File(str(tmp_path / "a.npy"), size=1_000_000).open().shape
    with pytest.raises(DataError, match="size=10000 needs 48 TB of memory"):
        Volume((str(tmp_path / "a.npy"),), size=10_000).open()


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("operators:\n- sumpool: {block: [NUMBERS], count: [NUMBERS]}", "9,000,000"),
        ("operators: [sumpool:4]\nnoises: [NUMBERS]\nseeds: [NUMBERS]", "9,000,000"),
        ("operators: [sumpool:4]\nsolvers: [pinv]\nseeds: [NUMBERS]\ninclude:\n" + "- images: '0'\n" * 40, "123,000"),
    ],
)
def test_suites_of_too_many_cells(tmp_path, text, cells):
    path = tmp_path / "suite.yaml"
    text = text.replace("NUMBERS", ", ".join(map(str, range(3000))))
    path.write_text(text if "solvers" in text else f"solvers: [pinv]\n{text}")
    with pytest.raises(SuiteError, match=f"this suite has {cells} cells; give at most 100,000") as error:
        read_suite(path)
    assert "line" in str(error.value)


def test_runs_of_too_many_cells():
    from cryobench.plan.grid import Request, plan

    with pytest.raises(ParameterError, match="this run has 300,000 cells; give at most 100,000"):
        plan(Request(["pinv"], ["identity"], seeds=range(300_000)), installed())


@pytest.mark.parametrize("read", [read_suite, read_preset])
@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "[" * 100_000, "{a: " * 3000, "- " * 5000])
def test_deep_yaml(tmp_path, read, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(CryobenchError, match="more than 32 lists and mappings inside each other"):
        read(path)


@pytest.mark.parametrize(("seeds", "expected"), [("9007199254740993", (2**53 + 1,)), ("1e3", (1000,))])
def test_seeds_are_read_exactly(tmp_path, seeds, expected):
    (tmp_path / "suite.yaml").write_text(f"solvers: [pinv]\noperators: [identity]\nseeds: {seeds}")
    assert read_suite(tmp_path / "suite.yaml").grids[0].seeds == expected


@pytest.mark.parametrize("seeds", ["1e400", "nan", "1.5"])
def test_seeds_that_are_no_integers(tmp_path, seeds):
    (tmp_path / "suite.yaml").write_text(f"solvers: [pinv]\noperators: [identity]\nseeds: {seeds}")
    with pytest.raises(SuiteError, match="line 3: expected an integer"):
        read_suite(tmp_path / "suite.yaml")


@pytest.mark.parametrize(
    "spec",
    ["@".join("ab" * 1000), "@".join(["identity"] * 2000), "sumpool:16," + "mask." * 2000 + "prob=1", "x" * 10**6,
     "sumpool:" + "9" * 90_000, "nosuch" * 10_000, "sumpool:16," + "x" * 90_000 + "=1"],
)  # fmt: skip
def test_long_and_deep_specs(spec):
    with pytest.raises(CryobenchError) as error:
        installed().make("operators", spec)
    assert len(str(error.value)) < 1000


def test_the_end_of_a_long_message_is_kept():
    message = str(SpecError("a" * 10**6 + "; do this"))
    assert len(message) < 2000
    assert message.endswith("; do this")
    assert "998209 characters" in message


def mrc(nsymbt=0) -> bytearray:
    with mrcfile.new("small.mrcs", overwrite=True) as file:
        file.set_data(np.arange(1024, dtype=np.float32).reshape(1, 32, 32))
        file.set_image_stack()
    with open("small.mrcs", "rb") as file:
        content = bytearray(file.read())
    content[92:96] = struct.pack("<i", nsymbt)
    return content


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_decompression_stops_where_the_header_says(tmp_path, monkeypatch, suffix, compress):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a.mrcs{suffix}"
    path.write_bytes(compress(bytes(mrc())))
    out = np.empty((1, 32, 32), np.float32)
    open_mrc(path, as_stack=True).open()(0, out)
    np.testing.assert_array_equal(out.ravel(), np.arange(1024))
    written = []
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: Counted(written))
    path.write_bytes(compress(bytes(mrc()) + bytes(50_000_000)))
    with pytest.raises(DataError, match="requires 5120 bytes, the file has more than 70656"):
        open_mrc(path, as_stack=True).open()
    assert sum(written) == 5120 + MAX_TRAILING + 1


class Counted:
    """A file that counts what is written to it."""

    def __init__(self, written: list[int]):
        self._written = written

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, part: bytes) -> int:
        self._written.append(len(part))
        return len(part)

    def flush(self):
        pass


@pytest.mark.parametrize(
    ("nsymbt", "suffix", "message"),
    [
        (2**31 - 1, ".gz", "states an extended header of 2.15 GB; expected at most 1.07 GB"),
        (2**31 - 1, "", "requires 2147488767 bytes, the file has 5120"),
        (-5, "", "an extended header of -5 bytes"),
        (-5, ".gz", "an extended header of -5 bytes"),
    ],
)
def test_a_damaged_size_of_the_extended_header(tmp_path, monkeypatch, nsymbt, suffix, message):
    monkeypatch.chdir(tmp_path)
    content = bytes(mrc(nsymbt))
    (tmp_path / f"a.mrcs{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=message):
        open_mrc(tmp_path / f"a.mrcs{suffix}", as_stack=True)


def test_torch_files_store_every_pixel(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.zeros(1).expand(10**9, 128, 128), path)
    with pytest.raises(DataError, match=r"a tensor of 65.5 TB but stores 4 bytes"):
        open_pt(path)
    torch.save(torch.arange(32.0).reshape(2, 4, 4).transpose(1, 2), path)
    assert open_pt(path).count == 2
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(DataError, match="is compressed"):
        open_pt(tmp_path / "b.pt")


def test_damaged_ends_of_torch_files(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.zeros(2, 4, 4), path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x06\x07")  # the locator of the end of the directory: number of disks
    content[at + 16 : at + 20] = struct.pack("<I", 7)
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a readable torch file"):
        open_pt(path)


def test_compressed_measurements(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, y=np.ones((1, 2, 4, 4)), masks=np.ones((2, 8, 8)))
    assert load(path).y.shape == (1, 2, 4, 4)
    np.savez_compressed(path, y=np.zeros((1, 2, 3000, 3000), np.float32), masks=np.zeros((2, 3000, 3000), np.float32))
    with pytest.raises(DataError, match="unpacks to 144 MB, more than 200 times as much"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4, 8, 8), }".ljust(117) + b"\n"
        archive.writestr("y.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100))
        archive.writestr("masks.npy", b"")
    with pytest.raises(DataError, match=r"y.npy states 1.13 PB and stores 100 bytes"):
        load(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "available_memory", lambda: 100)
        np.savez(path, y=np.ones((1, 2, 4, 4)), masks=np.ones((2, 8, 8)))
        with pytest.raises(DataError, match=r"unpacking it needs .* of memory, more than the 100 bytes here"):
            load(path)
