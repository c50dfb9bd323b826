"""`--scaling`: images measured on other scales than [-1, 1], scored in one range and solved as well."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest

import cryobench as cb
from cryobench.errors import ParameterError
from cryobench.io.scaling import NORMALISATIONS

FAST = {"metrics": ["psnr", "mse", "ssim"], "images": "0:2"}


def scored(solver: str, scaling: str, data, noise: str = "none", **options):
    (record,) = cb.run(solver, "sumpool:4", data=data, scaling=scaling, noises=noise, floor=False, **FAST | options)
    assert record.status == "ok", record.reason
    return record


@pytest.fixture
def positive(blobs):
    np.save(blobs, 3 * np.load(blobs) + 1)
    return blobs


@pytest.mark.parametrize("scaling", [name for name in NORMALISATIONS if name != "minmax"])
@pytest.mark.parametrize("solver", ["pinv", "dct:steps=50", "tikhonov:lam=0"])
def test_metrics_of_what_is_equivariant_do_not_depend_on_the_scale(positive, solver, scaling, tmp_path):
    record, usual = scored(solver, scaling, positive), scored(solver, "minmax", positive)
    for name, values in usual.values.items():
        np.testing.assert_allclose(record.values[name], values, rtol=1e-3)
    assert record.hash != usual.hash
    assert record.problem["scale"]["name"] == scaling
    assert record.problem["scale"]["range"] is None
    assert record.problem["data_range"]["from"] == "image"
    assert usual.problem["data_range"] == {"from": "scale", "low": -1.0, "high": 1.0}


def test_minmax_is_the_default_and_the_same_cell(positive):
    assert scored("pinv", "minmax", positive).hash == cb.run("pinv", "sumpool:4", data=positive, **FAST)[0].hash


@pytest.mark.parametrize("scaling", ["none", "relion", "p95"])
def test_reconstructions_are_saved_in_the_units_of_the_file(positive, scaling, tmp_path):
    cb.run("pinv", "identity", data=positive, scaling=scaling, out=tmp_path, save=["reconstructions"], **FAST)
    (path,) = tmp_path.glob("*pinv*/reconstructions.mrcs")
    np.testing.assert_allclose(mrcfile.read(path), np.load(positive)[:2], rtol=1e-5)


def test_what_needs_a_range_is_skipped_or_refused_in_a_line(positive):
    (record,) = cb.run("pinv", "sumpool:4", data=positive, scaling="relion", noises="poisson:50", floor=False, **FAST)
    assert record.status == "skipped"
    assert "scaling relion has none, use minmax" in record.reason
    (record,) = cb.run("tv:box=true", "sumpool:4", data=positive, scaling="none", floor=False, **FAST)
    assert record.status == "skipped"
    with pytest.raises(ParameterError, match="'minmx' is unknown; did you mean 'minmax'"):
        cb.run("pinv", "sumpool:4", data=positive, scaling="minmx")


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["none", "gaussian:rel=0.1"])
def test_hqs_loses_nothing_on_images_without_a_range(noise):
    """The same draws, both scored in the units of the file with the range of each measured image."""
    options = {"noise": noise, "images": "0:4", "metrics": ["psnr"]}
    usual, relion = (np.mean(scored("hqs", name, "demo", **options).values["psnr"]) for name in ("minmax", "relion"))
    assert abs(relion - usual) <= 0.1
