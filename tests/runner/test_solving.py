"""`run`, `reconstruct` and `cb.solve` share preparation of priors, isolation of random state and checks of results."""

from __future__ import annotations

from dataclasses import dataclass

import mrcfile
import numpy as np
import pytest
import torch

import cryobench as cb
from cryobench.core import Case, Problem, Progress, Reconstruction, Solver, meters
from cryobench.errors import IncompatibleError, PluginError
from cryobench.measuring.measure import Acquisition, measure
from cryobench.measuring.measurements import Measurements, load
from cryobench.measuring.reconstruct import reconstruct
from cryobench.metrics.uncertainty import Coverage
from cryobench.plan.dataset import open_stack
from cryobench.plan.presets import Setting, add_setting
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.runner.scoring import score
from cryobench.runner.solving import solve
from cryobench.solvers.tiled import Tiled


@dataclass(frozen=True)
class Global(Solver):
    """Draws from torch's global state and changes the default dtype, both against the contract."""

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        x = problem.operator.A_adjoint(problem.y)
        torch.set_default_dtype(torch.float64)
        return Reconstruction(x + torch.randn(x.shape[1:], dtype=x.dtype))


@dataclass(frozen=True)
class Wrong(Solver):
    """Returns a reconstruction that breaks the contract."""

    how: str

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        x = problem.operator.A_adjoint(problem.y)
        if self.how == "samples":
            return Reconstruction(x, deviation=torch.ones_like(x), samples=1)
        return Reconstruction({"nan": x / 0, "shape": x[:, 0], "dtype": x.double()}[self.how])


@dataclass(frozen=True)
class Four(Solver):
    """States that it is the mean of four draws."""

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        x = problem.operator.A_adjoint(problem.y)
        return Reconstruction(x, deviation=torch.ones_like(x), samples=4)


@pytest.fixture
def measured(blobs, tmp_path) -> Measurements:
    stack = open_stack(str(blobs), {}, installed())
    measure(Acquisition("sumpool:4"), stack, [0, 1, 2], installed()).save(tmp_path / "y.npz")
    return load(tmp_path / "y.npz")


def test_global_random_state_is_isolated_in_every_caller(measured):
    A = cb.operator("sumpool:4", shape=(32, 32))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    through_api = [cb.solve(Global(), A, measured.y) for _ in range(2)]
    through_file = [np.concatenate(list(reconstruct(measured, Global(), installed(), batch=3))) for _ in range(2)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(*through_api)
    np.testing.assert_array_equal(*through_file)
    np.testing.assert_allclose(through_file[0], measured.scale.to_file(through_api[0])[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "not finite"),
        ("shape", "returned shape"),
        ("dtype", "torch.float64"),
        ("samples", "number of samples is 1"),
    ],
)
def test_reconstructions_are_checked_in_every_caller(how, message, measured):
    A = cb.operator("sumpool:4", shape=(32, 32))
    with pytest.raises(PluginError, match=message):
        cb.solve(Wrong(how), A, measured.y)
    with pytest.raises(PluginError, match=message):
        list(reconstruct(measured, Wrong(how), installed()))


@pytest.mark.parametrize("solver", [Four(), Tiled(Four(), tile=16, overlap=4)])
def test_the_number_of_draws_reaches_the_metrics(solver):
    A = cb.operator("sumpool:4", shape=(32, 32))
    y = torch.rand((5, *A.measurement_shape))
    problem = Problem(A, y, installed().make("noises", "none"), y.new_zeros((5, 1, 1, 1)))
    answer = solve(solver, problem, list("abcde"), seed=0, batch=2).reconstruction
    assert answer.samples == 4
    truth = answer.x + 1.0  # at t = 1 / sqrt(1 + 1/4) of Student's t with 3 degrees of freedom, 0.56 is covered
    case = Case(problem, truth, list("abcde"), [None] * 5)
    for level, covered in (("coverage_68", 1.0), ("coverage", 1.0)):
        assert score([Coverage()], case, answer, batch=2).values[level] == [covered] * 5
    curve = score([Coverage()], case, answer, batch=2).curves["coverage"]
    assert (curve[:, :11] == 0).all()  # of levels up to 0.55
    assert (curve[:, 11:] == 1).all()


def test_solve_returns_the_reconstruction_and_its_cost():
    A = meters.CountingOperator(cb.operator("sumpool:4", shape=(32, 32)))
    y = torch.rand((5, *A.measurement_shape))
    problem = Problem(A, y, installed().make("noises", "none"), y.new_zeros((5, 1, 1, 1)))
    fractions: list[float] = []
    solver = cb.solver("dct:steps=20")
    solved = solve(solver, problem, list("abcde"), seed=0, batch=2, progress=fractions.append)
    assert solved.reconstruction.x.shape == (5, 1, 32, 32)
    assert solved.reconstruction.info["iterations"].shape == (5,)
    assert solved.iterates is None
    costs = solved.costs
    assert 0 < costs.operator_seconds <= costs.solver_seconds
    assert costs.network_seconds == 0
    assert costs.counters["operator_calls"] == sum(costs.calls.values()) / 5 > 0
    assert fractions[-1] == 1
    assert fractions == sorted(fractions)
    together = solve(solver, problem, list("abcde"), seed=0, batch=5)
    torch.testing.assert_close(solved.reconstruction.x, together.reconstruction.x, rtol=0, atol=1e-5)


def test_an_unsupported_problem_gives_a_one_line_error(measured):
    with pytest.raises(IncompatibleError, match="diagonal in Fourier"):
        cb.solve("wiener", cb.operator("sumpool:4", shape=(32, 32)), measured.y)
    with pytest.raises(IncompatibleError, match="does not support these measurements: wiener needs"):
        reconstruct(measured, cb.solver("wiener"), installed())


def test_reconstruct_takes_presets(measured, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add_setting(Setting("dct", {"steps": "3"}, ()), "few", tmp_path / "presets")
    assert cli("reconstruct", "y.npz", "--solver", "dct@few", "--out", "preset.mrcs")[0] == 0
    assert cli("reconstruct", "y.npz", "--solver", "dct:steps=3", "--out", "stated.mrcs")[0] == 0
    assert cli("reconstruct", "y.npz", "--solver", "dct", "--out", "plain.mrcs")[0] == 0
    preset, stated, plain = (mrcfile.read(tmp_path / f"{name}.mrcs") for name in ("preset", "stated", "plain"))
    np.testing.assert_array_equal(preset, stated)
    assert not np.array_equal(preset, plain)
    code, _, err = cli("reconstruct", "y.npz", "--solver", "dct@none", "--out", "other.mrcs")
    assert (code, err.count("\n")) == (2, 1)
    assert "no preset 'none'" in err
