"""Batch sizes are halved until a batch fits in memory, once per task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cryobench as cb
from cryobench import runner
from cryobench.errors import ParameterError
from cryobench.plan import grid
from cryobench.registry import installed
from cryobench.runner import Observer
from cryobench.runner.memory import BatchSizes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HUNGRY = """
from dataclasses import dataclass
import torch
from cryobench.core import Column, Measured, Metric, Noisy, Reconstruction, Solver
from cryobench.operators.noise import NoNoise

def eat(images, most):
    if images > most: raise torch.OutOfMemoryError("out of memory")

@dataclass(frozen=True)
class Hungry(Solver):
    most: int = 2
    def solve(self, problem, *, rng, progress=None):
        eat(problem.batch, self.most)
        return Reconstruction(problem.operator.A_adjoint(problem.y) * 0)

@dataclass(frozen=True)
class HungryNoise(NoNoise):
    def apply(self, y, operator, scale, rng):
        eat(len(y), 2)
        return super().apply(y, operator, scale, rng)

@dataclass(frozen=True)
class HungryMetric(Metric):
    columns = (Column("first_pixel", "none"),)
    def measure(self, case, reconstruction):
        eat(len(case.truth), 2)
        return Measured({"first_pixel": reconstruction.x[:, 0, 0, 0]})
"""


@pytest.fixture
def hungry(install_plugin):
    groups = {
        "cryobench.solvers": {"hungry": "hungry_plugin:Hungry"},
        "cryobench.noises": {"hungry_noise": "hungry_plugin:HungryNoise"},
        "cryobench.metrics": {"hungry_metric": "hungry_plugin:HungryMetric"},
    }
    return install_plugin("cryobench-hungry", groups, hungry_plugin=HUNGRY)


class Listener(Observer):
    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


@pytest.mark.parametrize("most", [1, 5, 1024])
@pytest.mark.parametrize("images", [1, 6, 100])
@pytest.mark.parametrize("room", [1, 3, 1000])
def test_the_batch_is_halved_until_it_fits_and_the_size_is_remembered(most, images, room):
    sizes, tried = BatchSizes(most, CPU), []

    def attempt(batch):
        tried.append(batch)
        if batch > room:
            raise MemoryError
        return batch

    found = sizes.fit("task", images, attempt, lambda batch: None)
    assert tried[0] == min(most, images)
    assert tried == [tried[0] // 2**k for k in range(len(tried))]
    assert found == tried[-1] <= room
    assert all(batch > room for batch in tried[:-1])
    tried.clear()
    assert sizes.fit("task", images, attempt, pytest.fail) == found
    assert tried == [found]
    assert sizes.fit("other task", 1, attempt, pytest.fail, maximum=1) == 1


def test_errors_other_than_out_of_memory_are_raised():
    def fails(batch):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        BatchSizes(8, CPU).fit("task", 8, fails, pytest.fail)


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [("auto", CPU, 16), ("auto", CUDA, 1024), (3, CPU, 3), ("3", CUDA, 3), (5000, CUDA, 5000)],
)
def test_auto_depends_on_the_device_and_a_number_is_used_unchanged(given, device, expected):
    assert grid.resolve_batch(given, device) == expected


@pytest.mark.parametrize("given", [0, -2, "0", "2.5", 2.5, "", "many", "9" * 5000, None])
def test_invalid_batches_give_a_one_line_error(blobs, given):
    with pytest.raises(ParameterError, match="--batch must be auto or a positive number") as raised:
        cb.run("pinv", "sumpool:4", data=blobs, batch=given)
    assert len(str(raised.value)) < 120


def test_auto_uses_16_on_a_cpu_and_the_record_states_the_batch(tmp_path):
    images = np.random.default_rng(0).normal(size=(20, 8, 8)).astype(np.float32)
    np.save(tmp_path / "noise.npy", images)
    for batch, used in (("auto", 16), (7, 7), (100, 20)):
        (record,) = cb.run("pinv", "sumpool:4", data=tmp_path / "noise.npy", images="0:20", batch=batch)
        assert record.timing["batch"] == used


def test_the_batch_size_is_remembered_per_solver_and_operator(hungry, blobs):
    listener = Listener()
    request = grid.Request(
        ["hungry", "hungry:4"], ["sumpool:4", "identity"], ["none", "gaussian:0.1"], [str(blobs)], images="0:6",
        seeds=(0, 1), floor=False,
    )  # fmt: skip
    records = list(runner.execute(grid.plan(request, installed()), observer=listener))
    assert {(r.status, r.solver, r.timing["batch"]) for r in records} == {("ok", "hungry", 1), ("ok", "hungry:4", 3)}
    # six images, then three, then one for `hungry`; six, then three for `hungry:4`: once on each operator
    assert sorted(w.rpartition(" ")[2] for w in listener.warnings) == ["1", "1", "3", "3", "3", "3"]


def test_a_solver_that_never_fits_is_not_retried_with_a_larger_batch(hungry, blobs):
    listener = Listener()
    request = grid.Request(["hungry:0"], ["identity"], ["none", "gaussian:0.1"], [str(blobs)], floor=False)
    records = list(runner.execute(grid.plan(request, installed()), observer=listener))
    assert [record.status for record in records] == ["failed", "failed"]
    assert len(listener.warnings) == 2  # four images, then two, then one


def test_measuring_and_scoring_halve_their_batches(hungry, blobs):
    records = cb.run("dct:steps=3", "sumpool:4", data=blobs, images="0:6", noises="hungry_noise",
                     metrics=["psnr", "hungry_metric"])  # fmt: skip
    plain = cb.run("dct:steps=3", "sumpool:4", data=blobs, images="0:6", metrics=["psnr"])
    for record, expected in zip(records, plain, strict=True):
        assert record.status == "ok", record.reason
        assert record.values["psnr"] == pytest.approx(expected.values["psnr"])
        assert len(record.values["first_pixel"]) == 6
