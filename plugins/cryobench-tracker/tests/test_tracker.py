"""The tracker stores every run and record, also with concurrent writers, and its errors do not stop a run."""

import json
import math
import multiprocessing
import sqlite3
import threading
import warnings

import pytest
from cryobench_tracker import DEFAULT, VARIABLE, Tracker, row_of

import cryobench as cb
from cryobench.hooks import Hooks
from cryobench.record import Record


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "all.sqlite"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def rows(path, query):
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in database.execute(query)]
    finally:
        database.close()


def record(solver="dct", **fields):
    stated = {"hash": solver, "status": "ok", "reason": "", "operator": "sumpool:4", "noise": "none", "data": "demo",
              "seed": 0, "images": ["a", "b"], "values": {"psnr": [20.0, 23.0]}}  # fmt: skip
    return Record(solver=solver, **stated | fields)


def keep_a_run(name, records=25):
    hooks = Hooks(pytest.fail).register(Tracker(), "tracker")
    hooks.call("cryobench_run_started", cells=records, options={"name": name})
    for number in range(records):
        hooks.call("cryobench_record_added", record=record(f"{name}{number}", values={name: [float(number)]}))
    hooks.call("cryobench_run_finished", records=[])


def test_an_installed_tracker_stores_a_real_run(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = cb.run("tikhonov", "sumpool:16", images="0:2")
    kept = rows(file, "SELECT * FROM records JOIN runs USING (run) ORDER BY records.rowid")
    assert [row["solver"] for row in kept] == ["pinv", "tikhonov"]
    for row, own in zip(kept, records, strict=True):
        assert row["mean_psnr"] == pytest.approx(sum(own.values["psnr"]) / 2)
        assert (row["hash"], row["images"], row["cells"]) == (own.hash, 2, 2)
        assert row["seconds_per_image"] == own.timing["seconds_per_image"]
        assert json.loads(row["options"])["operators"] == ["sumpool:16"]
        assert row["started"] <= row["finished"]


def test_an_interrupted_run_has_no_finish_time(file):
    tracker = Tracker()
    tracker.cryobench_run_started(cells=2, options={})
    tracker.cryobench_record_added(record())
    assert rows(file, "SELECT cells, finished FROM runs") == [{"cells": 2, "finished": None}]
    assert len(rows(file, "SELECT * FROM records")) == 1


def test_means_are_over_all_images_of_a_cell_that_ran():
    values = {"psnr": [20.0, math.inf], "frc": [1.0, math.nan], 'odd "name"': [1.0, 2.0]}
    assert row_of(record(values=values))["mean_psnr"] == math.inf
    assert math.isnan(row_of(record(values=values))["mean_frc"])
    assert "mean_psnr" not in row_of(record(status="failed", reason="no memory"))


def test_columns_are_added_when_metrics_first_occur(file):
    tracker = Tracker()
    tracker.cryobench_run_started(cells=3, options={"out": file})
    for values in ({"psnr": [20.0, math.inf]}, {"frc": [1.0, math.nan]}, {'odd "name"': [1.0, 2.0]}):
        tracker.cryobench_record_added(record(values=values))
    kept = rows(file, 'SELECT mean_psnr, mean_frc, [mean_odd "name"] AS odd FROM records')
    assert [tuple(row.values()) for row in kept] == [(math.inf, None, None), (None, None, None), (None, None, 1.5)]


@pytest.mark.parametrize("kind", [multiprocessing.get_context("spawn").Process, threading.Thread])
def test_several_runs_write_at_once(file, kind):
    workers = [kind(target=keep_a_run, args=(name,)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    kept = rows(file, "SELECT run, hash, options, finished, mean_a, mean_b, mean_c FROM records JOIN runs USING (run)")
    assert len(kept) == 75
    assert len({row["run"] for row in kept}) == 3
    for row in kept:
        name, number = row["hash"][0], float(row["hash"][1:])
        assert json.loads(row["options"]) == {"name": name}
        assert {key: row[f"mean_{key}"] for key in "abc"} == dict.fromkeys("abc") | {name: number}
        assert row["finished"] is not None


def test_a_file_that_cannot_be_written_is_reported_in_one_line_and_loses_no_result(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "all.sqlite"))
    with pytest.warns(UserWarning, match="hook plugin") as caught:
        records = cb.run("tikhonov", "sumpool:16", images="0")
    assert [own.status for own in records] == ["ok", "ok"]
    (line,) = [str(warning.message) for warning in caught if "hook plugin" in str(warning.message)]
    assert line.startswith("hook plugin 'tracker of cryobench-tracker' failed in cryobench_run_started: RuntimeError: ")
    assert "unable to open database file" in line
    assert line.endswith(f"set ${VARIABLE} to another file")


def test_a_file_that_is_damaged_during_a_run_is_reported_once(file):
    messages = []
    hooks = Hooks(messages.append).register(Tracker(), "tracker")
    hooks.call("cryobench_run_started", cells=2, options={})
    file.write_text("not a database, but long enough to be taken for one that is damaged" * 99)
    for _ in range(2):
        hooks.call("cryobench_record_added", record=record())
    hooks.call("cryobench_run_finished", records=[])
    assert len(messages) == 1
    assert "failed in cryobench_record_added: RuntimeError: file is not a database" in messages[0]


def test_the_file_is_in_the_current_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    keep_a_run("a", 1)
    assert [path.name for path in tmp_path.iterdir()] == [DEFAULT]
