"""Noisy micrographs with longer exposures, in folders of TIFF files: read against what tifffile wrote."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

import cryobench as cb
from cryobench.errors import DataError, SelectionError
from cryobench.sources.em_pairs import EmPairs

SHAPE = (12, 16)
G = np.random.default_rng(0)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, **{"photometric": "minisblack", **options})


def bytes_(shape=SHAPE):
    return G.integers(0, 256, shape, np.uint8)


@pytest.fixture
def root(tmp_path):
    """Two cells of two levels, of which one has twelve pairs."""
    for cell in ("cell 1", "cell 10", "cell 2"):
        for level in ("1", "2"):
            for number in range(12 if (cell, level) == ("cell 1", "2") else 1):
                for prefix in ("wf", "gt"):
                    save(tmp_path / "em" / cell / level / f"{prefix}_{number}.tif", bytes_())
    return tmp_path / "em"


def stored(root, names):
    return np.stack([tifffile.imread(root / name) for name in names]).astype(np.float32)


def test_noisy_images_and_their_longer_exposures_are_read_in_the_order_of_numbers(root):
    (root / "notes.txt").write_text("not a cell")
    (root / "cell 1" / "2" / "pair_3.json").write_text("{}")
    stack = EmPairs(str(root)).open()
    names = ["cell 1/1/{}_0.tif", *(f"cell 1/2/{{}}_{n}.tif" for n in range(12)),
             *(f"cell {cell}/{level}/{{}}_0.tif" for cell in (2, 10) for level in (1, 2))]  # fmt: skip
    assert (len(stack), stack.shape, stack.label, stack.white_noise) == (17, SHAPE, "em", None)
    np.testing.assert_array_equal(stack.read_block(range(17)), stored(root, [name.format("wf") for name in names]))
    np.testing.assert_array_equal(stack.clean_block(range(17)), stored(root, [name.format("gt") for name in names]))
    assert (stack.other(0), stack.pairs) == (None, None)
    assert stack.files([3]) == [root / "cell 1/2/wf_2.tif", root / "cell 1/2/gt_2.tif"]
    with pytest.raises(SelectionError):
        stack.clean(17)


def test_cells_and_levels_are_chosen_by_name(root):
    assert len(EmPairs(str(root), level=("2",)).open()) == 14
    assert len(EmPairs(str(root), cell=("cell 2", "cell 10")).open()) == 4
    (only,) = [EmPairs(str(root), level=("1",), cell=("cell 2",)).open()]
    np.testing.assert_array_equal(only.read_block([0]), stored(root, ["cell 2/1/wf_0.tif"]))
    assert only.label == "em/cell 2/1"
    with pytest.raises(DataError, match=r"em has no level '3'; it has 1, 2$"):
        EmPairs(str(root), level=("3",)).open()
    with pytest.raises(DataError, match=r"has no cell 'cell'; it has cell 1, cell 2, cell 10"):
        EmPairs(str(root), cell=("cell",)).open()


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"compression": "zlib"}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_types_of_pixels_and_their_size(tmp_path, dtype, options):
    noisy, clean = (G.integers(0, 120, SHAPE).astype(dtype) for _ in range(2))
    centimetre = {"resolution": (1e8 / 40, 1e8 / 40), "resolutionunit": "CENTIMETER"}
    save(tmp_path / "a" / "1" / "wf_x.tif", noisy, **options, **centimetre)
    save(tmp_path / "a" / "1" / "gt_x.tiff", clean, **options)
    stack = EmPairs(str(tmp_path)).open()
    np.testing.assert_array_equal(stack.read(0), noisy.astype(np.float32))
    np.testing.assert_array_equal(stack.clean(0), clean.astype(np.float32))
    assert stack.read(0).dtype == np.float32
    assert stack.pixel_size(0) == pytest.approx(40)


def test_what_is_no_pair_is_one_line_that_names_the_file(root):
    def opened_and_read():
        stack = EmPairs(str(root)).open()
        stack.clean_block(range(len(stack)))

    def refused(message):
        with pytest.raises(DataError, match=message) as error:
            opened_and_read()
        assert "\n" not in str(error.value)

    noisy, clean = (root / "cell 1" / "1" / f"{prefix}_0.tif" for prefix in ("wf", "gt"))
    clean.rename(clean.with_name("other.tif"))
    refused(r"1/wf_0\.tif has no partner gt_0\.tif")
    noisy.rename(clean)
    refused(r"1/gt_0\.tif has no partner wf_0\.tif")
    clean.rename(noisy)
    save(clean, bytes_((12, 15)))
    refused(r"wf_0\.tif has 12 x 16 pixels and .*gt_0\.tif 12 x 15; expected a registered pair: use `cryobench data")
    save(noisy, bytes_((12, 15)))
    refused(r"cell 1/1/wf_0\.tif has 12 x 15 pixels and .*cell 1/2/wf_0\.tif 12 x 16; choose images of one shape")
    save(clean, bytes_())
    save(noisy, bytes_((3, *SHAPE)))
    refused(r"1/wf_0\.tif has 3 pages; expected one image in a file")
    save(noisy, bytes_((*SHAPE, 3)), photometric="rgb")
    refused(r"1/wf_0\.tif has pages of shape \(12, 16, 3\).*write it without colours")
    save(noisy, bytes_())
    bad = np.ones(SHAPE, np.float32)
    bad[2, 3:5] = np.nan, np.inf
    save(clean, bad)
    refused(r"1/gt_0\.tif has 2 values that are not finite")
    save(clean, bytes_())
    save(clean.with_suffix(".tiff"), bytes_())
    refused(r"gt_0\.tif and .*gt_0\.tiff have one name")
    clean.with_suffix(".tiff").unlink()
    opened = EmPairs(str(root)).open()
    noisy.unlink()
    with pytest.raises(DataError, match="wf_0"):
        opened.read(0)


def test_a_folder_without_pairs_says_where_they_would_be(root, tmp_path):
    for folder, message in ((tmp_path / "none", "none is not a folder"), (root / "cell 1", "the folder 1 above"),
                            (root / "cell 1" / "2", "the folder 2 above"), (tmp_path, "give another")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            EmPairs(str(folder)).open()


def test_a_run_of_own_noise_is_scored_against_the_longer_exposures(tmp_path):
    """The floor is the noisy image itself; its error is that of tifffile's arrays, and no truth is claimed."""
    y, x = np.mgrid[:48, :40]
    clean = (100 + 60 * np.sin(x / 5) * np.cos(y / 7)).astype(np.float32)
    noisy = (clean + 12 * G.normal(size=clean.shape)).astype(np.float32)
    save(tmp_path / "em/a/1/wf_0.tif", noisy)
    save(tmp_path / "em/a/1/gt_0.tif", clean)
    records = cb.run(["pinv", "gaussian"], "identity", noises="own", data=f"em_pairs:{tmp_path}/em", metrics=["psnr"],
                     floor=False, scaling="none")  # fmt: skip
    floor, smooth = records
    expected = 10 * np.log10((noisy.max() - noisy.min()) ** 2 / np.mean((noisy.astype(float) - clean) ** 2))
    assert floor.values["psnr_clean"] == pytest.approx([expected])
    assert np.isnan(floor.values["psnr"]).all()
    assert "no truth" in floor.unmeasured["psnr"]
    assert smooth.values["psnr_clean"][0] > expected + 5
    (floor,) = cb.run("pinv", "identity", noises="own", data=f"em_pairs:{tmp_path}/em", metrics=["psnr_other"],
                      floor=False)  # fmt: skip
    assert "no second image" in floor.unmeasured["psnr_other"]
