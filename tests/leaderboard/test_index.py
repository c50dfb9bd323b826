"""The index of a results folder equals the run folders, and only changed folders are read again."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from board_records import MSE, PSNR, absent, record

from cryobench.errors import ResultsError
from cryobench.leaderboard import index
from cryobench.leaderboard.cells import StoredRecords, cells
from cryobench.leaderboard.index import INDEX, read_cells, run_folder_finder
from cryobench.leaderboard.table import leaderboard
from cryobench.record import Record
from cryobench.results.store import Results, read_record


def numbered(number: int, **changes) -> Record:
    created = {"created": f"2026-01-01T00:00:{number:02d}", "device": "cpu", "version": "0.1.0"}
    return record(
        f"s{number}", (20.0 + number, 22.0), **({"hash": f"{number:064d}"[::-1], "environment": created} | changes)
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four cells: one with other metrics, one with infinite and missing numbers, one skipped."""
    store = Results(tmp_path / "runs")
    store.write(numbered(0))
    store.write(numbered(1, columns=[PSNR, MSE], values={"psnr": [math.inf, 1.0], "mse": [0.0, math.nan]}))
    store.write(numbered(2, operator="fourier:0.5", compression=math.inf, resolved={"solver": "x"}))
    skip = absent("skipped", "s3", hash=f"{3:064d}"[::-1], images=["a"])
    store.write(skip)
    return store.root


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the run folders that are read."""
    names: list[str] = []

    def reading(folder: Path) -> Record:
        names.append(folder.name)
        return read_record(folder)

    monkeypatch.setattr(index, "read_record", reading)
    return names


def ignore(message: str) -> None:
    raise AssertionError(f"nothing should be said, and this was: {message}")


def read(root: Path) -> list[Record]:
    return list(StoredRecords(read_cells([root], ignore)))


def slim(one: Record) -> Record:
    """A record without the fields that the index omits, as text, because NaN is not equal to itself."""
    values = {name: list(map(repr, numbers)) for name, numbers in one.values.items()}
    return Record(**(vars(one) | {"values": values, "resolved": {}, "solver_info": {}}))


def test_the_index_equals_the_run_folders(runs):
    expected = [slim(one) for one in Results(runs).read_all(ignore)]
    for _ in range(2):  # made, then found
        found = list(map(slim, read(runs)))
        assert sorted(found, key=lambda one: one.hash) == sorted(expected, key=lambda one: one.hash)
        assert (runs / INDEX).exists()


def test_leaderboards_from_the_index_equal_those_from_records(runs):
    records = Results(runs).read_all(ignore)
    read_cells([runs], ignore)
    frame = leaderboard(read_cells([runs], ignore))
    order = ["operator", "solver"]
    direct = leaderboard(records)
    pd.testing.assert_frame_equal(
        frame.sort_values(order).reset_index(drop=True), direct.sort_values(order).reset_index(drop=True)
    )


def test_only_new_and_changed_folders_are_read(runs, reads):
    read(runs)
    assert len(reads) == 4
    reads.clear()
    read(runs)
    assert reads == []
    Results(runs).write(numbered(5))
    changed = next(runs.glob("*s0*"))
    fields = json.loads((changed / "record.json").read_text())
    (changed / "record.json").write_text(json.dumps(fields | {"noise": "gaussian:0.1"}))
    vanished = next(runs.glob("*s2*"))
    shutil.rmtree(vanished)
    found = {one.solver: one.noise for one in read(runs)}
    assert found == {"s0": "gaussian:0.1", "s1": "none", "s3": "none", "s5": "none"}
    assert sorted(name[11:13] for name in reads) == ["s0", "s5"]
    reads.clear()
    read(runs)
    assert reads == []


def test_a_change_of_equal_size_is_detected_by_its_time(runs):
    read(runs)
    table = next(runs.glob("*s0*")) / "metrics.csv"
    stat = table.stat()
    with table.open(newline="") as file:
        text = file.read()
    table.write_bytes(text.replace("20.0", "29.0").encode())
    os.utime(table, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert table.stat().st_size == stat.st_size
    assert next(one for one in read(runs) if one.solver == "s0").values["psnr"][0] == 29.0


def test_damaged_and_foreign_folders_are_reported_each_time_and_read_once(runs, reads):
    (runs / "foreign").mkdir()
    (runs / "notes.txt").write_text("mine")
    damaged = next(runs.glob("*s0*"))
    (damaged / "metrics.csv").write_text("image,psnr\n0,high\n")
    for time in range(3):
        said: list[str] = []
        found = read_cells([runs], said.append)
        assert found.num_rows == 3
        assert len(said) == 2
        assert any(f"skipped {runs / 'foreign'}: not a run folder" in message for message in said)
        assert any(f"skipped {damaged}: damaged run folder" in message for message in said)
        assert reads.count(damaged.name) == 1, time


@pytest.mark.parametrize(
    "foreign",
    [
        {"solver": "\ud800"},
        {"seed": 2**70},
        {"seed": "zero"},
        {"peak_memory_mib": "much"},
        {"columns": [{"title": "psnr"}]},
        {"columns": [PSNR | {"direction": "up"}]},
        {"problem": {"trained_on": ["here"]}},
    ],
)
def test_an_invalid_record_is_reported_and_the_others_are_read(runs, foreign):
    """Records of other software or of another version: valid JSON with fields that a leaderboard cannot use."""
    path = next(runs.glob("*s1*")) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | foreign))
    said: list[str] = []
    table = read_cells([runs], said.append)
    assert [one.solver for one in StoredRecords(table)] == ["s0", "s2", "s3"]
    assert len(said) == 1
    assert said[0].startswith(f"skipped {path.parent}: damaged run folder: ")
    assert len(leaderboard(table)) == 3


def test_a_folder_whose_name_is_not_valid_text(runs):
    try:
        next(runs.glob("*s1*")).rename(os.fsdecode(os.fsencode(runs) + b"/2026-\xff"))
    except OSError:
        pytest.skip("this file system has no such names")
    for _ in range(2):
        assert len(read(runs)) == 4


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def older(path: Path) -> None:
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata({b"cryobench": b"0 0.0.1"}), path)


@pytest.mark.parametrize("spoil", [broken, older, lambda path: path.write_text("not parquet"), Path.unlink])
def test_an_unusable_index_is_rebuilt(runs, reads, spoil):
    expected = list(map(slim, read(runs)))
    spoil(runs / INDEX)
    reads.clear()
    assert list(map(slim, read(runs))) == expected
    assert len(reads) == 4
    reads.clear()
    read(runs)
    assert reads == []


def test_a_read_only_results_folder_can_be_read(runs, monkeypatch):
    expected = list(map(slim, read(runs)))
    (runs / INDEX).unlink()

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "whole_file", refused)  # the user who runs the tests may be root
    assert list(map(slim, read(runs))) == expected
    assert not (runs / INDEX).exists()
    monkeypatch.setattr(index, "LONG", 1)
    said: list[str] = []
    read_cells([runs], said.append)
    assert said == [
        f"indexing 4 run folders of {runs}; later calls use the index",
        f"the index of {runs} cannot be written: Permission denied",
    ]


def read_often(root: Path) -> int:
    return min(read_cells([root], ignore).num_rows for _ in range(5))


def test_two_processes_can_update_the_index_at_once(runs):
    for number in range(10, 40):
        Results(runs).write(numbered(number))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        started = [pool.apply_async(read_often, (runs,)) for _ in range(2)]
        assert [one.get(timeout=300) for one in started] == [34, 34]
    assert len(read(runs)) == 34
    assert [path.name for path in runs.iterdir() if path.name.startswith(".")] == [INDEX]


def test_many_folders_are_read_in_chunks(runs, monkeypatch):
    expected = list(map(slim, read(runs)))
    (runs / INDEX).unlink()
    monkeypatch.setattr(index, "CHUNK", 3)
    assert list(map(slim, read(runs))) == expected


def test_several_folders_and_single_cells(runs, tmp_path):
    other = Results(tmp_path / "other")
    other.write(numbered(0, noise="gaussian:0.1"))  # the same cell: the later folder counts
    single = other.write(numbered(7))
    found = read_cells([runs, other.root], ignore)
    assert {one.solver: one.noise for one in StoredRecords(found)}["s0"] == "gaussian:0.1"
    assert found.num_rows == 5
    find = run_folder_finder(found)
    folders = {one.hash: find(one.hash) for one in StoredRecords(found)}
    assert {folder and folder.parent for folder in folders.values()} == {runs, other.root}
    assert all(folder and read_record(folder).hash == hash for hash, folder in folders.items())
    assert find("no such hash") is None
    assert [one.solver for one in read(single)] == ["s7"]
    assert not (single / INDEX).exists()


def test_oldest_first(runs):
    Results(runs).write(numbered(4, environment={"created": "2025-01-01"}))
    assert [one.solver for one in read(runs)] == ["s4", "s0", "s1", "s2", "s3"]


def test_the_index_is_not_a_run_folder(runs):
    read(runs)
    assert len(Results(runs).read_all(ignore)) == 4
    assert Results(runs).find(f"{1:064d}"[::-1]) is not None


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ResultsError, match="no results folder"):
        read_cells([tmp_path / "none"], ignore)
    assert read_cells([tmp_path], ignore).num_rows == 0
    assert leaderboard(read_cells([tmp_path], ignore)).empty


def test_stored_records_can_be_iterated_over_repeatedly():
    records = [numbered(number) for number in range(5)]
    stored = StoredRecords(cells(records))
    assert list(stored) == list(stored) == records
