"""Run folders are written atomically and round-trip."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cryobench.errors import ResultsError
from cryobench.files import check_writable_file, whole_file
from cryobench.record import Record
from cryobench.results.store import Results, content_hash, read_record


def record(**changes) -> Record:
    values = {
        "hash": content_hash({"a": 1}),
        "status": "ok",
        "reason": "",
        "solver": "dct",
        "operator": "sumpool:16,mask=checkerboard",
        "noise": "none",
        "data": "demo",
        "seed": 0,
        "images": ["0", "1"],
        "values": {"psnr": [20.1234567890123456, math.inf], "mse": [0.1, 1e-300]},
        "columns": [{"name": "psnr", "direction": "higher", "unit": "dB"}],
        "solver_info": {"iterations": [3.0, 4.0]},
        "environment": {"created": "2026-01-01T00:00:00"},
        "unavailable": ["animation"],
    }
    return Record(**(values | changes))


def test_a_record_round_trips(tmp_path):
    results = Results(tmp_path / "deep" / "runs")
    results.check_writable()
    folder = results.write(record(), curves={"frc": np.ones((2, 3))})
    assert read_record(folder) == record()
    assert np.load(folder / "curves.npz")["frc"].shape == (2, 3)
    assert folder.name.endswith("-dct-sumpool-16-mask-checkerboard-" + record().hash[:12])
    assert Results(tmp_path / "deep" / "runs").find(record().hash) == folder
    assert results.read_all(report=pytest.fail) == [record()]
    assert Results(folder).read_all(report=pytest.fail) == [record()]


def test_records_without_newer_fields_are_read(tmp_path):
    folder = Results(tmp_path).write(record(unavailable=[]))
    fields = json.loads((folder / "record.json").read_text())
    del fields["ceiling"], fields["unavailable"]
    (folder / "record.json").write_text(json.dumps(fields))
    assert read_record(folder) == record(unavailable=[])


def test_missing_values_round_trip(tmp_path):
    failed = record(status="failed", reason="it broke", values={}, columns=[], solver_info={}, compression=math.inf)
    assert read_record(Results(tmp_path).write(failed)) == failed
    unknown = record(values={"lpips": [math.nan, 0.5]})
    assert math.isnan(read_record(Results(tmp_path).write(unknown)).values["lpips"][0])


def test_the_hash_does_not_depend_on_the_order_of_keys():
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1}) != content_hash({"a": 1, "b": [3]})


def test_a_failed_write_keeps_the_existing_cell(tmp_path):
    results = Results(tmp_path)
    kept = results.write(record())

    def disk_full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ResultsError, match="No space left on device"):
        results.write(record(status="failed"), files={"panel.png": disk_full})
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert read_record(kept).status == "ok"


def test_a_failed_rename_restores_the_earlier_folder(tmp_path, monkeypatch):
    kept = Results(tmp_path).write(record())
    rename = Path.rename

    def refuses(self, target):
        if self.name.startswith(".partial-"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(ResultsError, match="Input/output error"):
        Results(tmp_path).write(record(reason="new"))
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert read_record(kept) == record()


@pytest.mark.parametrize(
    "damage",
    [
        {"images": None},
        {"environment": None},
        {"problem": []},
        {"columns": [1]},
        {"timing": {"seconds_per_image": "soon"}},
        {"status": "done"},
        {"images": ["0", "1", "2"]},
        {"compression": "much"},
        {"unavailable": "animation"},
        {"seed": None},
        {"seed": 2**64},
        {"seed": True},
        {"floor": "yes"},
        {"images": [0, 1]},
        {"peak_memory_mib": "much"},
        {"counters": {"nfe": 10**400}},
        {"counters": {"nfe": -1}},
        {"timing": {"seconds_per_image": True}},
        {"environment": {"created": 1}},
        {"problem": {"within": {}}},
        {"columns": [{"name": "psnr", "direction": "higher", "unit": 3}]},
    ],
    ids=str,
)
def test_json_that_is_not_a_record_is_skipped(tmp_path, damage):
    folder = Results(tmp_path).write(record())
    fields = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(fields | damage))
    reports = []
    assert Results(tmp_path).read_all(reports.append) == []
    assert len(reports) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", bytes(200_000)),
        ("metrics.csv", b""),
        ("metrics.csv", b"image,psnr\n\xff,1\n"),
        ("metrics.csv", b'image,psnr\n"' + b"a" * 200_000 + b'",1\n'),
        ("metrics.csv", b"image,psnr,psnr\n0,1,2\n1,1,2\n"),
        ("record.json", bytes(3000)),
        ("record.json", b"[" * 200_000),
        ("record.json", b'{"seed": ' + b"1" * 10_000 + b"}"),
        ("record.json", b'{"status": "' + b"x" * 100_000 + b'"}'),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:12]),
)
def test_a_damaged_file_is_reported_in_one_short_line(tmp_path, name, content):
    folder = Results(tmp_path).write(record())
    (folder / name).write_bytes(content)
    reports = []
    assert Results(tmp_path).read_all(reports.append) == []
    (report,) = reports
    assert len(report) < 400 + len(str(folder)), report
    assert report.isprintable()


@pytest.mark.parametrize("name", ["record.json", "metrics.csv"])
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, name, monkeypatch):
    folder = Results(tmp_path).write(record())
    monkeypatch.setattr("cryobench.results.store.LARGEST", 10)
    with pytest.raises(ResultsError, match="more than 10"):
        read_record(folder)
    monkeypatch.undo()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ResultsError, match=f"{name} is not a regular file"):
        read_record(folder)


def test_a_results_folder_stays_where_it_was_when_the_working_directory_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Results("runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert results.write(record()).parent == tmp_path / "runs"


def test_writing_follows_links_and_supports_devices(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "table.csv")
    with whole_file(tmp_path / "link.csv") as path:
        path.write_text("content")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "table.csv").read_text() == "content"
    with whole_file(Path(os.devnull)) as path:
        path.write_text("content")
    assert not Path(os.devnull).is_file()


def test_a_second_write_replaces_the_first(tmp_path):
    results = Results(tmp_path)
    results.write(record())
    folder = Results(tmp_path).write(record(solver="dct:0.1"))
    assert [path for path in tmp_path.iterdir()] == [folder]  # noqa: C416
    assert read_record(folder).solver == "dct:0.1"


def test_damaged_and_foreign_folders_are_skipped_with_a_message(tmp_path):
    results = Results(tmp_path)
    good = results.write(record())
    (tmp_path / "holiday-photos").mkdir()
    for name, content in {"cut": '{"hash": "a', "old": json.dumps({"hash": "a", "solver": "x"}), "list": "[]"}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "record.json").write_text(content)
        (folder / "metrics.csv").write_text("image,psnr\n0,1\n")
    (tmp_path / "notes.txt").write_text("hello")
    reports = []
    assert [r.solver for r in Results(tmp_path).read_all(reports.append)] == [read_record(good).solver]
    assert len(reports) == 4
    assert all("\n" not in report for report in reports)
    with pytest.raises(ResultsError, match="no results folder"):
        Results(tmp_path / "nowhere").read_all(print)


def test_whole_file_replaces_on_success_and_leaves_nothing_on_failure(tmp_path):
    target = tmp_path / "table.csv"
    with whole_file(target) as path:
        path.write_text("first")
    with pytest.raises(RuntimeError), whole_file(target) as path:  # noqa: PT012
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_unwritable_paths_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="--out"):
        Results(tmp_path / "file" / "runs").check_writable()
    with pytest.raises(ResultsError, match="does not exist"):
        check_writable_file(tmp_path / "no" / "board.csv")
    with pytest.raises(ResultsError, match="is a folder"):
        check_writable_file(tmp_path)
    check_writable_file(tmp_path / "board.csv")
    assert not (tmp_path / "board.csv").exists()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store import record
from cryobench.results.store import Results

store = Results(Path("runs"))
for number in range(60):
    store.write(record(reason=f"{sys.argv[2]} {number}"))
"""


def test_concurrent_writes_of_one_cell_leave_it_complete(tmp_path):
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent)]
    writers = [subprocess.Popen([*command, str(number)], cwd=tmp_path) for number in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_record(folder).reason.endswith(" 59")


def test_cells_of_other_processes_are_found_after_the_cache_expires(tmp_path, monkeypatch):
    here, there = Results(tmp_path), Results(tmp_path)
    assert here.find(record().hash) is None
    folder = there.write(record())
    assert here.find(record().hash) is None  # the cached listing is still valid
    monkeypatch.setattr("cryobench.results.store.LISTED_FOR", 0.0)
    assert here.find(record().hash) == folder
