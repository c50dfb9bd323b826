"""`cryobench data register`: pairs of a known shift and warp, in the layout of EMDiffuse and as stacks."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tifffile
from scipy.ndimage import map_coordinates

from cryobench.errors import DataError
from cryobench.io.tiff import open_tiff
from cryobench.sources.em_pairs import EmPairs
from cryobench.sources.tissue import smooth_noise, volume

N, AROUND = 112, 24
SHIFTS = {"0": (3.0, -5.0), "1": (-4.4, 2.7), "2": (0.0, 1.5)}
VOLUME = volume((24, N + 2 * AROUND, N + 2 * AROUND), 3).astype(np.float64)


def displaced(section, displacement):
    """What is at pixels p + displacement of a section, without its surroundings."""
    places = np.mgrid[:N, :N] + AROUND + displacement
    return map_coordinates(VOLUME[section], places, order=3)


def whole(section):
    return VOLUME[section, AROUND:-AROUND, AROUND:-AROUND]


def in_bytes(image):
    return np.clip(np.rint(60 + 150 * image), 0, 255).astype(np.uint8)


def save(folder, name, noisy, clean, photometric="minisblack"):
    folder.mkdir(parents=True, exist_ok=True)
    centimetre = {"resolution": (1e8 / 40, 1e8 / 40), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / f"wf_{name}.tif", noisy, photometric=photometric, **centimetre)
    tifffile.imwrite(folder / f"gt_{name}.tif", clean, photometric="minisblack")


def noisy(image, noise=0.7, seed=0):
    return image + noise * image.std() * np.random.default_rng(seed).normal(size=image.shape)


@pytest.fixture
def raw(tmp_path):
    """Three pairs of known shifts, 8-bit."""
    for number, (name, shift) in enumerate(SHIFTS.items()):
        image = displaced(4 * number, np.reshape(shift, (2, 1, 1)))
        save(tmp_path / "raw" / "a" / "1", name, in_bytes(noisy(image, seed=number)), in_bytes(whole(4 * number)))
    return tmp_path / "raw"


def report(folder):
    with (folder / "register.csv").open(newline="") as file:
        return {f"{row['cell']}/{row['level']}/{row['name']}": row for row in csv.DictReader(file)}


def test_shifted_pairs_are_registered_and_are_a_source(cli, tmp_path, raw):
    code, out, err = cli("data", "register", "raw", "--out", "done")
    assert (code, out) == (0, ""), err
    rows = report(tmp_path / "done")
    for name, shift in SHIFTS.items():
        row = rows[f"a/1/{name}"]
        np.testing.assert_allclose([float(row["shift_y"]), float(row["shift_x"])], shift, atol=0.2)
        assert max(abs(float(row["residual_y"])), abs(float(row["residual_x"]))) <= 0.1
        assert float(row["correlation"]) > max(0.8, float(row["correlation_given"]))
        assert (float(row["flow"]), row["refused"]) == (0, "")
        assert float(row["factor"]) == pytest.approx(1, abs=0.05)
    # p + shift is at least 8 pixels inside the clean image, for p in the noisy one: 16 fewer, 17 if not whole pixels
    height, width = N - 17, N - 17
    stack = EmPairs(str(tmp_path / "done")).open()
    assert (len(stack), stack.shape, stack.pixel_size(0)) == (3, (height, width), pytest.approx(40))
    assert f"3 of 3 pairs in done: {height} x {width} pixels each, which " in err
    for number, shift in enumerate(SHIFTS.values()):
        raw_image = tifffile.imread(raw / "a" / "1" / f"wf_{number}.tif").astype(np.float32)
        top, left = next((y, x) for y in range(N - height + 1) for x in range(N - width + 1)
                         if np.array_equal(raw_image[y : y + height, x : x + width], stack.read(number)))  # fmt: skip
        true = displaced(4 * number, np.reshape(shift, (2, 1, 1)))[top : top + height, left : left + width]
        error = np.sqrt(np.mean((stack.clean(number) - (60 + 150 * true)) ** 2))
        assert error < 0.1 * 150 * true.std()  # 8-bit rounding, and shifts to 0.05 pixels
    assert tifffile.imread(tmp_path / "done" / "a" / "1" / "gt_0.tif").dtype == np.uint8


def test_done_pairs_are_kept_and_missing_ones_added(cli, tmp_path, raw):
    assert cli("data", "register", "raw", "--out", "done", "-q", "--flow", "none") == (0, "", "")
    folder = tmp_path / "done" / "a" / "1"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "pair_1.json").unlink()
    code, _, err = cli("data", "register", "raw", "--out", "done", "--flow", "none")
    assert code == 0, err
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in before if after[name] != before[name]} == {"wf_1.tif", "gt_1.tif", "pair_1.json"}
    code, _, err = cli("data", "register", "raw", "--out", "done", "--flow", "none", "--least", "0.3")
    assert code == 2
    assert "done holds pairs that were registered otherwise (another --least)" in err
    code, _, err = cli("data", "register", "raw", "--out", "done", "--flow", "none", "--least", "0.3", "--force", "-q")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "done" / "register.json").read_text())["job"]["least"] == 0.3
    (tmp_path / "done" / "register.json").unlink()
    code, _, err = cli("data", "register", "raw", "--out", "done", "--flow", "none", "--force")
    assert code == 2
    assert "wf_0.tif exists already, and is not of this command" in err
    code, _, err = cli("data", "register", "raw", "--out", "raw", "--force")
    assert code == 2
    assert "is the folder of the pairs" in err


def test_pairs_that_do_not_match_are_listed_and_not_written(cli, tmp_path, raw):
    folder, other = raw / "b" / "1", whole(20)
    bad = other.astype(np.float32)
    bad[3, 4] = np.nan
    wrong = {
        "another place": (
            noisy(whole(0)).astype(np.float32),
            VOLUME[20, 20 : N + 20, 40 : N + 40],
            "below --least 0.2",
        ),
        "far": (other[30:], other[:-30], "30.0 and 0.0 pixels along y and x is more than --largest 0.25"),
        "not finite": (bad, other, "wf_not finite.tif has values that are not finite"),
        "flat": (np.zeros((N, N), np.uint8), other, "wf_flat.tif is constant"),
        "pages": (np.stack([other, other]), other, "has 2 pages; expected one image in a file"),
        "colours": (np.zeros((N, N, 3), np.uint8), other, "write it without colours"),
        "tiny": (other[:12], other[:12], "it has 12 x 112 pixels, of which a --reach of 8 leaves none"),
    }
    for name, (first, second, _) in wrong.items():
        save(folder, name, first, second, "rgb" if name == "colours" else "minisblack")
    (folder / "wf_broken.tif").write_bytes(b"no picture")
    tifffile.imwrite(folder / "gt_broken.tif", other)
    code, _, err = cli("data", "register", "raw", "--out", "done")
    assert code == 1
    lines = {line.split(": ")[1]: line for line in err.splitlines() if line.startswith("refused: ")}
    assert set(lines) == {f"b/1/{name}" for name in [*wrong, "broken"]}
    rows = report(tmp_path / "done")
    for name, (_, _, reason) in wrong.items():
        assert reason in lines[f"b/1/{name}"]
        assert reason in rows[f"b/1/{name}"]["refused"]
        assert rows[f"b/1/{name}"]["correlation"] == ""
    assert {path.name for path in (tmp_path / "done" / "b" / "1").glob("*.tif")} == set()
    assert "3 of 11 pairs in done: 95 x 95 pixels each" in err
    assert len(EmPairs(str(tmp_path / "done")).open()) == 3
    assert cli("data", "register", "raw", "--out", "done", "-q")[0] == 1  # a repetition says so again


def test_a_warped_pair_is_straightened_by_the_flow(cli, tmp_path):
    bend = 1.5 * np.stack([smooth_noise((N, N), 25.0, ("bend", axis)) for axis in range(2)])
    image = displaced(8, np.reshape((4.0, -2.0), (2, 1, 1)) + bend)
    save(tmp_path / "raw" / "a" / "1", "0", noisy(image, 0.5).astype(np.float32), (3 * whole(8) + 7).astype(np.float32))
    errors = {}
    for flow in ("none", "tvl1", "ilk", "skimage.registration:optical_flow_tvl1"):
        out = flow.partition(":")[2] or flow
        code, _, err = cli("data", "register", "raw", "--out", out, "--flow", flow, "--match")
        assert code == 0, err
        stack = EmPairs(str(tmp_path / out)).open()
        h, w = stack.shape
        places = [(y, x) for y in range(N - h + 1) for x in range(N - w + 1)]
        truth = min((image[y : y + h, x : x + w] for y, x in places), key=lambda part: abs(part - stack.read(0)).mean())
        errors[out] = np.sqrt(np.mean((stack.clean(0) - truth) ** 2)) / image.std()
        row = report(tmp_path / out)["a/1/0"]
        assert float(row["factor"]) == pytest.approx(1 / 3, rel=0.15)
        assert (float(row["flow"]) > 0.5) == (flow != "none")
        assert (float(row["correlation"]) > float(row["correlation_shifted"]) + 0.05) == (flow != "none")
    assert errors["tvl1"] < 0.5 * errors["none"]
    assert errors["ilk"] < 0.7 * errors["none"]
    assert errors["optical_flow_tvl1"] < 0.7 * errors["none"]


def test_stacks_are_registered_image_by_image(cli, tmp_path):
    clean = np.stack([whole(4 * number) for number in range(3)])
    images = np.stack([displaced(4 * k, np.reshape(d, (2, 1, 1))) for k, d in enumerate(SHIFTS.values())])
    np.save(tmp_path / "short.npy", np.stack([noisy(image) for image in images]).astype(np.float32))
    tifffile.imwrite(tmp_path / "long.tif", clean.astype(np.float32), photometric="minisblack")
    code, _, err = cli("data", "register", "short.npy", "long.tif", "--out", "done", "--flow", "none")
    assert code == 0, err
    for name, shift in SHIFTS.items():
        row = report(tmp_path / "done")[f"short/pairs/{name}"]
        np.testing.assert_allclose([float(row["shift_y"]), float(row["shift_x"])], shift, atol=0.2)
    assert len(EmPairs(str(tmp_path / "done")).open()) == 3
    np.save(tmp_path / "two.npy", clean[:2])
    code, _, err = cli("data", "register", "short.npy", "two.npy", "--out", "other")
    assert (code, err) == (
        2,
        "error: short.npy has 3 images and two.npy 2; expected one clean image for each noisy one\n",
    )
    code, _, err = cli("data", "register", "volume:long.tif", "volume:long.tif", "--out", "other")
    assert code == 2
    assert "holds volumes; give their sections, as volume:FILE,view=sections" in err


@pytest.mark.parametrize(("option", "message"), [
    (("--flow", "raft"), "--flow 'raft' is unknown; there are none, tvl1, ilk, and MODULE:FUNCTION"),
    (("--flow", "nothing_of_this_name:flow"), "cannot be imported: ModuleNotFoundError"),
    (("--flow", "math:pi"), "--flow 'math:pi' is no function"),
    (("--flow", "numpy:add"), "--flow numpy:add returned an array of shape"),
    (("--flow", "numpy:linalg_of_none"), "has no attribute 'linalg_of_none'"),
    (("--least", "1"), "--least must be at least 0 and below 1, got 1"),
    (("--largest", "0"), "--largest must be above 0 and at most 0.5 of the side, got 0"),
    (("--reach", "0"), "--reach must be at least 1 pixel, got 0; give --flow none"),
])  # fmt: skip
def test_requests_that_make_no_sense_are_one_line(cli, tmp_path, raw, option, message):
    for name in ("1", "2"):
        (raw / "a" / "1" / f"wf_{name}.tif").unlink()
        (raw / "a" / "1" / f"gt_{name}.tif").unlink()
    code, out, err = cli("data", "register", "raw", "--out", "done", *option)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_written_files_are_whole(cli, tmp_path, raw, monkeypatch):
    """A pair whose second image cannot be written leaves none of its files."""
    from cryobench.measuring import register

    write = register.write_tiff_image

    def failing(file, path, image, pixel_size):
        if path.name == "gt_1.tif":
            raise OSError(28, "No space left on device")
        write(file, path, image, pixel_size)

    with monkeypatch.context() as patched:
        patched.setattr(register, "write_tiff_image", failing)
        code, _, err = cli("data", "register", "raw", "--out", "done", "--flow", "none", "-q")
    assert code == 2
    assert "No space left on device" in err
    names = {path.name for path in (tmp_path / "done" / "a" / "1").iterdir()}
    assert names == {"wf_0.tif", "gt_0.tif", "pair_0.json"}
    assert cli("data", "register", "raw", "--out", "done", "--flow", "none", "-q")[0] == 0
    assert len(EmPairs(str(tmp_path / "done")).open()) == 3
    assert open_tiff(tmp_path / "done" / "a" / "1" / "gt_1.tif").pixel_size == pytest.approx(40)
    with pytest.raises(DataError):
        open_tiff(tmp_path / "done" / "a" / "1" / "pair_1.json")
