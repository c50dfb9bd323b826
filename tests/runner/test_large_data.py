"""Runs on data sets that do not stay in memory: the results, what is read, and how finished cells are found."""

from __future__ import annotations

import dataclasses
import os

import mrcfile
import numpy as np
import pytest
from networks import pipeline, unet

import cryobench as cb
from cryobench import runner
from cryobench.core.operator import LinearOperator
from cryobench.distributions.mixture import MixtureParameters
from cryobench.files import CACHE_VARIABLE, PARTIAL
from cryobench.hooks import Hooks
from cryobench.plan import dataset, grid
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.runner import Observer, cells, result_name, saving
from cryobench.sources.stacks import FileStack
from cryobench.sweep.driver import SweepObserver, SweepOptions, request_text
from cryobench.sweep.driver import run as sweep
from cryobench.sweep.worker import CellJob, Worker
from cryobench.workers.executors import parse_executor
from cryobench.workers.running import run as run_job

COUNT = 11
SIMULATED = f"simulate:3mht,snr=1,count={COUNT},size=32"
ALL = f"0:{COUNT}"


class Listener(Observer):
    def __init__(self):
        self.warnings, self.reused, self.fractions = [], [], []

    def warn(self, message):
        self.warnings.append(message)

    def cell_progress(self, fraction):
        self.fractions.append(fraction)

    def cell_finished(self, record, *, reused):
        self.reused.append(reused)


@pytest.fixture
def stack(tmp_path):
    path = tmp_path / "noise.npy"
    np.save(path, np.random.default_rng(0).normal(size=(COUNT, 32, 32)).astype(np.float32))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests"


@pytest.fixture
def large(monkeypatch):
    """No data set stays in memory, and chunks have as many images as a batch."""
    monkeypatch.setattr(dataset, "KEPT_BYTES", 0)
    monkeypatch.setattr(cells, "_CHUNK_BYTES", 0)


def execute(out, *, force=False, **options):
    given = {"solvers": ["dct:steps=3"], "operators": ["sumpool:4"], "images": ALL, "batch": 4, "floor": False,
             "metrics": ["psnr"]} | options  # fmt: skip
    listener = Listener()
    plan = grid.plan(grid.Request(**given), installed())
    return list(runner.execute(plan, store=Results(out), force=force, observer=listener)), listener


def comparable(record):
    """A record without its costs and its time."""
    timing, environment = dict.fromkeys(record.timing), record.environment | {"created": ""}
    return dataclasses.replace(record, timing=timing, environment=environment, peak_memory_mib=None)


@pytest.mark.parametrize("scaling", ["minmax", "relion"])
def test_records_and_files_are_those_of_data_in_memory(tmp_path, monkeypatch, scaling):
    request = {
        "solvers": ["wiener"], "operators": ["ctf", "sumpool:4,count=8@ctf"],
        "noises": ["gaussian:rel=0.1"], "data": [SIMULATED], "scaling": scaling, "metrics": ["psnr", "frc"],
        "ceiling": True, "save": ["reconstructions", "panel", "errors", "views", "frc"],
    }  # fmt: skip
    if scaling == "relion":
        request |= {"solvers": ["dct:steps=3"], "noises": ["none"], "operators": ["fourier:0.6@ctf"],
                    "metrics": ["psnr"], "save": ["reconstructions", "frc"]}  # fmt: skip
    kept, _ = execute(tmp_path / "kept", **request)
    monkeypatch.setattr(dataset, "KEPT_BYTES", 0)
    monkeypatch.setattr(cells, "_CHUNK_BYTES", 0)
    large, _ = execute(tmp_path / "large", **request)
    assert kept[0].status == "ok"
    for ours, expected in zip(large, kept, strict=True):
        assert comparable(ours) == comparable(expected)
        here, there = Results(tmp_path / "large").find(ours.hash), Results(tmp_path / "kept").find(ours.hash)
        assert sorted(path.name for path in here.iterdir()) == sorted(path.name for path in there.iterdir())
        for path in here.glob("*.png"):
            assert path.read_bytes() == (there / path.name).read_bytes()
        for path in here.glob("*.mrcs"):
            assert np.array_equal(mrcfile.read(path), mrcfile.read(there / path.name))
        for path in here.glob("*.npz"):
            with np.load(path) as arrays, np.load(there / path.name) as wanted:
                for name in wanted.files:
                    assert np.array_equal(arrays[name], wanted[name], equal_nan=arrays[name].dtype.kind == "f")


def test_the_first_chunk_is_solved_before_the_second_is_read(stack, large, tmp_path, monkeypatch):
    events: list[object] = []
    read = FileStack.read
    monkeypatch.setattr(FileStack, "read", lambda self, index: events.append(index) or read(self, index))
    monkeypatch.setattr(Listener, "cell_progress", lambda self, fraction: events.append("solved"))
    execute(tmp_path / "runs", solvers=["pinv"], data=[str(stack)])
    assert events[:5] == [0, 1, 2, 3, "solved"]
    numbers = [event for event in events if event != "solved"]
    assert numbers == [*range(COUNT), *range(COUNT)]  # once for the results, and once more for the digest
    events.clear()
    _, listener = execute(tmp_path / "runs", solvers=["pinv", "tikhonov"], data=[str(stack)])
    assert listener.reused == [True, False]
    assert [event for event in events if event != "solved"] == [*range(COUNT)]  # the digest is known


def test_progress_and_costs_are_those_of_all_images(stack, large, tmp_path):
    (record,), listener = execute(tmp_path / "runs", data=[str(stack)])
    assert listener.fractions == sorted(listener.fractions)
    assert (listener.fractions[-1], record.timing["batch"]) == (1, 4)
    whole = cb.run("dct:steps=3", "sumpool:4", data=stack, images=ALL, floor=False, metrics=["psnr"], batch=COUNT)[0]
    assert record.counters == pytest.approx(whole.counters)
    assert record.values == whole.values
    assert record.timing["seconds_per_image"] == record.timing["solver_seconds"] / COUNT > 0


def test_a_finished_cell_is_found_without_the_cache(stack, large, tmp_path, cache):
    """The digest is computed before the cell is run if there is a result that may be of it."""
    (first,), _ = execute(tmp_path / "runs", data=[str(stack)])
    for entry in cache.iterdir():
        entry.unlink()
    (again,), listener = execute(tmp_path / "runs", data=[str(stack)])
    assert listener.reused == [True]
    assert (again, listener.fractions) == (first, [])
    os.utime(stack, (1, 1))  # touched: the same again
    assert execute(tmp_path / "runs", data=[str(stack)])[1].reused == [True]
    np.save(stack, np.load(stack) ** 3)  # other images of the same name
    (other,), listener = execute(tmp_path / "runs", data=[str(stack)])
    assert listener.reused == [False]
    assert other.hash != first.hash


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("gaussian_field:spectrum=", "power.txt"),
        ("gaussian_mixture:file=", "mixture.npz"),
        ("gaussian_field:images=file,images.path=", "measured.npy"),
        ("gaussian_mixture:components=2,rank=2,images=file,images.path=", "measured.npy"),
    ],
)
def test_a_cell_on_draws_is_run_again_after_the_file_of_their_distribution_was_edited(source, name, large, tmp_path):
    path = tmp_path / name

    def write(pattern: int) -> None:
        if path.suffix == ".txt":
            np.savetxt(path, [[0.0, 1.0], [0.5, 0.1**pattern], [0.6, 0.01]][: 1 + pattern])
        elif path.suffix == ".npz":
            MixtureParameters(2, 3, pattern=pattern).distribution((32, 32)).write(path)
        else:
            np.save(
                path, np.random.default_rng(pattern).normal(size=(5 + pattern, 32, 32)).cumsum(1).astype(np.float32)
            )

    request = {"data": [f"{source}{path},size=32,number={COUNT}"], "solvers": ["pinv"]}
    write(1)
    (first,), _ = execute(tmp_path / "runs", **request)
    assert first.status == "ok"
    assert execute(tmp_path / "runs", **request)[1].reused == [True]
    write(2)
    (other,), listener = execute(tmp_path / "runs", **request)
    assert listener.reused == [False]
    assert other.hash != first.hash
    assert other.values != first.values


def test_a_cell_that_turns_out_to_be_finished_keeps_the_earlier_result(stack, large, tmp_path):
    """The same images under another name."""
    (first,), _ = execute(tmp_path / "runs", data=[str(stack)])
    copy = stack.with_name("copy.npy")
    copy.write_bytes(stack.read_bytes())
    (found,), listener = execute(tmp_path / "runs", data=[str(copy)])
    assert found.environment["created"] == first.environment["created"]
    assert listener.warnings == [
        "dct:steps=3 on sumpool:4: an earlier result on the same images was found, and is used"
    ]
    assert len(list((tmp_path / "runs").iterdir())) == 1
    third = copy.rename(stack.with_name("third.npy"))
    (forced,), _ = execute(tmp_path / "runs", data=[str(third)], force=True)
    assert (forced.hash, forced.data) == (first.hash, "third.npy")
    assert forced.environment["created"] != first.environment["created"]


def test_files_of_an_earlier_result_are_written_again_for_the_same_images_under_another_name(stack, large, tmp_path):
    execute(tmp_path / "runs", data=[str(stack)], save=["views"])
    copy = stack.with_name("copy.npy")
    copy.write_bytes(stack.read_bytes())
    _, listener = execute(tmp_path / "runs", data=[str(copy)], save=["reconstructions"])
    assert "lacks files that were asked for" in listener.warnings[0]
    (folder,) = (tmp_path / "runs").iterdir()
    assert {"views.npz", "reconstructions.mrcs"} <= {path.name for path in folder.iterdir()}


def test_weights_that_change_during_a_cell_fail_it(tmp_path, monkeypatch):
    stack = tmp_path / "noise.npy"
    np.save(stack, np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32))
    model = pipeline(tmp_path / "model", unet(0))
    given = {"data": [str(stack)], "images": "0:3", "batch": 1, "solvers": [f"hqs:steps=3,prior={model}", "pinv"]}
    first, _ = execute(tmp_path / "runs", **given)
    with monkeypatch.context() as patched:
        patched.setattr(Listener, "cell_progress", lambda self, done: unet(1).save_pretrained(model / "unet"))
        records, _ = execute(tmp_path / "runs", force=True, **given)
    assert [record.status for record in records] == ["failed", "ok"]
    assert records[0].reason.endswith("changed while the cell was run; run again when nothing writes to them")
    assert "\n" not in records[0].reason
    kept = {record.hash: record.status for record in Results(tmp_path / "runs").read_all(pytest.fail)}
    assert kept[first[0].hash] == "ok"
    again, _ = execute(tmp_path / "runs", **given)
    assert again[0].status == "ok"
    assert again[0].hash != first[0].hash


def test_a_file_that_changes_during_a_cell_fails_it_and_no_earlier_result_is_lost(stack, large, tmp_path, monkeypatch):
    (first,), _ = execute(tmp_path / "runs", data=[str(stack)])
    fraction = []

    def touch(self, done):
        fraction.append(done)
        os.utime(stack, ns=(len(fraction), len(fraction)))

    with monkeypatch.context() as patched:
        patched.setattr(Listener, "cell_progress", touch)
        records, _ = execute(tmp_path / "runs", data=[str(stack)], solvers=["pinv", "dct:steps=3"], force=True)
    assert [record.status for record in records] == ["failed", "failed"]
    for record in records:
        assert record.reason.endswith("noise.npy changed while it was used; run again when nothing writes to it")
        assert "\n" not in record.reason
    kept = {record.hash: record for record in Results(tmp_path / "runs").read_all(pytest.fail)}
    assert kept[first.hash].status == "ok"
    again, _ = execute(tmp_path / "runs", data=[str(stack)], solvers=["pinv", "dct:steps=3"])
    assert [record.status for record in again] == ["ok", "ok"]


def test_an_image_that_cannot_be_used_fails_every_cell_and_the_first_chunks_are_not_solved_again(
    stack, large, tmp_path
):
    images = np.load(stack)
    images[9] = 1.0
    np.save(stack, images)
    records, listener = execute(tmp_path / "runs", data=[str(stack)], solvers=["pinv", "dct:steps=3"])
    assert {record.status for record in records} == {"failed"}
    assert all("image 9 of noise.npy is constant" in record.reason for record in records)
    assert max(listener.fractions) < 1
    assert len([fraction for fraction in listener.fractions if fraction == 4 / COUNT]) <= 2  # of the first cell


def test_a_stack_is_written_chunk_by_chunk_and_leaves_nothing_where_the_cell_fails(stack, large, tmp_path, monkeypatch):
    written: list[int] = []
    add = saving.StackWriter.add
    monkeypatch.setattr(saving.StackWriter, "add", lambda self, chunk: written.append(len(chunk)) or add(self, chunk))
    execute(tmp_path / "runs", data=[str(stack)], save=["reconstructions"])
    assert written == [4, 4, 3]
    (path,) = tmp_path.glob("runs/*/reconstructions.mrcs")
    with mrcfile.open(path) as file:
        assert file.is_image_stack()
        data, header = file.data, file.header
        assert float(header.dmean) == pytest.approx(data.mean(dtype=np.float64), abs=1e-6)
        assert float(header.rms) == pytest.approx(data.std(dtype=np.float64), rel=1e-6)
    images = np.load(stack)
    images[9] = np.nan
    np.save(stack, images)
    execute(tmp_path / "failed", data=[str(stack)], save=["reconstructions"])
    names = {path.name for folder in (tmp_path / "failed").iterdir() for path in folder.iterdir()}
    assert names == {"record.json", "metrics.csv"}
    assert not list((tmp_path / "failed").glob(f"{PARTIAL}*"))


def test_a_solver_that_modifies_the_ctf_of_its_images_is_detected(install_plugin, large, tmp_path):
    code = """
from dataclasses import dataclass
from cryobench.core import Reconstruction, Solver

@dataclass(frozen=True)
class Sharper(Solver):
    def solve(self, problem, *, rng, progress=None):
        problem.operator.transfer.mul_(2)
        return Reconstruction(problem.operator.A_adjoint(problem.y))
"""
    install_plugin("cryobench-sharper", {"cryobench.solvers": {"sharper": "sharper:Sharper"}}, sharper=code)
    request = {"data": [SIMULATED], "operators": ["ctf"], "solvers": ["sharper", "pinv"]}
    (sharper, pinv), _ = execute(tmp_path / "runs", **request)
    assert "changed the operator" in sharper.reason
    assert pinv.values == cb.run("pinv", "ctf", data=SIMULATED, images=ALL, metrics=["psnr"])[0].values


def test_operators_of_each_image_are_prepared_for_a_chunk_at_a_time(large, tmp_path, monkeypatch):
    prepared: list[int | None] = []
    prepare = LinearOperator.prepare
    monkeypatch.setattr(LinearOperator, "prepare", lambda self: prepared.append(self.images) or prepare(self))
    execute(tmp_path / "runs", data=[SIMULATED], operators=["ctf"], solvers=["wiener"])
    assert prepared == [4, 4, 3]


def test_no_pixels_of_earlier_chunks_are_kept(stack, large, tmp_path, monkeypatch):
    kept: list[int] = []
    join = cells.joined
    monkeypatch.setattr(
        cells, "joined", lambda parts: kept.extend(p.x.untyped_storage().nbytes() for p in parts) or join(parts)
    )
    execute(tmp_path / "runs", data=[str(stack)])
    assert kept == [0, 0, 0]


def test_a_sweep_finds_its_cells(stack, tmp_path, large):
    request = grid.Request(["pinv", "dct:steps=3"], ["sumpool:4"], data=[str(stack)], images=ALL, floor=False,
                           metrics=["psnr"])  # fmt: skip
    options = SweepOptions(Results(tmp_path / "runs"), "cpu")

    def swept():
        plan = grid.plan(request, installed())
        return list(sweep([plan], options, parse_executor("local"), SweepObserver(), Hooks(pytest.fail), threads=1,
                          hook_options={}))  # fmt: skip

    first = swept()
    assert [record.status for record in first] == ["ok", "ok"]
    assert [record.environment for record in swept()] == [record.environment for record in first]
    whole = cb.run(["pinv", "dct:steps=3"], "sumpool:4", data=stack, images=ALL, floor=False, metrics=["psnr"])
    assert [record.values for record in first] == [record.values for record in whole]


def test_a_worker_finds_a_cell_by_its_key_and_names_it_by_the_images_that_it_reads(stack, tmp_path, large, cache):
    plan = grid.plan(
        grid.Request(["pinv"], ["sumpool:4"], data=[str(stack)], images=ALL, metrics=["psnr"]), installed()
    )
    (cell,) = plan.cells
    job = CellJob(folder=str(tmp_path), request=request_text(plan, "cpu"), key=cell.key, results=str(tmp_path / "runs"))
    record = run_job(job, Worker().run).record
    assert record.status == "ok"
    assert record.hash != cell.key
    assert cell.dataset.recall()  # from the cache, where the worker has left it
    assert record.hash == cell.hash == result_name(cell)
    assert run_job(job, Worker().run).reused
