"""Which cells a sweep runs, reuses and puts into a shard."""

from __future__ import annotations

import dataclasses
import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from sweeping import Listener, numbers, runs, swept

from cryobench.errors import ExecutorError, ResultsError
from cryobench.plan import grid
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.sweep.driver import request_text, sharded
from cryobench.sweep.utilisation import LABELS, summary
from cryobench.sweep.worker import CellJob, Worker
from cryobench.workers.running import run


def planned(blobs, **options):
    given = {"solvers": ["draws:1"], "operators": ["sumpool:4"], "metrics": ["psnr"], "data": [str(blobs)]} | options
    return grid.plan(grid.Request(**given), installed())


def test_failed_cells_are_run_again_only_on_request(strange, blobs, tmp_path):
    request = {"data": [str(blobs)], "solvers": ["draws:1", "fails", "wiener"]}
    first = swept(tmp_path / "out", **request)
    assert [record.status for record in first] == ["ok", "failed", "skipped"]
    listener = Listener()
    assert numbers(swept(tmp_path / "out", listener=listener, **request)) == numbers(first)
    assert (listener.reused, runs(strange)) == (3, {"draws 1": 1, "fails 0": 1})
    (strange / "fixed").touch()
    again = swept(tmp_path / "out", options={"retry_failed": True}, **request)
    assert {record.solver: record.status for record in again} == {"draws:1": "ok", "fails": "ok", "wiener": "skipped"}
    assert runs(strange) == {"draws 1": 1, "fails 0": 2}
    swept(tmp_path / "out", options={"force": True}, **request)
    assert runs(strange) == {"draws 1": 2, "fails 0": 3}


def test_a_forced_cell_that_fails_keeps_the_earlier_result(strange, blobs, tmp_path):
    (strange / "fixed").touch()
    request = {"data": [str(blobs)], "solvers": ["fails"]}
    (good,) = swept(tmp_path / "out", **request)
    (strange / "fixed").unlink()
    listener = Listener()
    (failed,) = swept(tmp_path / "out", options={"force": True}, listener=listener, **request)
    assert (good.status, failed.status) == ("ok", "failed")
    assert [record.status for record in Results(tmp_path / "out").read_all(pytest.fail)] == ["ok"]
    assert listener.warnings == ["fails on sumpool:4: the earlier result is kept"]


@pytest.mark.parametrize("of", [1, 3, 4, 7, 50])
def test_shards_are_disjoint_and_cover_all_cells(strange, blobs, of):
    plans = [planned(blobs, seeds=(0, 1, 2)), planned(blobs, operators=["sumpool:8", "identity"], solvers=["dct"])]
    whole = [cell.hash for plan in plans for cell in plan.cells]
    parts = [[cell.hash for plan in sharded(plans, k, of) for cell in plan.cells] for k in range(1, of + 1)]
    assert list(chain(*parts)) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_full_disk_ends_the_sweep_and_every_finished_record_is_readable(strange, blobs, tmp_path, full_disk):
    request = {"data": [str(blobs)], "solvers": [f"draws:{number}" for number in range(5)]}
    with full_disk(after=3), pytest.raises(ResultsError, match="No space left on device; finished cells are kept"):
        swept(tmp_path / "out", **request)
    assert len(Results(tmp_path / "out").read_all(pytest.fail)) == 3
    assert len(list((tmp_path / "out").iterdir())) == 3
    listener = Listener()
    assert len(swept(tmp_path / "out", listener=listener, **request)) == 5
    assert listener.reused == 3


def job_of(request: str, key: str, results: Path, folder: str) -> CellJob:
    return CellJob(folder=folder, request=request, key=key, results=str(results))


def test_a_worker_finds_a_cell_that_another_worker_finished(strange, blobs, tmp_path):
    (record,) = swept(tmp_path / "out", data=[str(blobs)], solvers=["draws:1"])
    plan = planned(blobs, floor=False, images="0:2")
    assert [cell.hash for cell in plan.cells] == [record.hash]
    job = job_of(request_text(plan, "cpu"), record.hash, tmp_path / "out", str(tmp_path))
    done = run(job, Worker().run)
    assert (done.reused, numbers([done.record])) == (True, numbers([record]))
    assert runs(strange) == {"draws 1": 1}


def test_relative_paths_start_from_the_folder_of_the_job(strange, blobs, tmp_path, monkeypatch):
    monkeypatch.chdir(blobs.parent)
    plan = planned(blobs.name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    job = job_of(request_text(plan, "cpu"), plan.cells[0].hash, tmp_path / "out", str(blobs.parent))
    assert run(job, Worker().run).record.status == "ok"
    assert not list(elsewhere.iterdir())
    with pytest.raises(ExecutorError, match=r"has no folder /nowhere; workers must share it"):
        run(dataclasses.replace(job, folder="/nowhere"), Worker().run)


def test_a_worker_that_plans_other_cells_for_the_request_is_an_error(strange, blobs, tmp_path):
    job = job_of(request_text(planned(blobs), "cpu"), "0" * 64, tmp_path / "out", str(tmp_path))
    with pytest.raises(ExecutorError, match="plans other cells for the same request: install the same versions"):
        run(job, Worker().run)


def test_a_worker_without_the_data_is_an_error(strange, blobs, tmp_path):
    job = job_of(request_text(planned(blobs), "cpu"), "0" * 64, tmp_path / "out", str(tmp_path))
    blobs.rename(tmp_path / "elsewhere.npy")
    with pytest.raises(ExecutorError, match=r"cannot run the request: .*blobs\.npy"):
        run(job, Worker().run)


def test_a_worker_sets_the_number_of_torch_threads(strange, blobs, tmp_path):
    before = torch.get_num_threads()
    try:
        swept(tmp_path / "out", threads=before + 1, data=[str(blobs)], solvers=["draws:1"])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_request_round_trips_through_json(blobs):
    plan = planned(blobs, solvers=["dct"], seeds=(3, 4), images="1:3", noises=("none", "poisson:5"), batch=2)
    again = grid.plan(grid.Request(**json.loads(request_text(plan, "cpu"))), installed())
    assert [cell.hash for cell in again.cells] == [cell.hash for cell in plan.cells]
    assert again.batch == 2


def test_shares_of_worker_time():
    seconds = dict.fromkeys(LABELS, 1.0) | {"network": 12.0, "idle": 0.001}
    assert summary(seconds).startswith("networks 67%, ")
    assert "idle" not in summary(seconds)  # less than half a percent
    assert summary({}) == summary({"idle": 0.0}) == ""
