"""Landweber converges to the least-norm solution and runs by name."""

import torch
from cryobench_landweber import Landweber

import cryobench as cb
from cryobench.testing import solver_contract

test_contract = solver_contract("landweber")


def test_it_converges_to_the_minimum_norm_solution():
    A = cb.operator("sumpool:4,mask=random_gaussian", shape=(16, 16), dtype="float64")
    x = torch.rand((2, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = A.A(x)
    torch.testing.assert_close(cb.solve(Landweber(steps=5_000), A, y), A.A_dagger(y), rtol=1e-4, atol=1e-4)


def test_it_runs_by_name():
    records = cb.run("landweber:20", "sumpool:16", images="0")
    assert [(record.solver, record.status) for record in records] == [("pinv", "ok"), ("landweber:20", "ok")]
    assert records[1].counters["operator_calls"] == 21
