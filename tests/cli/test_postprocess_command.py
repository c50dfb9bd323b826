"""`cryobench postprocess` on files: its numbers against NumPy, its maps, and what is refused."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from PIL import Image

SIDE, PIXEL = 32, 2.5
FILES = ["fsc.csv", "fsc.png", "map.mrc", "map_masked.mrc", "mask.mrc"]


def write(path: Path, volume: np.ndarray, pixel: float | None = PIXEL) -> Path:
    with mrcfile.new(path, data=volume.astype(np.float32)) as file:
        if pixel:
            file.voxel_size = pixel
        file.header.origin = (10.0, -20.0, 30.0)
        file.nstart = (1, 2, 3)
    return path


def curve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """FSC by its definition, shells 1 to D / 2."""
    A, B = np.fft.fftn(a - a.mean()), np.fft.fftn(b - b.mean())
    k = np.fft.fftfreq(SIDE, 1 / SIDE)
    shell = np.round(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)).astype(int)
    sums = [np.bincount(shell.ravel(), values.ravel())[1 : SIDE // 2 + 1]
            for values in ((A * B.conj()).real, abs(A) ** 2, abs(B) ** 2)]  # fmt: skip
    return sums[0] / np.sqrt(sums[1] * sums[2])


@pytest.fixture
def halves(tmp_path) -> tuple[np.ndarray, np.ndarray]:
    """half1.mrc and half2.mrc: a particle of detail that falls off, with noise; truth.mrc."""
    rng = np.random.default_rng(0)
    k = np.fft.fftfreq(SIDE)
    k = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
    x = np.arange(SIDE) - SIDE // 2
    ball = x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2 < 9**2
    detail = np.fft.ifftn(np.fft.fftn(rng.normal(size=k.shape)) * np.exp(-((k / 0.2) ** 2))).real
    truth = ball * (1 + detail / detail.std())
    a, b = (truth + 0.6 * rng.normal(size=k.shape) for _ in range(2))
    write(tmp_path / "truth.mrc", truth)
    write(tmp_path / "half1.mrc", a)
    write(tmp_path / "half2.mrc", b)
    return a, b


def test_the_folder_has_the_curves_and_the_maps(cli, tmp_path, halves):
    code, out, err = cli("postprocess", "half1.mrc", "half2.mrc", "--radius", "25", "--reference", "truth.mrc",
                         "--local", "--out", "pp")  # fmt: skip
    assert code == 0, err
    assert sorted(path.name for path in Path("pp").iterdir()) == sorted([*FILES, "local.mrc"])
    rows = list(csv.DictReader(Path("pp/fsc.csv").read_text().splitlines()))
    columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    assert list(columns) == ["frequency", "resolution", "unmasked", "masked", "randomised", "corrected", "reference"]
    np.testing.assert_allclose(columns["frequency"], np.arange(1, 17) / (SIDE * PIXEL), rtol=1e-5)
    np.testing.assert_allclose(columns["resolution"], 1 / columns["frequency"], rtol=1e-5)
    np.testing.assert_allclose(columns["unmasked"], curve(*halves), atol=1e-5)
    below = int(np.argmax(columns["unmasked"] < 0.143))
    high, low = columns["unmasked"][below - 1 : below + 1]
    stated = SIDE * PIXEL / (below + (high - 0.143) / (high - low))
    assert re.search(rf"unmasked, FSC = 0.143 +{stated:.2f} Å", out)
    assert (columns["reference"] > columns["corrected"]).mean() > 0.8
    for name in ("map", "map_masked", "mask", "local"):
        assert mrcfile.validate(f"pp/{name}.mrc")
        with mrcfile.open(f"pp/{name}.mrc") as file:
            assert file.is_volume()
            assert file.data.shape == (SIDE,) * 3
            assert float(file.voxel_size.z) == pytest.approx(PIXEL)
            assert file.header.origin.tolist() == (10.0, -20.0, 30.0)
            assert file.nstart.tolist() == (1, 2, 3)
    mask, whole = (mrcfile.read(f"pp/{name}.mrc") for name in ("mask", "map"))
    x = np.arange(SIDE) - SIDE // 2
    inside = x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2 <= (25 / PIXEL) ** 2
    assert (mask[inside] == 1).all()
    np.testing.assert_allclose(mrcfile.read("pp/map_masked.mrc"), mask * whole, atol=1e-6)
    assert "maps and curves in pp" in err
    with Image.open("pp/fsc.png") as figure:
        assert figure.width > 800


def test_a_stated_mask_b_factor_and_pixel_size_are_used(cli, tmp_path, halves):
    mask = np.ones((SIDE,) * 3)
    write(tmp_path / "mask.mrc", mask, 9.0)
    code, out, err = cli("postprocess", "half1.mrc", "half2.mrc", "--mask", "mask.mrc", "--pixel-size", "5",
                         "--b-factor=-30", "--out", "pp", "--quiet")  # fmt: skip
    assert (code, err) == (0, "")
    assert "-30.0 Å²" in out
    row = next(csv.DictReader(Path("pp/fsc.csv").read_text().splitlines()))
    assert row["unmasked"] == row["masked"]
    assert float(row["resolution"]) == pytest.approx(SIDE * 5)
    np.testing.assert_array_equal(mrcfile.read("pp/mask.mrc"), mask)


def test_without_options_the_mask_is_made_of_the_map_and_a_coarse_map_is_not_sharpened(cli, tmp_path, halves):
    code, out, err = cli("postprocess", "half1.mrc", "half2.mrc", "--out", "pp", "--pixel-size", "8")
    assert code == 0
    assert "not sharpened: at a resolution of" in err
    assert re.search(r"B-factor +none", out)
    code, out, err = cli("postprocess", "half1.mrc", "half2.mrc", "--out", "pp", "--force")
    mask, truth = mrcfile.read("pp/mask.mrc"), mrcfile.read("truth.mrc")
    assert mask[np.abs(truth) > 0].mean() > 0.95
    assert 0.12 < mask.mean() < 0.3


def test_maps_without_a_pixel_size_are_in_pixels(cli, tmp_path, halves):
    for name, volume in zip(("half1.mrc", "half2.mrc"), halves, strict=True):
        (tmp_path / name).unlink()
        write(tmp_path / name, volume, None)
    code, out, err = cli("postprocess", "half1.mrc", "half2.mrc", "--radius", "9", "--out", "pp")
    assert code == 0
    assert "not sharpened: the pixel size is not known" in err
    assert " pixels" in out
    assert "Å" not in out


def test_the_same_command_gives_the_same_numbers(cli, halves):
    for out in ("one", "two"):
        assert cli("postprocess", "half1.mrc", "half2.mrc", "--radius", "25", "--out", out)[0] == 0
    for name in ("fsc.csv", "map.mrc", "mask.mrc"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def _bad_files(folder: Path, a: np.ndarray) -> None:
    write(folder / "small.mrc", a[:24, :24, :24])
    write(folder / "flat.mrc", a[:24])
    write(folder / "other_pixel.mrc", a + 1, 3.0)
    nan = a.copy()
    nan[1, 2, 3] = np.nan
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        write(folder / "nan.mrc", nan)
    write(folder / "constant.mrc", np.zeros_like(a))
    write(folder / "loud.mrc", 3 * np.ones_like(a) + (a > 0))
    (folder / "text.mrc").write_text("no map")
    os.link(folder / "half1.mrc", folder / "link.mrc")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["half1.mrc", "small.mrc"],
            "half1.mrc has 32 x 32 x 32 voxels and small.mrc 24 x 24 x 24; expected half maps",
        ),
        (
            ["half1.mrc", "other_pixel.mrc"],
            "2.5 Å per voxel and other_pixel.mrc 3; expected the same: give --pixel-size",
        ),
        (["half1.mrc", "half1.mrc"], "half1.mrc and half1.mrc are the same map; expected the two half maps"),
        (["half1.mrc", "link.mrc"], "half1.mrc and link.mrc are the same map"),
        (["flat.mrc", "flat.mrc"], "flat.mrc has 24 x 32 x 32 voxels; expected a cube as half map"),
        (["half1.mrc", "nan.mrc"], "nan.mrc has 1 value that is not finite"),
        (["half1.mrc", "constant.mrc"], "constant.mrc is constant, 0 everywhere"),
        (["half1.mrc", "missing.mrc"], "missing.mrc does not exist"),
        (["half1.mrc", "text.mrc"], "text.mrc is truncated"),
        (["half1.mrc", "half2.mrc", "--mask", "small.mrc"], "small.mrc has 24 voxels a side and the half maps 32"),
        (
            ["half1.mrc", "half2.mrc", "--mask", "loud.mrc"],
            "loud.mrc has values from 3 to 4; expected a mask from 0 to 1",
        ),
        (["half1.mrc", "half2.mrc", "--mask", "constant.mrc"], "constant.mrc is 0 everywhere; expected a mask"),
        (["half1.mrc", "half2.mrc", "--mask", "truth.mrc", "--radius", "9"], "--mask and --radius are both given"),
        (["half1.mrc", "half2.mrc", "--radius", "300"], "--radius 300: expected 2.5 to 40 Å, half the box"),
        (["half1.mrc", "half2.mrc", "--radius", "nan"], "--radius must be positive, got nan"),
        (["half1.mrc", "half2.mrc", "--pixel-size", "0"], "--pixel-size must be positive, got 0"),
        (["half1.mrc", "half2.mrc", "--b-factor", "sharp"], "--b-factor: expected auto or a number, got 'sharp'"),
        (["half1.mrc", "half2.mrc", "--b-factor", "inf"], "--b-factor: expected auto or a finite number, got inf"),
        (["half1.mrc", "half2.mrc", "--reference", "other_pixel.mrc"], "other_pixel.mrc has 3 Å per voxel"),
        (["half1.mrc", "half2.mrc", "--out", "full", "--force"], "full has other files, such as notes.txt"),
        (["half1.mrc", "half2.mrc", "--b-factor=-1e6"], "--b-factor -1e+06 sharpens beyond the numbers of a map"),
        (["half1.mrc", "half2.mrc", "--out", "none/pp"], "cannot write none/pp: the folder none does not exist"),
        (["half1.mrc", "half2.mrc", "--out", "half1.mrc"], "half1.mrc is a file; give the path of a folder"),
    ],
)
def test_what_is_no_pair_of_half_maps_is_refused_in_one_line(cli, tmp_path, halves, arguments, message):
    _bad_files(tmp_path, halves[0])
    before = sorted(tmp_path.iterdir())
    given = arguments if "--out" in arguments else [*arguments, "--out", "pp"]
    code, out, err = cli("postprocess", *given)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert Path("full/notes.txt").read_text() == "mine"
