"""The scaling of a run: how images are mapped, where the map is recorded, and what depends on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cryobench as cb
from cryobench.errors import ParameterError
from cryobench.io.scaling import NORMALISATIONS, scaling_of
from cryobench.plan import grid
from cryobench.plan.dataset import load, source_spec
from cryobench.registry import installed

SOURCE = "simulate:3mht,snr=1,count=3,size=32"


def cell(scaling):
    return grid.plan(grid.Request(["pinv"], ["identity"], data=[SOURCE], scaling=scaling), installed()).cells[0]


def test_a_scaling_identifies_a_cell_unless_it_is_the_default():
    cells = {name: cell(name) for name in ("minmax", "none", "meanstd", "relion")}
    assert len({each.hash for each in cells.values()}) == len({each.dataset.digest for each in cells.values()}) == 4
    assert "scaling" not in cells["minmax"].resolved
    assert cells["relion"].resolved["scaling"] == "relion"
    assert len({each.dataset.image_digests for each in cells.values()}) == 1


@pytest.mark.parametrize("name", ["none", "meanstd", "relion"])
def test_an_image_and_its_clean_partner_share_one_map(name):
    registry = installed()
    data = load(source_spec(SOURCE, {}, registry), "0:2", registry, name)
    images = data.read(slice(None))
    stack = registry.make("sources", SOURCE).open()
    for i in range(2):
        radius = stack.particle_radius(i) / stack.pixel_size(i) if name == "relion" else None
        expected = scaling_of(name, stack.read(i), "", radius=radius)
        np.testing.assert_array_equal(images.pixels[i, 0], expected.apply(stack.read(i)))
        np.testing.assert_array_equal(images.clean[i, 0], expected.apply(stack.clean(i)))
    assert (data.scale.name, data.scale.range) == (name, None)


@pytest.mark.parametrize("name", ["none", "meanstd", "relion"])
def test_psnr_does_not_depend_on_the_scaling_and_the_record_states_its_range(name):
    options = {"operators": "sumpool:4", "data": SOURCE, "images": "0:2", "metrics": ["psnr", "ssim"]}
    (here,) = cb.run("pinv", scaling=name, **options)
    (there,) = cb.run("pinv", **options)
    assert here.values["psnr"] == pytest.approx(there.values["psnr"], abs=1e-3)
    assert here.values["ssim"] == pytest.approx(there.values["ssim"], abs=1e-4)
    assert there.problem["data_range"] == {"from": "scale", "low": -1.0, "high": 1.0}
    found = here.problem["data_range"]
    images = cell(name).dataset.read(slice(2)).pixels.flatten(1)
    assert found["from"] == "image"
    torch.testing.assert_close(torch.tensor(found["high"]), images.amax(dim=1))
    assert here.problem["scale"]["name"] == name


def test_solvers_that_need_a_range_are_skipped_and_unknown_scalings_refused():
    options = {"operators": "identity", "data": SOURCE, "images": "0"}
    records = cb.run(["tv:box=true"], noises="poisson:50", scaling="relion", **options)
    assert {record.status for record in records} == {"skipped"}
    assert "scaling relion has none" in records[0].reason
    with pytest.raises(ParameterError, match="did you mean 'relion'"):
        cb.run("pinv", scaling="relio", **options)


def test_the_suite_schema_lists_all_scalings(tmp_path):
    import json
    from pathlib import Path

    schema = json.loads((Path(grid.__file__).parent / "suite.schema.json").read_text())
    assert set(schema["properties"]["scaling"]["enum"]) == set(NORMALISATIONS)
