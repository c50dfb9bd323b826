"""A prior that does not support the images is refused before any work, at any depth of nesting in a solver."""

from __future__ import annotations

import numpy as np
import pytest
from networks import pipeline, unet

import cryobench as cb
from cryobench.errors import DataError, IncompatibleError, PluginError
from cryobench.plan import grid
from cryobench.priors.diffusion import Diffusion
from cryobench.registry import installed
from cryobench.solvers.hqs import Hqs

PLUGIN = """
from dataclasses import dataclass
from typing import Annotated
from cryobench.core import Prior, Reconstruction, Solver
from cryobench.errors import IncompatibleError
from cryobench.spec import Component

@dataclass(frozen=True)
class Sized(Prior):
    side: int = 16
    def check(self, shape):
        if self.side < 0: raise ValueError("a negative\\nside")
        if shape != (self.side, self.side):
            raise IncompatibleError(f"the prior is for {self.side} pixels a side, got {shape}; give --size {self.side}")

@dataclass(frozen=True)
class Doubled(Prior):
    inner: Annotated[Prior, Component("priors"), "another prior"] = Sized()

@dataclass(frozen=True)
class WithPrior(Solver):
    prior: Annotated[Prior, Component("priors"), "a prior"] = Sized()
    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(problem.operator.A_adjoint(problem.y) * 0)
"""


@pytest.fixture
def sized(install_plugin):
    groups = {
        "cryobench.priors": {"sized": "sized_plugin:Sized", "doubled": "sized_plugin:Doubled"},
        "cryobench.solvers": {"with_prior": "sized_plugin:WithPrior"},
    }
    return install_plugin("cryobench-sized", groups, sized_plugin=PLUGIN)


WRONG = ["with_prior", "with_prior:prior=sized,prior.side=64", "with_prior:prior=doubled"]


@pytest.mark.parametrize("solver", WRONG)
def test_a_prior_for_another_size_is_refused_before_any_work(sized, blobs, tmp_path, monkeypatch, solver):
    monkeypatch.setattr("cryobench.runner.cells.MeasuredProblem", lambda *_: pytest.fail("work was done"))
    with pytest.raises(IncompatibleError, match="give --size") as raised:
        cb.run(["dct", solver], "sumpool:4", data=blobs, out=tmp_path / "runs")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_every_data_set_is_checked_and_the_right_size_runs(sized, blobs):
    request = {"data": blobs, "data_options": {"size": "16"}, "floor": False}
    assert [r.status for r in cb.run(["with_prior", "with_prior:prior=doubled"], "sumpool:4", **request)] == ["ok"] * 2
    both = [f"file:{blobs},size=16", f"file:{blobs}"]
    with pytest.raises(IncompatibleError, match="for 16 pixels a side, got"):
        grid.plan(grid.Request(["with_prior"], ["sumpool:4"], data=both), installed())


def test_a_prior_whose_check_raises_gives_a_one_line_error(sized, blobs):
    with pytest.raises(PluginError, match=r"prior .*ValueError: a negative side") as raised:
        cb.run("with_prior:prior=sized,prior.side=-1", "sumpool:4", data=blobs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("solver", WRONG)
def test_the_command_line_prints_a_one_line_error(sized, blobs, cli, solver):
    code, out, err = cli("run", "-s", solver, "-o", "sumpool:4", "-d", blobs)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "give --size" in err


def cell_hash(solver: str, data) -> str:
    request = grid.Request(solvers=[solver], operators=["sumpool:4"], data=[str(data)], images="0", floor=False)
    (cell,) = grid.plan(request, installed()).cells
    return cell.hash


def test_the_location_of_weights_does_not_change_the_hash(tmp_path):
    """A path cannot change the results, so it is not part of the hash."""
    data = tmp_path / "images.npy"
    np.save(data, np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32))
    here, there, other = (tmp_path / name for name in ("here", "there", "other"))
    for folder, seed in ((here, 0), (there, 0), (other, 1)):
        pipeline(folder, unet(seed))
    first = cell_hash(f"hqs:prior={here}", data)
    assert cell_hash(f"hqs:prior={there},prior.pickle=true", data) == first
    assert cell_hash(f"hqs:prior={other}", data) != first
    assert cell_hash(f"hqs:prior={here},prior.noise=0.1", data) != first


def test_the_weights_of_an_encoder_are_part_of_the_hash_and_its_prior_may_be_for_another_size(tmp_path):
    data = tmp_path / "images.npy"
    np.save(data, np.random.default_rng(0).normal(size=(1, 20, 20)).astype(np.float32))
    here, there, other = (tmp_path / name for name in ("here", "there", "other"))
    for folder, seed in ((here, 0), (there, 0), (other, 1)):
        pipeline(folder, unet(seed))
    solver = "hypervolume:init=encoder,encoder=diffusion,encoder.prior="
    first = cell_hash(f"{solver}{here}", data)
    assert cell_hash(f"{solver}{there}", data) == first
    assert cell_hash(f"{solver}{other}", data) != first
    assert cell_hash(f"{solver}{here},encoder.sigma=0.1", data) != first
    with pytest.raises(DataError, match=r"nowhere does not exist; give a folder with model\.safetensors"):
        cell_hash("hypervolume:init=encoder,encoder=vit,encoder.folder=./nowhere", data)


def test_weights_are_read_before_the_solver_is_timed(tmp_path, monkeypatch):
    data = tmp_path / "images.npy"
    np.save(data, np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32))
    order = []
    load, solve = Diffusion.load, Hqs.solve
    monkeypatch.setattr(Diffusion, "load", lambda self, device="cpu": order.append("load") or load(self, device))
    monkeypatch.setattr(Hqs, "solve", lambda self, *a, **k: order.append("solve") or solve(self, *a, **k))
    (record,) = cb.run(f"hqs:prior={pipeline(tmp_path / 'm')},steps=1", "sumpool:4", data=data, floor=False)
    assert record.status == "ok"
    assert order[:2] == ["load", "solve"]


def test_a_network_at_another_size_is_noted_and_in_the_record(tmp_path):
    folder, rng = pipeline(tmp_path / "prior"), np.random.default_rng(0)
    for side, shapes in ((32, ([16, 16], [32, 32])), (16, None)):
        np.save(tmp_path / "images.npy", rng.standard_normal((1, side, side)).astype(np.float32))
        request = grid.Request([f"hqs:prior={folder}"], ["sumpool:4"], data=[str(tmp_path / "images.npy")], floor=False)
        plan = grid.plan(request, installed())
        said = [note for note in plan.notes if "16 x 16" in note]
        assert said == ([f"prior {folder}: trained on images of 16 x 16, used on 32 x 32"] if shapes else [])
        (cell,) = plan.cells
        (details,) = cell.priors
        assert (details.get("trained_shape"), details.get("used_shape")) == (shapes or (None, None))
