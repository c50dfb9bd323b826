"""Solvers that give each particle a map: what they see, what is checked, and what survives a kill."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cryobench as cb
from cryobench.core import Imaging
from cryobench.core.checkpoints import checkpoint, checkpointing
from cryobench.results.store import Results
from cryobench.runner.imaging import seen_by
from cryobench.sources.simulate import Simulate

PLUGIN = """
from dataclasses import dataclass
import torch
from cryobench.core import Heterogeneity, HeterogeneitySolver, Reconstruction, VolumeModel
from cryobench.core.checkpoints import checkpoint

class One(VolumeModel):
    def __init__(self, map):
        self.map, self.side, self.dimensions = map, len(map), 1
    def volumes(self, latents):
        return self.map * latents[:, :1, None, None].float()
    def arrays(self):
        return {"map": self.map}

@dataclass(frozen=True)
class Toy(HeterogeneitySolver):
    broken: str = ""
    seeks: bool = False
    stop: int = 99
    @property
    def seeks_poses(self):
        return self.seeks
    def volume_model(self, arrays):
        return One(arrays["map"])
    def solve(self, problem, *, rng, progress=None):
        state = checkpoint().load() or {"step": 0, "began": 0}
        for step in range(state["step"], 5):
            if step == self.stop and not state["began"]:
                raise KeyboardInterrupt
            checkpoint().offer({"step": step + 1, "began": 1})
        n, side = problem.batch, problem.operator.image_shape[-1]
        latents = torch.zeros((n, 2 if self.broken == "latents" else 1))
        shift = torch.full((n, 2), float("nan")) if self.broken == "shift" else None
        model = One(torch.zeros((side // 2 if self.broken == "side" else side,) * 3))
        info = {"began": torch.full((n,), float(state["began"])),
                "columns": torch.full((n,), float(len(problem.imaging.table.columns)))}
        many = Heterogeneity(latents, model, shift=shift)
        return Reconstruction(problem.operator.A_adjoint(problem.y), info, heterogeneity=many)
"""
DATA = "simulate:3mht+2nwl,size=16,pixel_size=8,count=4"


@pytest.fixture
def toy(install_plugin):
    return install_plugin("cryobench-toy-maps", {"cryobench.solvers": {"toy": "toy_maps:Toy"}}, toy_maps=PLUGIN)


def run(solver: str, **options):
    return list(cb.run(solver, "identity", data=DATA, metrics=["psnr"], **options))


def test_a_solver_does_not_see_the_truth_nor_poses_that_it_seeks(toy):
    table = Simulate("3mht+2nwl", size=16, pixel_size=8, count=4).open().table.assign(trueLatent=0.5, trueClass=1)
    imaging = Imaging((16, 16), (8.0,) * 4, table)
    known, sought, other = (cb.solver(text) for text in ("toy", "toy:seeks=true", "direct"))
    poses = {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"}
    truth = {"trueLatent", "trueClass"}
    assert set(table.columns) - set(seen_by(other, imaging).table.columns) == truth
    assert set(table.columns) - set(seen_by(known, imaging).table.columns) == truth | {"rlnClassNumber"}
    assert set(table.columns) - set(seen_by(sought, imaging).table.columns) == truth | {"rlnClassNumber"} | poses
    assert set(imaging.table.columns) == set(table.columns)
    first, second = run(["toy", "toy:seeks=true"], floor=False)
    assert first.solver_info["columns"][0] - second.solver_info["columns"][0] == len(poses)


def test_the_floor_is_one_map_for_all_particles(toy):
    floor, *_ = run(["toy"])
    assert (floor.solver, floor.floor) == ("consensus", True)
    floor, _ = run(["dct:steps=2"])
    assert (floor.solver, floor.floor) == ("pinv", True)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("latents", "latents are [4, 2], expected finite numbers [4, 1]"),
        ("shift", "shift are [4, 2], expected finite numbers"),
        ("side", "model of volumes is of 8 voxels, expected a VolumeModel of 16 voxels"),
    ],
)
def test_a_broken_answer_fails_its_cell_in_one_line(toy, broken, expected):
    (record,) = run([f"toy:broken={broken}"], floor=False)
    assert record.status == "failed"
    assert expected in record.reason


def test_a_killed_cell_goes_on_and_its_state_is_removed(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("cryobench.core.checkpoints._INTERVAL", 0.0)
    runs = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        run(["toy:stop=3"], out=runs, floor=False)
    assert len(list(runs.glob(".unfinished-*"))) == 1
    (record,) = run(["toy:stop=3"], out=runs, floor=False)
    assert record.solver_info["began"] == [1.0] * 4
    assert not list(runs.glob(".unfinished-*"))
    assert len(Results(runs).read_all(pytest.fail)) == 1


def test_a_forced_run_begins_anew(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("cryobench.core.checkpoints._INTERVAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(["toy:stop=3"], out=tmp_path, floor=False)
    with pytest.raises(KeyboardInterrupt):
        run(["toy:stop=3"], out=tmp_path, floor=False, force=True)


def test_states_are_kept_whole_and_damaged_ones_are_ignored(tmp_path):
    path = tmp_path / "state.pt"
    assert checkpoint().load() is None
    checkpoint().offer({"step": 1})  # outside of a cell nothing is kept
    with checkpointing(path, 0.0):
        assert checkpoint().load() is None
        checkpoint().offer({"step": 3, "maps": torch.arange(4.0)})
        state = checkpoint().load()
        assert state["step"] == 3
        assert np.array_equal(state["maps"], range(4))
    with checkpointing(path, 3600.0):
        checkpoint().offer({"step": 4})  # the last one is not old enough
        assert checkpoint().load()["step"] == 3
    path.write_bytes(path.read_bytes()[:100])
    with checkpointing(path, 0.0) as kept:
        assert checkpoint().load() is None
        kept.remove()
    assert not path.exists()
