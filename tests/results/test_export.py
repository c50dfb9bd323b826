"""Export of records as tables, in columns of cryobench and of benchopt."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cryobench.errors import ParameterError, ResultsError
from cryobench.record import Record
from cryobench.results import export
from cryobench.results.store import Results
from cryobench.results.tables import to_csv

COLUMNS = [
    {"name": "psnr", "direction": "higher", "unit": "dB"},
    {"name": "mse", "direction": "lower", "unit": ""},
    {"name": "phase", "direction": "none", "unit": "rad"},
]


def record(solver="dct:0.1", operator="sumpool:4", seed=0, images="abc", **fields) -> Record:
    """A cell with random values that depend on its solver, operator and seed."""
    drawn = np.random.default_rng([*map(ord, solver + operator), seed, fields.pop("draw", 0)])
    values = {name: drawn.uniform(1, 30, len(images)).tolist() for name in ("psnr", "mse", "phase")}
    stated = {
        "hash": format(int(drawn.integers(2**62)), "064x")[::-1], "status": "ok", "reason": "", "solver": solver,
        "operator": operator, "noise": "none", "data": "demo", "seed": seed, "images": list(images),
        "compression": 2.5, "values": values, "columns": COLUMNS, "resolved": {"solver": solver},
        "timing": {"seconds_per_image": drawn.uniform()}, "counters": {"nfe": 3.5, "operator_calls": 1.5},
        "environment": {
            "created": "2026-01-02T03:04:05", "device": "cuda:0 Some GPU", "dtype": "float32", "version": "0.1.0",
            "versions": {"numpy": "2.4", "scipy": "1.17"},
            "hardware": {"system": "Linux x86_64", "processor": "CPU", "cores": 8, "memory_mib": 16000,
                         "torch_threads": 4},
        },
    }  # fmt: skip
    return Record(**stated | fields)


def several() -> list[Record]:
    """Two problems, two seeds, three solvers. The order and number of images differ, and a metric is missing once."""
    cells = [
        record(solver, operator, seed)
        for operator in ("sumpool:4", "fourier:0.5")
        for seed in (0, 1)
        for solver in ("pinv", "dct:0.1", "tv:lam=0.1,iterations=9")
    ]
    cells[1].images.reverse()
    cells[2].solver_info = {"iterations": [1.0, 2.0, 3.0]}
    cells[4] = record("dct:0.1", "sumpool:4", 1, images="abcd")
    del cells[5].values["mse"]
    return cells


def by_hand(records: list[Record]) -> dict[tuple[str, str], dict[str, float]]:
    """The metrics of each image of each cell."""
    return {
        (cell.hash, image): {name: values[place] for name, values in cell.values.items()}
        for cell in records
        for place, image in enumerate(cell.images)
    }


def test_the_table_has_one_row_per_image_with_its_values():
    records = several()
    table, expected = export.images_table(records), by_hand(records)
    assert len(table) == len(expected) == sum(len(cell.images) for cell in records)
    cells = {cell.hash: cell for cell in records}
    for row in table.to_dict("records"):
        cell, metrics = cells[row["hash"]], expected.pop((row["hash"], row["image"]))
        for name in ("psnr", "mse", "phase"):
            assert row[name] == metrics.get(name) or (name not in metrics and math.isnan(row[name]))
        assert [row[name] for name in ("solver", "operator", "seed")] == [cell.solver, cell.operator, cell.seed]
        assert row["seconds_per_image"] == cell.timing["seconds_per_image"]
        assert math.isnan(row["solver:iterations"]) == ("iterations" not in cell.solver_info)
    assert not expected


def test_tables_round_trip_through_csv_and_parquet(tmp_path):
    table = export.images_table([*several(), record(data='particles, "new".star', values={"psnr": [1.0, math.inf, 3]})])
    read = pd.read_csv(io.StringIO(to_csv(table)), dtype={"hash": str})
    pd.testing.assert_frame_equal(read, table, check_exact=True)
    export.write_parquet(table, tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), table)


def test_only_finished_cells_are_read_and_only_once(tmp_path):
    cells = several()
    for place, cell in enumerate([*cells, record("dmplug", status="failed", reason="no memory", values={})]):
        Results(tmp_path / "ab"[place % 2]).write(cell)
    Results(tmp_path / "b").write(cells[0])
    (tmp_path / "a" / "notes").mkdir()
    messages: list[str] = []
    found = export.read_finished([tmp_path / "a", tmp_path / "b"], messages.append)
    assert sorted(cell.hash for cell in found) == sorted(cell.hash for cell in cells)
    assert [line.split("/")[-1] for line in messages] == [
        "notes: not a run folder: record.json is missing",
        "failed or skipped, not exported: 1 of 13 cells",
    ]
    with pytest.raises(ResultsError, match="no finished cells in"):
        export.read_finished([next((tmp_path / "a").glob("*dmplug*"))], messages.append)


# ---------------------------------------------------------------------------------------------------------- benchopt

KEY = ["dataset_name", "objective_name", "solver_name", "idx_rep", "stop_val"]
"""The columns by which benchopt distinguishes rows when it merges files."""


def test_a_repetition_is_the_same_image_of_the_same_seed_for_every_solver():
    records = several()
    table = export.benchopt_table(records)
    assert not table.duplicated(KEY).any()
    assert table["dataset_name"].nunique() == 2
    cells = {(cell.operator, cell.seed, cell.solver): cell for cell in records}
    meant: dict[tuple[str, int], tuple[int, str]] = {}
    for operator, seed, solver, repetition, psnr in zip(
        *(table[name] for name in ("p_dataset_operator", "base_seed", "solver_name", "idx_rep", "objective_psnr")),
        strict=True,
    ):
        cell = cells[operator, seed, solver]
        image = cell.images[cell.values["psnr"].index(psnr)]
        assert meant.setdefault((operator, repetition), (seed, image)) == (seed, image)
    for operator in ("sumpool:4", "fourier:0.5"):
        images = {repetition: image for (own, repetition), image in meant.items() if own == operator}
        assert sorted(images) == list(range(len(images)))
        assert len(set(images.values())) == len(images)


@pytest.mark.parametrize(("by", "sign"), [("psnr", -1), ("mse", 1)])
def test_the_objective_is_minimised_and_metrics_are_unchanged(by, sign):
    records = several()
    table, plain = export.benchopt_table(records, by), export.images_table(records)
    np.testing.assert_array_equal(table["objective_value"], sign * plain[by])
    for name in ("psnr", "mse", "phase"):
        np.testing.assert_array_equal(table["objective_" + name], plain[name])
    assert set(table["obj_description"]) == {f"objective_value is {by}" + (", negated" if sign < 0 else "")}


def test_cells_with_equal_names_are_distinguished_by_hash():
    twins = [record(draw=draw) for draw in (0, 1)]
    table = export.benchopt_table([*twins, record("pinv"), record(seed=1)])
    assert set(table["solver_name"]) == {"pinv", "dct:0.1", *(f"dct:0.1 #{cell.hash[:8]}" for cell in twins)}
    assert not table.duplicated(KEY).any()
    apart = export.benchopt_table([record(draw=1, problem={"within": "circle"}), record()])
    assert set(apart["objective_name"]) == {"cryobench", "cryobench within circle"}
    assert set(apart["solver_name"]) == {"dct:0.1"}


def test_names_have_no_square_brackets():
    table = export.benchopt_table([record(data="stack[1].mrcs")])
    assert set(table["dataset_name"]) == {"stack(1).mrcs | sumpool:4 | noise none"}


def test_parameters_have_separate_columns():
    resolved = {"dct:0.1": "dct:0.1,cut=none,steps=50", "elsewhere:7": "elsewhere:7"}
    table = export.benchopt_table([record(solver, resolved={"solver": full}) for solver, full in resolved.items()])
    table = table.drop_duplicates("solver_name").set_index("solver_name")
    assert table.loc["dct:0.1", ["p_solver_lam", "p_solver_steps"]].tolist() == [0.1, 50]
    assert table.loc["dct:0.1", "p_solver_cut"] == "none"
    assert table.loc["elsewhere:7", "p_solver_value"] == 7
    assert table["p_solver_steps"].isna().tolist() == [False, True]


def test_the_file_has_the_columns_and_metadata_of_benchopt(tmp_path):
    path = tmp_path / "results.parquet"
    bare = record("pinv", environment={}, timing={})
    export.write_benchopt(export.benchopt_table([*several(), bare]), path)
    assert json.loads(pq.read_metadata(path).metadata[export.BENCHOPT_METADATA]) == {}
    read = pd.read_parquet(path)
    stored = {"objective_name", "obj_description", "solver_name", "solver_description", "dataset_name", "idx_rep",
              "sampling_strategy", "base_seed", "stop_val", "time", "objective_value", "run_date"}  # fmt: skip
    system = {"env-OMP_NUM_THREADS": "4", "platform": "Linux", "platform-release": "", "system-cpus": 8,
              "platform-architecture": "x86_64", "system-processor": "CPU", "system-ram (GB)": 16,
              "version-cuda": "Some GPU", "version-numpy": "2.4", "version-scipy": "1.17"}  # fmt: skip
    assert stored | set(system) <= set(read.columns)
    assert read.loc[0, list(system)].to_dict() == system
    assert all(pd.api.types.is_numeric_dtype(read[name]) for name in read if name.startswith("objective_v"))


def test_benchopt_plots_the_file(tmp_path):
    plots = pytest.importorskip("benchopt.plotting.default_plots")
    records = several()
    path = tmp_path / "results.parquet"
    export.write_benchopt(export.benchopt_table(records), path)
    frame = pd.read_parquet(path)
    dataset = "sumpool:4"
    expected = {
        solver: [psnr for cell in records if (cell.solver, cell.operator) == (solver, dataset)
                 for psnr in cell.values["psnr"]]
        for solver in ("pinv", "dct:0.1", "tv:lam=0.1,iterations=9")
    }  # fmt: skip
    chosen = {"dataset": f"demo | {dataset} | noise none", "objective": "cryobench"}
    column = {"objective_column": "objective_psnr"}
    boxes = plots.BoxPlot.get_instance().plot(frame, **chosen, **column, X_axis="Solver", Y_axis="Objective Metric")
    assert {box["label"]: sorted(box["y"][0]) for box in boxes} == {name: sorted(own) for name, own in expected.items()}
    curves = plots.ObjectiveCurvePlot.get_instance().plot(frame, **chosen, **column, X_axis="Time")
    assert {curve["label"]: curve["y"] for curve in curves} == {
        name: [pytest.approx(np.median(own))] for name, own in expected.items()
    }
    rows = plots.TablePlot.get_instance().plot(frame, **chosen)
    assert [row[0] for row in rows] == sorted(expected)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("psrn", r"--by 'psrn' is not a metric of these records; did you mean 'psnr'\? there are mse, psnr"),
        ("phase", r"--by 'phase' does not state one direction; there are mse, psnr"),
    ],
)
def test_an_objective_needs_a_direction(by, expected):
    with pytest.raises(ParameterError, match=expected):
        export.benchopt_table(several(), by)


@pytest.mark.parametrize(("table", "name"), [(export.images_table, "seed"), (export.benchopt_table, "name")])
def test_a_metric_with_the_name_of_another_column_is_refused(table, name):
    cell = record()
    cell.values[name] = [1.0, 2.0, 3.0]
    with pytest.raises(ParameterError, match=f"two columns of the table would be named '.*{name}'"):
        table([cell])


def test_files_are_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_text("before")

    def half(table, file, **options):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(export.pq, "write_table", half)
    with pytest.raises(ResultsError, match=r"a\.parquet: no space left; free space"):
        export.write_parquet(export.images_table(several()), path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.parquet", "before")]
