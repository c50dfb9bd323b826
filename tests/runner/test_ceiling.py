"""The ceiling: clean + A^+ A (noisy - clean), a reference that is not a solver and is never ranked."""

from __future__ import annotations

import json

import mrcfile
import numpy as np
import pytest
import torch

import cryobench as cb
from cryobench.errors import ParameterError
from cryobench.plan import grid
from cryobench.registry import installed
from cryobench.results.store import Results

PARTICLES = "simulate:3mht,snr=1,count=6,size=32"
FAST = {"data": PARTICLES, "metrics": ["psnr", "mse", "measurement_mse"], "images": "0:4"}


def ceiling_of(records):
    (record,) = [record for record in records if record.ceiling]
    return record


def dataset(data=PARTICLES, images="0:4"):
    plan = grid.plan(grid.Request(["pinv"], ["identity"], data=[data], images=images), installed())
    return plan.cells[0].dataset


@pytest.mark.parametrize("operator", ["sumpool:4", "fourier:0.5", "ctf"])
def test_the_ceiling_is_the_clean_image_plus_the_measured_part_of_the_noise(operator):
    """Compared with the pseudo-inverse of a dense matrix, which shares no code with the operators."""
    record = ceiling_of(cb.run("pinv", operator, ceiling=True, **FAST))
    data = dataset()
    images = data.read(slice(None))
    pixels = torch.eye(32 * 32).reshape(-1, 1, 32, 32)
    for i in range(4):
        row = data.table.iloc[[i]].reset_index(drop=True)
        one = cb.operator(operator, shape=(32, 32), pixel_size=data.pixel_size[i], table=row).select([0] * len(pixels))
        A = one.A(pixels).flatten(1).T.double().numpy()
        noise = (images.pixels[i] - images.clean[i]).double().flatten().numpy()
        # singular values below 1e-5 count as zero, which is above the rounding error of a float32 matrix
        lost = noise - np.linalg.pinv(A, rcond=1e-5) @ (A @ noise)
        assert record.values["mse"][i] == pytest.approx(np.mean((lost / 2) ** 2), rel=0.02)
    assert max(record.values["measurement_mse"]) < 1e-10


def test_the_ceiling_is_exact_for_complete_measurements_or_images_without_noise(tmp_path):
    records = cb.run("pinv", "identity", ceiling=True, out=tmp_path, save=["reconstructions", "panel"], **FAST)
    (path,) = tmp_path.glob("*ceiling*/reconstructions.mrcs")
    assert max(ceiling_of(records).values["mse"]) < 1e-12
    scale = ceiling_of(records).problem["scale"]
    offset, factor = (np.array(scale[name])[:, None, None] for name in ("offset", "factor"))
    expected = offset + factor * dataset().read(slice(None)).pixels[:, 0].numpy()
    np.testing.assert_allclose(mrcfile.read(path), expected, atol=1e-5 * np.abs(expected).max())
    noiseless = cb.run("pinv", "sumpool:8", ceiling=True, **FAST | {"data": "simulate:3mht,snr=none,count=6,size=32"})
    assert max(ceiling_of(noiseless).values["mse"]) < 1e-12


def test_no_solver_reaches_the_ceiling():
    records = cb.run(["dct", "tikhonov"], ["sumpool:4", "fourier:0.4"], ceiling=True, **FAST)
    for operator in ("sumpool:4", "fourier:0.4"):
        means = {r.solver: np.mean(r.values["psnr"]) for r in records if r.operator == operator}
        assert means.pop("ceiling") > max(means.values()) + 0.5


def test_the_ceiling_is_an_unranked_row_per_problem_without_costs_or_clean_metrics():
    records = cb.run("dct:steps=3", ["sumpool:4", "fourier:0.5"], ceiling=True, **FAST)
    assert [(r.operator, r.solver, r.ceiling, r.status) for r in records] == [
        (operator, solver, solver == "ceiling", "ok")
        for operator in ("sumpool:4", "fourier:0.5")
        for solver in ("pinv", "dct:steps=3", "ceiling")
    ]
    assert not any(r.ceiling for r in cb.run("pinv", "sumpool:4", **FAST))
    ceiling, pinv = records[2], records[0]
    assert list(ceiling.values) == [column["name"] for column in ceiling.columns] == ["psnr", "mse", "measurement_mse"]
    assert "psnr_clean" in pinv.values
    assert (ceiling.counters, ceiling.peak_memory_mib, ceiling.floor) == ({}, None, False)
    assert "seconds_per_image" not in ceiling.timing
    for by in ("psnr", "psnr_clean", "nfe", "seconds_per_image"):
        frame = records.to_pandas(by)
        assert frame["rank"].isna().tolist() == [False, False, True] * 2
        assert frame["solver"][frame["rank"].isna()].tolist() == ["ceiling"] * 2


def test_the_ceiling_does_not_depend_on_the_batch():
    whole = ceiling_of(cb.run("pinv", ["ctf"], ceiling=True, **FAST))
    ones = ceiling_of(cb.run("pinv", ["ctf"], ceiling=True, batch=1, **FAST))
    assert whole.values["psnr"] == pytest.approx(ones.values["psnr"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"noises": "gaussian:rel=0.1"}, "exact measurements"),
        ({"data": "simulate:3mht,snr=1,count=4,size=32,noise=solvent"}, "is not white"),
    ],
)
def test_the_ceiling_is_skipped_where_it_is_not_a_bound(options, reason):
    pinv, ceiling = cb.run("pinv", "sumpool:4", ceiling=True, **FAST | options)
    assert (pinv.status, ceiling.status) == ("ok", "skipped")
    assert reason in ceiling.reason
    assert not ceiling.values


def test_the_ceiling_is_skipped_without_clean_images(blobs):
    _, ceiling = cb.run("pinv", "sumpool:4", ceiling=True, data=blobs)
    assert ceiling.status == "skipped"
    assert "not known" in ceiling.reason


SOLVER = """
from dataclasses import dataclass
from cryobench.core import Reconstruction, Solver
@dataclass(frozen=True)
class Ceiling(Solver):
    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(problem.operator.A_adjoint(problem.y))
"""


def test_ceiling_is_refused_as_a_solver_even_if_a_plugin_registers_the_name(install_plugin):
    for _ in range(2):
        with pytest.raises(ParameterError, match="use --ceiling") as raised:
            cb.run("ceiling", "sumpool:4", **FAST)
        assert "\n" not in str(raised.value)
        install_plugin("cryobench-c", {"cryobench.solvers": {"ceiling": "c_module:Ceiling"}}, c_module=SOLVER)


def test_the_hash_of_the_ceiling_and_its_reuse(tmp_path, monkeypatch):
    def hashes(solver="pinv", **options):
        request = grid.Request([solver], ["sumpool:4"], data=[PARTICLES], images="0:4", ceiling=True, **options)
        return {cell.labels["solver"]: cell.hash for cell in grid.plan(request, installed()).cells}

    first = hashes()
    assert first["ceiling"] != first["pinv"]
    assert hashes("dct")["ceiling"] == first["ceiling"]  # other solvers of the run do not matter
    assert hashes(seeds=(1,))["ceiling"] != first["ceiling"]
    monkeypatch.setattr(grid, "CEILING_VERSION", 2)
    assert hashes() == first | {"ceiling": hashes()["ceiling"]} != first
    made, again = (ceiling_of(cb.run("pinv", "sumpool:4", ceiling=True, out=tmp_path, **FAST)) for _ in range(2))
    assert again.environment["created"] == made.environment["created"]
    read = ceiling_of(Results(tmp_path).read_all(report=pytest.fail))
    assert read == made
    assert json.loads(next(tmp_path.glob("*ceiling*/record.json")).read_text())["ceiling"] is True
