"""Running a grid of cells: reused, failed and skipped cells, and isolation of cells from each other."""

from __future__ import annotations

import dataclasses
import json

import mrcfile
import numpy as np
import pytest
import torch
from optics import ctf_table
from particles import simulated

import cryobench as cb
from cryobench import runner
from cryobench.errors import CryobenchError, ParameterError, PluginError, SpecError
from cryobench.io.scaling import minmax
from cryobench.leaderboard.index import read_cells
from cryobench.plan import dataset, grid
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.runner import Observer
from cryobench.runner.measured_problem import MeasuredProblem
from cryobench.runner.memory import BatchSizes

STRANGE = """
from dataclasses import dataclass, field
import torch
from cryobench.core import Column, Measured, Metric, Noisy, Reconstruction, Solver
from cryobench.operators.masks import PixelMask
from cryobench.operators.noise import NoNoise

class Base(Solver):
    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(self.answer(problem, rng))

def zeros(problem):
    return problem.operator.A_adjoint(problem.y) * 0

@dataclass(frozen=True)
class Raises(Base):
    def answer(self, problem, rng): raise ValueError("two\\nlines")

@dataclass(frozen=True)
class Nan(Base):
    def answer(self, problem, rng): return zeros(problem) / 0

@dataclass(frozen=True)
class Shape(Base):
    def answer(self, problem, rng): return zeros(problem)[:, :, 1:]

@dataclass(frozen=True)
class Dtype(Base):
    def answer(self, problem, rng): return zeros(problem).double()

@dataclass(frozen=True)
class Bare(Solver):
    def solve(self, problem, *, rng, progress=None): return zeros(problem)

@dataclass(frozen=True)
class Declines(Base):
    def unsupported(self, problem): return "it is Sunday"
    def answer(self, problem, rng): raise AssertionError

@dataclass(frozen=True)
class Hungry(Base):
    most: int = 2
    def answer(self, problem, rng):
        if problem.batch > self.most: raise torch.OutOfMemoryError("out of memory")
        return zeros(problem)

@dataclass(frozen=True)
class Vandal(Base):
    def answer(self, problem, rng):
        problem.y.zero_()
        torch.manual_seed(1)
        return zeros(problem)

@dataclass(frozen=True)
class Looks(Base):
    def answer(self, problem, rng):
        held = [getattr(problem, name) for name in problem.__dataclass_fields__]
        assert not any(isinstance(h, torch.Tensor) and h.shape == problem.image_batch_shape for h in held), "the truth"
        return zeros(problem)

@dataclass(frozen=True)
class Draws(Base):
    def answer(self, problem, rng):
        torch.rand(3)
        return rng.stream("x").normal(problem.image_batch_shape[1:])

@dataclass(frozen=True)
class Meddles(Base):
    def answer(self, problem, rng):
        problem.operator.matrices.zero_()
        torch.set_default_dtype(torch.float64)
        return zeros(problem)

@dataclass(frozen=True)
class Quits(Base):
    def answer(self, problem, rng): raise SystemExit(0)

@dataclass(frozen=True)
class Flaky(Base):
    def answer(self, problem, rng):
        import os
        if os.path.exists(os.environ["FLAKY"]): raise RuntimeError("today it fails")
        return zeros(problem)

@dataclass(frozen=True)
class Unhashable(Base):
    weights: list = field(default_factory=list)

@dataclass(frozen=True)
class Abstract(Solver):
    pass

@dataclass(frozen=True)
class Fussy(Base):
    def __post_init__(self): raise RuntimeError("not\\ntoday")

@dataclass(frozen=True)
class Halves(PixelMask):
    def draw(self, count, shape, seed): return torch.full((count, *shape), 0.5) + torch.eye(shape[0])

@dataclass(frozen=True)
class Nans(NoNoise):
    def apply(self, y, operator, scale, rng): return Noisy(y / 0, y[:, :1, :1, :1] * 0)

@dataclass(frozen=True)
class Short(NoNoise):
    def apply(self, y, operator, scale, rng): return Noisy(y[:1], y[:1, :1, :1, :1] * 0)

@dataclass(frozen=True)
class Ranked(Metric):
    columns = (Column("rank", "higher"),)
    def measure(self, case, reconstruction): return Measured({"rank": reconstruction.x[:, 0, 0, 0]})

@dataclass(frozen=True)
class Wilson(Metric):
    columns = (Column("wilson", "none", interval="wilson"),)
    def measure(self, case, reconstruction): return Measured({"wilson": reconstruction.x[:, 0, 0, 0]})

@dataclass(frozen=True)
class Wipes(Metric):
    columns = (Column("wiped", "lower"),)
    def measure(self, case, reconstruction):
        case.truth.zero_()
        case.problem.y.zero_()
        reconstruction.x.zero_()
        return Measured({"wiped": reconstruction.x[:, 0, 0, 0]})

@dataclass(frozen=True)
class NotASolver:
    pass

@dataclass(frozen=True)
class Curve(Metric):
    columns = (Column("first_pixel", "none"),)
    def measure(self, case, reconstruction):
        pixels = reconstruction.x.flatten(1)
        return Measured({"first_pixel": pixels[:, 0]}, {"row": pixels[:, :5]})
"""
NAMES = ["Raises", "Nan", "Shape", "Dtype", "Bare", "Declines", "Hungry", "Vandal", "Looks", "Draws", "NotASolver"]


@pytest.fixture
def strange(install_plugin):
    solvers = {name.lower(): f"strange_solvers:{name}" for name in NAMES}
    more = ["Meddles", "Quits", "Flaky", "Unhashable", "Abstract", "Fussy"]
    groups = {
        "cryobench.solvers": solvers | {name.lower(): f"strange_solvers:{name}" for name in more},
        "cryobench.metrics": {
            name.lower(): f"strange_solvers:{name}" for name in ("Curve", "Ranked", "Wilson", "Wipes")
        },
        "cryobench.noises": {name.lower(): f"strange_solvers:{name}" for name in ("Nans", "Short")},
        "cryobench.masks": {"halves": "strange_solvers:Halves"},
    }
    return install_plugin("cryobench-strange", groups, strange_solvers=STRANGE)


def run(solvers, operators="sumpool:4", **options):
    return cb.run(solvers, operators, **options)


def by_solver(records):
    return {record.solver: record for record in records}


def test_the_floor_is_in_every_table_unless_disabled(blobs):
    records = run("dct", ["sumpool:4", "fourier:0.5"], data=blobs, images="0:2")
    assert [(r.operator, r.solver, r.floor) for r in records] == [
        ("sumpool:4", "pinv", True),
        ("sumpool:4", "dct", False),
        ("fourier:0.5", "pinv", True),
        ("fourier:0.5", "dct", False),
    ]
    assert [r.solver for r in run("dct", data=blobs, floor=False)] == ["dct"]
    assert [r.solver for r in run(["dct", "pinv", "dct"], data=blobs)] == ["pinv", "dct"]


def test_on_compressible_images_the_dct_beats_the_floor_by_far(blobs):
    psnr = {r.solver: np.mean(r.values["psnr"]) for r in run("dct", "sumpool:4", data=blobs)}
    assert psnr["dct"] > psnr["pinv"] + 10


def test_equal_seeds_give_equal_results_and_other_seeds_do_not(blobs):
    def values(seed):
        return [r.values for r in run("dct", "sumpool:4", noises="gaussian:rel=0.05", data=blobs, seed=seed)]

    np.testing.assert_equal(values(0), values(0))  # NaN counts as equal
    assert values(0)[1]["psnr"] != values(1)[1]["psnr"]


def test_several_seeds_read_the_images_once(blobs, monkeypatch):
    reads = []
    monkeypatch.setattr(dataset, "minmax", lambda image, where: reads.append(where) or minmax(image, where))
    plan = grid.plan(grid.Request(["dct"], ["sumpool:4"], data=[str(blobs)], seeds=(3, 4, 5)), installed())
    assert [cell.seed for cell in plan.cells] == [3, 3, 4, 4, 5, 5]
    assert len({cell.hash for cell in plan.cells}) == 6
    assert len(reads) == 4


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["sumpool:2", "sumpool:4", "sumpool:8,mask=random_gaussian", "fourier:0.4"])
@pytest.mark.parametrize("solver", ["dct:steps=40", "wavelet:steps=40", "tv:steps=40"])
def test_results_do_not_depend_on_the_batch_size(operator, solver, blobs):
    options = {"noises": ["none", "gaussian:rel=0.05"], "metrics": ["psnr", "mae"], "data": blobs}
    whole = run(solver, operator, images="0:6", batch=6, **options)
    alone = run(solver, operator, images="5", **options)
    parts_of_four = run(solver, operator, images="0:6", batch=4, **options)
    for one, many, parts in zip(alone, whole, parts_of_four, strict=True):
        for metric, values in many.values.items():
            assert one.values[metric][0] == pytest.approx(values[5], rel=1e-5)
            assert parts.values[metric] == pytest.approx(values, rel=1e-5)


def test_reconstructions_do_not_depend_on_the_batch_size(tmp_path):
    def stack(images, batch):
        out = tmp_path / f"{images}-{batch}".replace(":", "-")
        run("dct", "sumpool:4", images=images, batch=batch, out=out, save=["reconstructions"])
        (folder,) = out.glob("*dct*")
        return mrcfile.read(folder / "reconstructions.mrcs")

    whole = stack("0:8", 8)
    assert whole.shape == (8, 128, 128)
    assert np.abs(stack("5", 1) - whole[5]).max() <= 1e-5 * np.abs(whole).max()


def test_a_broken_solver_fails_only_its_own_cell_with_a_one_line_reason(strange, blobs):
    records = by_solver(run([*(n.lower() for n in NAMES if n != "NotASolver"), "dct"], data=blobs, images="0:4"))
    assert records["raises"].reason.startswith("ValueError: two lines (strange_solvers.py:")
    assert "not finite" in records["nan"].reason
    assert "shape [4, 1, 31, 32], expected [4, 1, 32, 32]" in records["shape"].reason
    assert "torch.float64, expected torch.float32" in records["dtype"].reason
    assert "Tensor, not a Reconstruction" in records["bare"].reason
    assert {records[name].status for name in ("raises", "nan", "shape", "dtype", "bare")} == {"failed"}
    assert (records["declines"].status, records["declines"].reason) == ("skipped", "it is Sunday")
    assert records["looks"].status == "ok"
    assert records["dct"].status == "ok"
    clean = by_solver(run("dct", data=blobs, images="0:4"))
    np.testing.assert_equal(records["dct"].values, clean["dct"].values)  # the earlier solvers did not affect this cell


def test_a_plugin_that_modifies_shared_state_affects_only_its_own_cell(strange, blobs):
    clean = by_solver(run("dct", data=blobs))
    records = by_solver(run(["meddles", "dct"], data=blobs, metrics=["wipes", *grid.DEFAULT_METRICS]))
    assert "changed the operator" in records["meddles"].reason
    assert torch.get_default_dtype() == torch.float32
    for solver in ("pinv", "dct"):
        values = {k: v for k, v in records[solver].values.items() if k != "wiped"}
        np.testing.assert_equal(values, clean[solver].values)


def test_a_plugin_that_exits_fails_its_cell(strange, blobs):
    records = by_solver(run(["quits", "dct"], data=blobs))
    assert (records["quits"].status, records["dct"].status) == ("failed", "ok")
    assert "SystemExit" in records["quits"].reason


@pytest.mark.parametrize(
    ("noise", "expected"), [("nans", "not finite"), ("short", "y of shape [1, 4, 8, 8], expected [4,")]
)
def test_measurements_that_break_the_contract_fail_the_cell(strange, blobs, noise, expected):
    (record,) = run("pinv", data=blobs, noises=noise)
    assert record.status == "failed"
    assert expected in record.reason


@pytest.mark.parametrize(
    ("solver", "metric", "expected"),
    [
        ("unhashable", "psnr", "cannot be hashed"),
        ("abstract", "psnr", "cannot be made: TypeError"),
        ("fussy", "psnr", "RuntimeError: not today"),
        ("dct", "ranked", "'rank' is not an identifier or is reserved"),
        ("dct", "wilson", "has interval 'wilson'; give bootstrap or binomial"),
    ],
)
def test_invalid_plugins_give_a_one_line_error(strange, blobs, solver, metric, expected):
    with pytest.raises(PluginError, match=expected) as error:
        run(solver, data=blobs, metrics=metric)
    assert "\n" not in str(error.value)


def test_the_version_of_a_plugin_changes_only_the_hashes_of_its_cells(strange, blobs, tmp_path):
    def hashes(*solvers, operator="sumpool:4", metrics=("psnr", "mse")):
        request = grid.Request(solvers, [operator], data=[str(blobs)], metrics=metrics)
        return {cell.labels["solver"]: cell.hash for cell in grid.plan(request, installed()).cells}

    before = hashes("dct")
    assert hashes("dct", "looks")["dct"] == before["dct"]  # other solvers of the run do not matter
    assert hashes("dct", metrics=("mse", "psnr")) == before  # nor the order of the metrics
    masked = hashes("dct", operator="sumpool:4,mask=halves")
    metadata = next(strange.glob("*.dist-info/METADATA"))
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 2.0"))
    installed.cache_clear()
    assert hashes("dct") == before
    changed = hashes("dct", operator="sumpool:4,mask=halves")  # a plugin inside another's parameter
    assert all(changed[solver] != masked[solver] for solver in masked)


def test_copies_of_a_file_share_cells_and_a_table(blobs, tmp_path):
    out, copy = tmp_path / "runs", tmp_path / "copy.npy"
    copy.write_bytes(blobs.read_bytes())
    run("pinv", data=blobs, out=out)
    records = run("dct", data=copy, out=out)
    assert [r.data for r in records] == ["copy.npy", "copy.npy"]
    assert sorted(records.to_pandas()["rank"]) == [1, 2]


def test_a_second_run_keeps_files_and_results(strange, blobs, tmp_path, monkeypatch):
    out = tmp_path / "runs"
    monkeypatch.setenv("FLAKY", str(tmp_path / "broken"))
    run("flaky", data=blobs, out=out, save=["reconstructions"], floor=False)
    run("flaky", data=blobs, out=out, save=["panel"], floor=False)
    (folder,) = out.iterdir()
    assert {"reconstructions.mrcs", "panel.png"} <= {path.name for path in folder.iterdir()}
    (tmp_path / "broken").touch()
    (record,) = run("flaky", data=blobs, out=out, force=True, floor=False)
    assert record.status == "failed"
    (kept,) = Results(out).read_all(report=pytest.fail)
    assert kept.status == "ok"


def test_a_cell_whose_code_has_changed_runs_again(strange, blobs, tmp_path, monkeypatch):
    out, warnings = tmp_path / "runs", []
    code = {"pinv": "a" * 64}
    monkeypatch.setattr(grid, "code_digest", lambda module, distribution: code.get(module.rpartition(".")[2]))

    def rerun() -> list[bool]:
        plan = grid.plan(grid.Request(["pinv", "wavelet"], ["sumpool:4"], data=[str(blobs)], floor=False), installed())
        finished = []
        observer = Observer()
        observer.warn = warnings.append
        observer.cell_finished = lambda record, *, reused: finished.append((record.solver, reused))
        list(runner.execute(plan, store=Results(out), observer=observer))
        return finished

    assert rerun() == [("pinv", False), ("wavelet", False)]
    assert rerun() == [("pinv", True), ("wavelet", True)]
    assert warnings == []
    code["pinv"] = "b" * 64
    assert rerun() == [("pinv", False), ("wavelet", True)]
    assert warnings == ["pinv on sumpool:4: its code has changed since the last run, so it is run again"]
    kept = Results(out).read_all(pytest.fail)
    assert [(record.solver, record.environment["code"].get("cryobench.solvers.pinv")) for record in kept] == [
        ("wavelet", None),
        ("pinv", "b" * 12),
    ]
    assert read_cells([out], pytest.fail)["solver"].to_pylist() == ["wavelet", "pinv"]
    assert rerun() == [("pinv", True), ("wavelet", True)]
    code["pinv"] = "a" * 64  # the result of the first version is still stored
    assert rerun() == [("pinv", True), ("wavelet", True)]


def test_out_of_memory_errors_of_all_libraries_are_recognised():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        assert runner.is_out_of_memory(error)
    assert not runner.is_out_of_memory(RuntimeError("shape mismatch"))


def test_out_of_memory_halves_the_batch(strange, blobs):
    warnings = []

    class Listener(Observer):
        def warn(self, message):
            warnings.append(message)

    plan = grid.plan(
        grid.Request(["hungry", "hungry:0"], ["sumpool:4"], data=[str(blobs)], images="0:6", floor=False), installed()
    )
    fed, starved = runner.execute(plan, observer=Listener())
    assert (fed.status, fed.timing["batch"]) == ("ok", 1)
    assert [w.rpartition(" ")[2] for w in warnings[:2]] == ["3", "1"]
    assert starved.status == "failed"
    assert "out of memory" in starved.reason


def test_the_global_random_state_is_preserved_and_plugins_are_reproducible(strange, blobs):
    before = torch.random.get_rng_state()
    first, second = (run(["draws", "vandal"], data=blobs)[1].values for _ in range(2))
    np.testing.assert_equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_cells_are_reused_unless_something_that_changes_results_differs(blobs, tmp_path):
    out = tmp_path / "runs"

    def hashes(**options):
        made = []

        class Listener(Observer):
            def cell_finished(self, record, *, reused):
                made.append((record.hash, reused))

        request = grid.Request(
            **({"solvers": ["dct"], "operators": ["sumpool:4"], "data": [str(blobs)], "floor": False} | options)
        )
        list(runner.execute(grid.plan(request, installed()), store=Results(out), observer=Listener()))
        return made[0]

    first, reused = hashes()
    assert not reused
    moved = tmp_path / "elsewhere.npy"
    moved.write_bytes(blobs.read_bytes())
    for same in ({}, {"batch": 1}, {"data": [str(moved)]}, {"solvers": ["dct:auto,share=0.01"]}):
        assert hashes(**same) == (first, True)
    for other in (
        {"seeds": [1]},
        {"images": "0:3"},
        {"images": "1:5"},
        {"dtype": "float64"},
        {"noises": ["gaussian:0.1"]},
        {"operators": ["sumpool:4,count=5"]},
        {"solvers": ["dct:0.1"]},
        {"metrics": ["psnr"]},
        {"data_options": {"size": "16"}},
    ):
        hash, reused = hashes(**other)
        assert (hash != first, reused) == (True, False), other
    changed = np.load(blobs)
    changed[0, 3, 3] += 1e-3
    np.save(blobs, changed)
    assert hashes()[0] != first


def test_a_missing_file_or_a_failure_causes_another_run(strange, blobs, tmp_path):
    out = tmp_path / "runs"
    run("dct", data=blobs, out=out)
    run("dct", data=blobs, out=out, save=["panel"])
    assert len(list(out.glob("*dct*/panel.png"))) == 1
    assert len(list(out.iterdir())) == 2
    for _ in range(2):
        (record,) = run("raises", data=blobs, out=out, floor=False)
        assert record.status == "failed"
    assert json.loads(next(out.glob("*raises*/record.json")).read_text())["reason"].startswith("ValueError")


def test_a_saved_stack_is_in_the_units_of_the_file(blobs, tmp_path):
    run("pinv", "identity", data=blobs, images="2:5", out=tmp_path / "runs", save=["reconstructions"])
    (path,) = (tmp_path / "runs").glob("*/reconstructions.mrcs")
    np.testing.assert_allclose(mrcfile.read(path), np.load(blobs)[2:5], atol=1e-6)


def test_a_record_states_all_settings(blobs, tmp_path):
    (record,) = run("dct", "sumpool:4", data=blobs, floor=False, out=tmp_path / "runs", noises="gaussian:rel=0.1")
    assert record.resolved["operator"] == "sumpool:4,count=none,mask=random_binary,mask.prob=0.5"
    assert record.resolved["solver"].startswith("dct:auto,form=auto,cut=none,")
    assert record.compression == pytest.approx(4, abs=0.2)
    assert record.problem["measurement_shape"] == [4, 8, 8]
    assert record.counters["nfe"] == 0
    assert record.counters["operator_calls"] > record.counters["A_dagger_A"] >= 1
    assert record.timing["setup_seconds"] > 0
    assert record.timing["seconds_per_image"] == pytest.approx(record.timing["solver_seconds"] / 4)
    assert record.environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record.environment["plugins"] == {"cryobench": cb.__version__}
    assert record.environment["device"] == "cpu"
    assert set(record.solver_info) == {"iterations", "converged", "gap", "objective", "lam", "misfit"}
    assert len(record.values["psnr"]) == 4
    assert json.dumps(dataclasses.asdict(record))


def test_poisson_noise_is_skipped_for_operators_with_negative_weights(blobs):
    records = run("dct", ["fourier:0.5", "sumpool:4"], noises="poisson:100", data=blobs)
    assert [(r.status, "non-negative" in r.reason) for r in records[:2]] == [("skipped", True)] * 2
    assert [r.status for r in records[2:]] == ["ok", "ok"]


def test_curves_are_saved(strange, blobs, tmp_path):
    run("pinv", data=blobs, metrics=["curve", "psnr"], out=tmp_path, images="0:3")
    (path,) = tmp_path.glob("*/curves.npz")
    assert np.load(path)["row"].shape == (3, 5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"solvers": []}, "at least one"),
        ({"batch": 0}, "--batch"),
        ({"dtype": "float16"}, "--dtype"),
        ({"save": ["movie"], "out": "runs"}, "--save"),
        ({"save": ["panel"]}, "out='runs'"),
        ({"metrics": ["psnr", "psnr", "curve", "curve"], "images": "0", "solvers": "notasolver"}, "derive from"),
    ],
)
def test_invalid_requests_are_refused(strange, blobs, options, expected):
    with pytest.raises((ParameterError, PluginError, SpecError), match=expected):
        cb.run(**({"solvers": "dct", "operators": "sumpool:4", "data": blobs} | options))


# ---------------------------------------------------------------- images with their own CTF, pixel size and clean image

MICROSCOPE = """
from dataclasses import dataclass
import numpy as np
import torch
from cryobench.core import Column, Measured, Metric, OperatorRecipe, Reconstruction, Solver, Source, Stack
from optics import ctf_table
from particles import simulated

class Taken(Stack):
    shape, label = (32, 32), "taken"
    def __init__(self, source):
        self.source = source
        self.noisy, self.pure = (x[:, 0].numpy() * 7 + 3 for x in simulated(8, 32, snr=0.5))
    def __len__(self): return 8
    def read(self, index): return self.noisy[index]
    def pixel_size(self, index): return 2.0 + 0.1 * (index % 2)
    @property
    def table(self):
        if self.source.table == "none": return None
        table = ctf_table(8).assign(rlnImageName="x", rlnDefocusU=lambda t: t.rlnDefocusU + self.source.shift)
        return table[:5] if self.source.table == "short" else table
    def clean(self, index):
        if self.source.clean == "none" or (self.source.clean == "some" and index == 2): return None
        return self.pure[index, 1:] if self.source.clean == "cut" else self.pure[index] * self.source.gain
    @property
    def origin(self): return {"structure": "7k00", "split": "test"} if self.source.made else {}

@dataclass(frozen=True)
class Microscope(Source):
    clean: str = "all"
    table: str = "all"
    shift: float = 0.0
    gain: float = 1.0
    made: bool = True
    def open(self): return Taken(self)

@dataclass(frozen=True)
class Error(Metric):
    columns = (Column("error", "lower", "grey"),)
    def measure(self, case, reconstruction):
        assert case.clean is not None and case.clean.shape == case.truth.shape
        error = (reconstruction.x - case.truth).flatten(1)
        case.clean.zero_()
        return Measured({"error": error.square().mean(1)}, {"row": error[:, :5]})

@dataclass(frozen=True)
class Clash(Error):
    columns = (Column("psnr_clean", "higher"),)

@dataclass(frozen=True)
class Sharper(Solver):
    def solve(self, problem, *, rng, progress=None):
        transfer = problem.operator.transfer
        transfer.mul_(2)
        return Reconstruction(problem.operator.A_adjoint(problem.y))
"""


@pytest.fixture
def microscope(install_plugin):
    groups = {
        "cryobench.sources": {"microscope": "microscope:Microscope"},
        "cryobench.metrics": {"error": "microscope:Error", "clash": "microscope:Clash"},
        "cryobench.solvers": {"sharper": "microscope:Sharper"},
    }
    return install_plugin("cryobench-microscope", groups, microscope=MICROSCOPE)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["ctf", "sumpool:4,count=8@ctf", "fourier:0.6@ctf"])
@pytest.mark.parametrize("solver", ["dct:steps=50", "tikhonov"])
def test_each_image_uses_its_own_ctf_for_every_batch_size(microscope, operator, solver):
    options = {"noises": ["none", "gaussian:rel=0.1"], "metrics": ["psnr", "measurement_mse"], "data": "microscope"}
    whole = run(solver, operator, images="3:7", batch=4, **options)
    threes = run(solver, operator, images="3:7", batch=3, **options)
    alone = run(solver, operator, images="5", **options)
    for one, many, parts in zip(alone, whole, threes, strict=True):
        assert one.status == many.status == parts.status == "ok", many.reason
        for name, values in many.values.items():
            assert parts.values[name] == pytest.approx(values, rel=1e-4, abs=1e-9)
            assert one.values[name][0] == pytest.approx(values[2], rel=1e-4, abs=1e-9)


def test_measurements_use_the_ctf_of_each_image(microscope):
    plan = grid.plan(grid.Request(["pinv"], ["ctf"], data=["microscope"], images="1,4,6"), installed())
    data = plan.cells[0].dataset
    measured = MeasuredProblem(plan.cells[0], plan, BatchSizes(plan.batch, plan.device))
    pixels, y = data.read(slice(None)).pixels, measured.case(slice(0, 3)).problem.y
    assert data.imaging.pixel_size == (2.1, 2.0, 2.0)
    for i, index in enumerate((1, 4, 6)):
        row = ctf_table(8).iloc[[index]].reset_index(drop=True)
        operator = cb.operator("ctf", shape=(32, 32), pixel_size=data.pixel_size[i], table=row)
        assert torch.equal(y[i : i + 1], operator.A(pixels[i : i + 1]))


def test_metrics_are_also_computed_against_the_clean_image(microscope):
    (record,) = run("pinv", "identity", data="microscope", metrics=["psnr", "measurement_mse", "error"], images="2,0,5")
    assert record.status == "ok", record.reason
    names = [column["name"] for column in record.columns]
    assert names == ["psnr", "psnr_clean", "measurement_mse", "error", "error_clean"]
    assert list(record.values) == names
    columns = {column["name"]: column for column in record.columns}
    assert columns["error_clean"] == columns["error"] | {"name": "error_clean"}
    noisy, clean = (x[[2, 0, 5]].double() for x in simulated(8, 32, snr=0.5))
    expected = (noisy - clean).square().mean(dim=(1, 2, 3))  # the identity returns the noisy image
    torch.testing.assert_close(torch.tensor(record.values["error_clean"]).double(), expected, rtol=1e-4, atol=0)
    assert max(record.values["error"]) < 1e-12
    assert record.problem["origin"] == {"structure": "7k00", "split": "test"}
    assert json.dumps(dataclasses.asdict(record))


def test_curves_against_the_clean_image_are_saved_beside_the_others(microscope, tmp_path):
    run("pinv", "identity", data="microscope", metrics=["error", "psnr"], out=tmp_path, images="0:3")
    (path,) = tmp_path.glob("*/curves.npz")
    curves = np.load(path)
    assert curves["row"].shape == curves["row_clean"].shape == (3, 5)
    assert np.abs(curves["row"]).max() < 1e-6 < np.abs(curves["row_clean"]).max()


@pytest.mark.parametrize("clean", ["none", "some"])
def test_without_all_clean_images_there_are_no_clean_columns(microscope, clean):
    (record,) = run("pinv", "ctf", data=f"microscope:{clean},made=false", metrics=["psnr"], images="0:4")
    assert list(record.values) == ["psnr"]
    assert "origin" not in record.problem


def test_the_hash_covers_everything_that_can_change_the_results(microscope):
    def hashed(source, operator="ctf"):
        return grid.plan(grid.Request(["pinv"], [operator], data=[source]), installed()).cells[0].hash

    specs = ["microscope", "microscope:table=none", "microscope:shift=10", "microscope:gain=2", "microscope:none"]
    assert len({hashed(source, "identity") for source in specs}) == len(specs)
    assert hashed("microscope:made=false") == hashed("microscope")
    composed = [hashed("microscope", text) for text in ("ctf", "sumpool:4@ctf", "sumpool:4,count=8@ctf:b_factor=30")]
    assert len(set(composed)) == 3


@pytest.mark.parametrize(
    ("data", "operator", "metric", "expected"),
    [
        ("microscope:table=none", "ctf", "psnr", "have no CTF"),
        ("microscope:table=none", "sumpool:4@ctf", "psnr", "have no CTF"),
        ("microscope", "ctf@sumpool:4", "psnr", "gives 4 images per image"),
        ("microscope:table=short", "identity", "psnr", "has 5 rows for 8 images"),
        ("microscope:cut", "identity", "psnr", "the clean image 0 of taken"),
        ("microscope", "identity", ["psnr", "clash"], "have a column 'psnr_clean'"),
    ],
)
def test_incompatible_images_and_operators_are_refused_before_any_work(microscope, data, operator, metric, expected):
    with pytest.raises(CryobenchError, match=expected) as raised:
        run("pinv", operator, data=data, metrics=metric)
    assert "\n" not in str(raised.value)


def test_a_solver_that_modifies_the_ctf_is_detected(microscope):
    sharper, pinv = run(["sharper", "pinv"], "ctf", data="microscope", floor=False, metrics=["psnr"])
    assert "changed the operator" in sharper.reason
    assert pinv.values == run("pinv", "ctf", data="microscope", metrics=["psnr"])[0].values


def test_reuse_and_leaderboard_of_composed_operators(microscope, tmp_path):
    options = {"data": "microscope", "out": tmp_path, "metrics": ["psnr"]}
    first = run("dct", "sumpool:4,count=8@ctf", **options)
    again = run("dct", "sumpool:4,count=8@ctf", **options)
    assert [r.environment["created"] for r in again] == [r.environment["created"] for r in first]
    assert {r.operator for r in first} == {"sumpool:4,count=8@ctf"}
    assert first[0].compression == 2.0
    assert len(again.to_pandas()) == 2
