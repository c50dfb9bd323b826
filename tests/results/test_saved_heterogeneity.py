"""The files of a result of many structures: what is read equals what was written, and what is refused."""

from __future__ import annotations

import json

import analysis_toys as toys
import numpy as np
import pandas as pd
import pytest
import starfile
import torch
from safetensors.torch import load_file, save_file

from cryobench.core import Heterogeneity
from cryobench.errors import ResultsError
from cryobench.physics.poses import Poses
from cryobench.results.heterogeneity import FOLDER, read_heterogeneity, write_heterogeneity
from cryobench.spec import parse


@pytest.fixture
def registry(install_plugin):
    return toys.install(install_plugin)


def test_what_is_read_equals_what_was_written(registry, tmp_path):
    table = toys.particle_table(60).assign(trueClass=2, trueLatent=np.linspace(0, 1, 60))
    z = toys.save(tmp_path / "run", registry, "demo:4", table, images=list(range(5, 65)))
    for folder in (tmp_path / "run", tmp_path / "run" / FOLDER):
        saved = read_heterogeneity(folder, registry)
        assert saved.about.solver == "blobs:2"
        assert (saved.about.images[0], saved.about.pixel_size, saved.about.side) == (5, toys.PIXEL, toys.SIDE)
        assert saved.about.versions["cryobench-blobs"] == "1.0"
        assert saved.found.rotations is None
        assert saved.found.starts == (-3.0, -2.5)
        np.testing.assert_array_equal(saved.found.latents.numpy(), z)
        pd.testing.assert_frame_equal(saved.table, table, check_dtype=False)
    expected = toys.model().volumes(torch.from_numpy(z[:3]))
    assert torch.equal(saved.found.model.volumes(saved.found.latents[:3]), expected)


def test_found_poses_replace_those_given(registry, tmp_path):
    found = Poses.uniform(60, seed=1)
    found = Poses(found.angles, torch.randn((60, 2), dtype=torch.float64))
    table = toys.particle_table(60).drop(columns=["rlnOriginXAngst", "rlnOriginYAngst"]).assign(rlnOriginX=9.0)
    toys.save(tmp_path / "run", registry, "demo:4", table, found=found)
    saved = read_heterogeneity(tmp_path / "run", registry)
    assert saved.about.seeks_poses
    assert "rlnOriginX" not in saved.table.columns
    poses = Poses.from_table(saved.table)
    torch.testing.assert_close(poses.matrices, found.matrices, rtol=0, atol=1e-9)
    torch.testing.assert_close(poses.shift, found.shift)
    torch.testing.assert_close(saved.found.rotations, found.matrices)
    np.testing.assert_array_equal(saved.table["rlnDefocusU"], table["rlnDefocusU"])
    other = starfile.read(tmp_path / "run" / FOLDER / "particles.star")
    np.testing.assert_allclose(other["rlnAngleTilt"], saved.table["rlnAngleTilt"])


def test_a_result_without_latents_and_without_a_table(registry, tmp_path):
    toys.save(tmp_path / "run", registry, "demo:4", None, dimensions=0, pixel_size=None)
    saved = read_heterogeneity(tmp_path / "run", registry)
    assert saved.found.latents.shape == (60, 0)
    assert list(saved.table.columns) == []
    assert len(saved.table) == 60


def test_shifts_are_in_pixels_where_the_pixel_size_is_unknown(registry, tmp_path):
    found = Poses(torch.zeros((60, 3), dtype=torch.float64), torch.ones((60, 2), dtype=torch.float64))
    toys.save(tmp_path / "run", registry, "demo:4", None, found=found, pixel_size=None)
    table = read_heterogeneity(tmp_path / "run", registry).table
    assert (table["rlnOriginX"] == -1).all()
    assert "rlnOriginXAngst" not in table.columns


def test_the_paths_of_a_source_are_absolute(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.star").touch()
    toys.save(tmp_path / "run", registry, "file:p.star,size=8", None)
    saved = read_heterogeneity(tmp_path / "run", registry)
    assert saved.about.source == f"file:{tmp_path / 'p.star'},size=8"


def edit(**fields):
    def change(folder):
        path = folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def arrays(**changed):
    def change(folder):
        path = folder / "arrays.safetensors"
        save_file(load_file(path) | changed, path)

    return change


CASES = {
    "no result": (lambda f: (f / "result.json").unlink(), "result.json is missing; run the cell again"),
    "no arrays": (lambda f: (f / "arrays.safetensors").unlink(), "arrays.safetensors is missing"),
    "no table": (lambda f: (f / "particles.star").unlink(), "particles.star is missing"),
    "half a json": (lambda f: (f / "result.json").write_text('{"version": 1, '), "result.json is damaged"),
    "a list": (lambda f: (f / "result.json").write_text("[]"), "result.json is damaged"),
    "half the arrays": (
        lambda f: (f / "arrays.safetensors").write_bytes((f / "arrays.safetensors").read_bytes()[:300]),
        "arrays.safetensors is damaged",
    ),
    "no table of particles": (lambda f: (f / "particles.star").write_text("data_x\n"), "particles.star is damaged"),
    "another version": (edit(version=9), "is of version 9, and this version of cryobench reads 1"),
    "images": (edit(images=list(range(59))), "latents of the solver has shape"),
    "other images": (edit(images=list(range(1, 61))), "does not have a row for each of the 60 images"),
    "pixel size": (edit(pixel_size=-1), "a field has the wrong type or value"),
    "dimensions": (edit(dimensions=1), "has side 16 and 2 dimensions, and result.json states 16 and 1"),
    "solver": (edit(solver="nosuch:3"), "made by the solver 'nosuch', which is not installed; install it"),
    "no spec": (edit(solver="blobs:abc"), "result.json is damaged"),
    "another solver": (edit(solver="dct"), "the solver 'dct' gives no map to each particle"),
    "latents": (arrays(latents=torch.full((60, 2), torch.nan)), "values that are not finite"),
    "more arrays": (arrays(more=torch.zeros(2)), "it holds latents, more"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_result_is_refused_in_one_line(registry, tmp_path, name):
    change, message = CASES[name]
    toys.save(tmp_path / "run", registry, "demo:4", toys.particle_table(60))
    change(tmp_path / "run" / FOLDER)
    with pytest.raises(ResultsError) as error:
        read_heterogeneity(tmp_path / "run", registry)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_folders_are_refused(registry, tmp_path):
    with pytest.raises(ResultsError, match=r"no folder .*nosuch; give a run folder"):
        read_heterogeneity(tmp_path / "nosuch", registry)
    with pytest.raises(ResultsError, match="has no heterogeneity/ with latents and maps; make one by"):
        read_heterogeneity(tmp_path, registry)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"latents": torch.zeros(59, 2)}, r"latents of the solver has shape \[59, 2\], expected \[60, 2\]"),
        ({"latents": torch.full((60, 2), torch.inf)}, "latents of the solver has values that are not finite"),
        ({"rotations": torch.eye(3).expand(60, 3, 3)}, "rotations or a shift alone"),
        ({"rotations": torch.eye(3).expand(60, 3, 3), "shift": torch.zeros(60, 3)}, "shift of the solver has shape"),
    ],
)
def test_a_solver_that_answers_wrongly_is_refused(registry, tmp_path, parts, message):
    found = Heterogeneity(**{"latents": torch.zeros(60, 2), "model": toys_model(registry)} | parts)
    with pytest.raises(ResultsError, match=message):
        write_heterogeneity(tmp_path / FOLDER, found, solver="blobs", seeks_poses=False, versions={},
                            source=parse("demo"), images=range(60), pixel_size=None, table=None)  # fmt: skip
    assert not (tmp_path / FOLDER).exists()


def toys_model(registry):
    registry.get("solvers", "blobs")
    return toys.model()
