"""Measurement files, and reconstruction from them without the truth, in the units of the measured images."""

from __future__ import annotations

import json

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from cryobench.core import build_operator
from cryobench.errors import CryobenchError, DataError, IncompatibleError
from cryobench.io.scaling import scaling_of
from cryobench.measuring.measure import Acquisition, measure
from cryobench.measuring.measurements import load
from cryobench.measuring.reconstruct import operator_of, reconstruct
from cryobench.plan.dataset import open_stack
from cryobench.registry import installed
from cryobench.solvers.pinv import Pinv

SIMULATED = "simulate:3mht+2nwl,snr=1,count=5,size=32"


def measured_and_read(tmp_path, spec, data=SIMULATED, indices=(0, 3, 2), **settings):
    stack = open_stack(str(data), {}, installed())
    path = tmp_path / "y.npz"
    measure(Acquisition(spec, **settings), stack, list(indices), installed()).save(path)
    return stack, load(path)


def images_of(measured, solver=None, **options):
    return np.concatenate(list(reconstruct(measured, solver or Pinv(), installed(), **options)))


@pytest.mark.parametrize("scaling", ["minmax", "none", "meanstd", "relion"])
@pytest.mark.parametrize("spec", ["sumpool:4,count=40", "identity", "fourier:1.0", "sumpool:2,count=24@identity"])
def test_complete_measurements_reproduce_the_images_in_their_units(tmp_path, spec, scaling):
    stack, measured = measured_and_read(tmp_path, spec, scaling=scaling, invert=True)
    operator = operator_of(measured, installed(), dtype=torch.float32, device=torch.device("cpu"))
    assert operator.rank == 32 * 32
    found = images_of(measured)
    for image, index in zip(found, (0, 3, 2), strict=True):
        expected = stack.read(index)
        np.testing.assert_allclose(image, expected, atol=2e-3 * np.abs(expected).max())


def test_the_file_records_all_settings(tmp_path):
    stack, measured = measured_and_read(
        tmp_path, "sumpool:4,count=3", noise="gaussian:rel=0.1", scaling="relion", radius=10.0, seed=7
    )
    with np.load(tmp_path / "y.npz", allow_pickle=False) as file:
        assert file["y"].shape == (3, 3, 8, 8)
        assert file["drawn/masks"].shape == (3, 32, 32)
    assert measured.operator == "sumpool:4,count=3,mask=random_binary,mask.prob=0.5"
    assert measured.noise == "gaussian:sigma=none,rel=0.1" or "rel=0.1" in measured.noise
    assert measured.pixel_size == tuple(stack.pixel_size(i) for i in (0, 3, 2))
    assert measured.image_ids == ("0", "3", "2")
    assert (measured.sigma > 0).all()
    assert measured.about["radius_pixels"] == 10
    for column in stack.table.columns:
        np.testing.assert_allclose(measured.table[column], stack.table[column].iloc[[0, 3, 2]], rtol=1e-12)
    # y is the operator applied to the scaled image plus noise of the stated standard deviation
    live = build_operator(installed().make("operators", "sumpool:4,count=3"), (32, 32), seed=7)
    image = (stack.read(3) - float(measured.scale.offset[1])) / float(measured.scale.factor[1])
    residual = measured.y[1] - live.A(torch.from_numpy(image.astype(np.float32))[None, None])[0]
    assert float(residual.std()) == pytest.approx(float(measured.sigma[1]), rel=0.2)


@pytest.mark.parametrize(("scaling", "limits"), [("minmax", (-1.0, 1.0)), ("none", None), ("relion", None)])
def test_the_scale_is_read_from_files_of_both_formats(tmp_path, scaling, limits):
    _, measured = measured_and_read(tmp_path, "sumpool:4", scaling=scaling)
    assert (measured.scale.name, measured.scale.range) == (scaling, limits)
    with np.load(tmp_path / "y.npz") as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    assert (about["format"], about.pop("scaling")) == (2, scaling)
    about.pop("range")
    about |= {"format": 1, "about": about["about"] | {"normalize": scaling}}
    np.savez(tmp_path / "old.npz", **arrays | {"about": np.array(json.dumps(about))})
    old = load(tmp_path / "old.npz")
    assert (old.scale.name, old.scale.range) == (scaling, limits)
    torch.testing.assert_close(old.scale.factor, measured.scale.factor, rtol=0, atol=0)


def test_relion_scaling_uses_the_radius_of_the_source(tmp_path):
    stack, measured = measured_and_read(tmp_path, "identity", scaling="relion")
    stated = stack.particle_radius(3) / stack.pixel_size(3)
    assert float(measured.scale.factor[1]) == scaling_of("relion", stack.read(3), "", radius=stated).factor
    assert float(measured.scale.factor[1]) != scaling_of("relion", stack.read(3), "").factor


def test_the_old_option_normalize_names_the_new_one(cli):
    code, _, err = cli("measure", "-o", "identity", "--data", "demo", "--out", "y.npz", "--normalize", "relion")
    assert (code, err.count("\n")) == (2, 1)
    assert "give --scaling relion" in err


@pytest.mark.parametrize("spec", ["sumpool:4", "fourier:0.5", "sumpool:2,count=2@fourier:0.7"])
def test_recorded_masks_are_used_instead_of_drawing_new_ones(tmp_path, spec, monkeypatch):
    _, measured = measured_and_read(tmp_path, spec)
    before = images_of(measured)
    for name in ("RandomBinary", "RandomFourier"):
        monkeypatch.setattr(f"cryobench.operators.masks.{name}.draw", None)  # drawing a mask would fail
    np.testing.assert_array_equal(images_of(measured), before)


def test_each_image_keeps_its_own_ctf(tmp_path):
    stack, measured = measured_and_read(tmp_path, "ctf", data=SIMULATED + ",ctf=false", noise="gaussian:rel=0.01")
    wiener = installed().make("solvers", "wiener")
    found = images_of(measured, wiener)
    alone = images_of(measured, wiener, batch=1)
    np.testing.assert_array_equal(found, alone)
    for image, index in zip(found, (0, 3, 2), strict=True):
        assert np.corrcoef(image.ravel(), stack.read(index).ravel())[0, 1] > 0.9


def test_plain_arrays_are_sum_pooling(tmp_path):
    rng = np.random.default_rng(0)
    images, masks = rng.normal(size=(2, 16, 16)), rng.normal(size=(16, 16, 16))
    y = (masks[None] * images[:, None]).reshape(2, 16, 4, 4, 4, 4).sum(axis=(3, 5))
    np.savez(tmp_path / "plain.npz", y=y, masks=masks)
    found = images_of(load(tmp_path / "plain.npz"), dtype="float64")
    np.testing.assert_allclose(found, images, atol=1e-3)
    assert load(tmp_path / "plain.npz").scale.range is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "holds x, but no y"),
        ({"y": np.zeros((2, 3, 4, 4))}, "has y but no masks"),
        ({"y": np.zeros((3, 4, 4)), "masks": np.zeros((3, 8, 8))}, r"expected finite real numbers \[B, M, h, w\]"),
        ({"y": np.full((1, 3, 4, 4), np.nan), "masks": np.zeros((3, 8, 8))}, "expected finite real numbers"),
        ({"y": np.zeros((1, 3, 4, 4)), "masks": np.zeros((3, 8, 12))}, "for a block size K"),
        ({"y": np.zeros((1, 2, 4, 4)), "masks": np.zeros((3, 8, 8))}, r"expected masks \[2, H, W\]"),
        ({"y": np.zeros((1, 1, 4, 4)), "about": np.array("{}")}, "is damaged or from another version"),
    ],
)
def test_invalid_measurement_files_give_a_one_line_error(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_invalid_requests_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"is not a readable \.npz file"):
        load(tmp_path / "text.npz")
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none.npz")
    with pytest.raises(IncompatibleError, match="does not divide"):
        measured_and_read(tmp_path, "sumpool:5")
    with pytest.raises(IncompatibleError, match="noise poisson"):
        measured_and_read(tmp_path, "sumpool:4,mask=random_gaussian", noise="poisson:10")
    _, measured = measured_and_read(tmp_path, "fourier:0.5")
    with pytest.raises(CryobenchError, match="batch must be at least 1"):
        images_of(measured, batch=0)


def test_measure_and_reconstruct_a_real_star_file(cli, shared, tmp_path):
    source = shared / "data" / "empiar_10076_7.star"
    code, _, err = cli("measure", "-o", "sumpool:4,count=8", "--data", source, "--size", 64, "--out", "y.npz")
    assert code == 0, err
    assert "y is 8 x 16 x 16 for each, C = 2" in err
    code, out, err = cli("reconstruct", "y.npz", "--solver", "pinv", "--out", "stack.mrcs")
    assert (code, out) == (0, "")
    with mrcfile.open(tmp_path / "stack.mrcs") as file:
        assert file.data.shape == (7, 64, 64)
        assert float(file.voxel_size.x) == pytest.approx(6.55, rel=1e-3)
        stack = open_stack(str(source), {"size": "64"}, installed())
        for image, index in zip(file.data, range(7), strict=True):
            assert np.corrcoef(image.ravel(), stack.read(index).ravel())[0, 1] > 0.5
    blocks, real = starfile.read(tmp_path / "stack.star"), starfile.read(source)
    assert blocks["optics"]["rlnImagePixelSize"].tolist() == [pytest.approx(6.55, rel=1e-3)]
    for column in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
        assert blocks["particles"][column].tolist() == real[column].tolist()
    assert blocks["particles"]["rlnImageName"].tolist()[0] == "000001@stack.mrcs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "-o", "sumpool:4", "--data", "demo", "--out", "y.npy"], "a file .npz"),
        (["measure", "-o", "sumpol:4", "--data", "demo", "--out", "y.npz"], "did you mean 'sumpool'"),
        (["measure", "-o", "ctf", "--data", "noctf.npy", "--out", "y.npz"], "requires the pixel size"),
        (["reconstruct", "none.npz", "--solver", "pinv", "--out", "a.mrcs"], "does not exist"),
        (["reconstruct", "none.npz", "--solver", "pinv", "--out", "a.mrc"], "written as .mrcs"),
        (["reconstruct", "none.npz", "--solver", "pinvv", "--out", "no/a.mrcs"], "the folder no does not exist"),
    ],
)
def test_invalid_arguments_give_one_line_and_exit_code_2(cli, tmp_path, arguments, message):
    np.save(tmp_path / "noctf.npy", np.random.default_rng(0).normal(size=(2, 8, 8)))
    code, out, err = cli(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["noctf.npy"]


def test_volumes_are_refused_before_anything_is_written(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("volume.npy", np.arange(64, dtype=np.float32).reshape(4, 4, 4))
    code, _, err = cli("measure", "-o", "identity", "--data", "volume:volume.npy", "--out", "y.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert "measure takes images (2-D), but volume.npy holds volumes of 4 x 4 x 4" in err
    assert not (tmp_path / "y.npz").exists()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The arrays and the settings of a valid file, measured from four images."""
    folder = tmp_path_factory.mktemp("recorded")
    measured_and_read(folder, "sumpool:4", indices=(0, 1, 2, 3))
    with np.load(folder / "y.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays["about"]))


def table(columns, *rows):
    return {"table": json.dumps({"columns": columns, "index": list(range(len(rows))), "data": list(rows)})}


FOUR = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("arrays", "about", "message"),
    [
        ({"y": np.ones((4, 4, 8, 8), int)}, {}, "y is int64"),
        ({"y": np.ones((4, 3, 8, 8), "f4")}, {}, "the operator gives"),
        ({"y": np.ones((3, 4, 8, 8), "f4")}, {}, "sigma is float32"),
        ({"sigma": np.zeros(7, "f4")}, {}, r"expected finite numbers of shape \[4\]"),
        ({"sigma": FOUR + np.nan}, {}, "sigma is float32"),
        ({"sigma": FOUR - 1}, {"noise": "gaussian:0.1"}, "sigma has negative"),
        ({"sigma": FOUR + 1}, {}, "but the noise is none"),
        ({"offset": np.zeros(1)}, {}, "offset is float64"),
        ({"offset": FOUR + np.inf}, {}, "offset is float32"),
        ({"factor": np.zeros(4)}, {}, "factor has zeros"),
        ({"factor": np.array(["x"] * 4)}, {}, "factor is <U1"),
        ({"drawn/masks": np.ones((4, 32, 31), "f4")}, {}, r"needs an array 'masks' of shape \[4, 32, 32\]"),
        ({"drawn/masks": np.full((4, 32, 32), np.nan)}, {}, "expected finite numbers"),
        ({"drawn/masks": np.zeros((4, 32, 32))}, {}, "all of its masks are zero"),
        ({"drawn/masks": np.ones((4, 32, 32), complex)}, {}, "expected finite numbers"),
        ({"drawn/masks": None}, {}, "got none"),
        ({"about": np.array("[" * 100_000)}, {}, "recursion"),
        ({"about": np.array("[]")}, {}, "about is not a set of named values"),
        ({}, {"image_shape": [64, 64]}, "the operator gives"),
        ({}, {"image_shape": [2**40, 2**40]}, "needs .* of memory|the operator gives"),
        ({}, {"image_shape": [-32, 32]}, "two positive integers"),
        ({}, {"image_shape": [32]}, "two positive integers"),
        ({}, {"operator": ""}, "operator is ''"),
        ({}, {"operator": 3}, "operator is 3"),
        ({}, {"operator": "fourier:0.5"}, "the operator gives"),
        ({}, {"operator": "sumpool:4@sumpool:1,count=1"}, "needs an array 'masks'"),
        ({}, {"operator": "sumpool:4,count=1000000000000"}, "of memory"),
        ({}, {"noise": None}, "noise is None"),
        ({}, {"seed": 2**70}, "expected an integer of 64 bits"),
        ({}, {"seed": 1.5}, "expected an integer of 64 bits"),
        ({}, {"scaling": "other"}, "scaling is 'other'"),
        ({}, {"range": [0, 1]}, r"range is \[0, 1\]"),
        ({}, {"range": None}, "range is None"),
        ({}, {"pixel_size_angstrom": [1.0]}, "not a list of 4"),
        ({}, {"pixel_size_angstrom": [1e300] * 4}, r"a pixel size is 1e\+300"),
        ({}, {"pixel_size_angstrom": [-1.0] * 4}, "a pixel size is -1"),
        ({}, {"image_ids": ["a"]}, "not a list of 4"),
        ({}, {"image_ids": ["a"] * 4}, "names an image twice"),
        ({}, {"image_ids": [1, 2, 3, 4]}, "not all names"),
        ({}, {"image_ids": ["a\nb", "\x1b[31m", "c", "d"]}, "not all names"),
        ({}, {"about": None}, "about is None"),
        ({}, {"table": 3}, "damaged"),
        ({}, table(["rlnDefocusU"], [1]), "the table has 1 rows for 4 images"),
        ({}, table(["rlnFoo\n_rlnBar #9"], [1], [1], [1], [1]), "the table has a column"),
        ({}, table(["rlnFoo"], ["a"], ["\n\ndata_x"], ["b"], ["c"]), "numbers or one-line texts"),
        ({}, table(["rlnFoo"], ["a"], [1], ["b"], ["c"]), "numbers or one-line texts"),
        ({}, table(["rlnFoo"], [1, 2], [1], [1], [1]), "incomplete rows"),
    ],
)
def test_recorded_fields_that_do_not_fit_are_refused(recorded, tmp_path, arrays, about, message):
    valid, settings = recorded
    changed = valid | {"about": np.array(json.dumps(settings | about))} | arrays
    np.savez(tmp_path / "a.npz", **{name: array for name, array in changed.items() if array is not None})
    with pytest.raises(CryobenchError, match=message) as error:
        images_of(load(tmp_path / "a.npz"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_texts_of_the_table_stay_texts(recorded, tmp_path):
    valid, settings = recorded
    names = ["00255", "1e5", "2020-01-01", "a"]
    own = table(["rlnTomoName", "rlnDefocusU"], *[[name, 1.5] for name in names])
    np.savez(tmp_path / "a.npz", **valid | {"about": np.array(json.dumps(settings | own))})
    read = load(tmp_path / "a.npz").table
    assert read is not None
    assert read["rlnTomoName"].tolist() == names
    assert read["rlnDefocusU"].tolist() == [1.5] * 4
