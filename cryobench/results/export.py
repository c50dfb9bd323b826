"""Records as tables for other programs: one row per image, in columns of cryobench or of benchopt.

benchopt's columns are those of 1.8 and later (earlier versions use data_name for dataset_name), as its sources define
them: what a run stores (`_generate_runs.py`, `runner.py`, `utils/sys_info.py`) and what plots read
(`plotting/default_plots.py`, `plotting/generate_html.py`). docs/views.md maps them to those of a record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cryobench.errors import CryobenchError, ParameterError, ResultsError
from cryobench.files import output_file
from cryobench.record import COSTS, Record
from cryobench.registry import did_you_mean, installed
from cryobench.results.store import Results
from cryobench.spec import first_field, parse

BENCHOPT_METADATA = b"_meta_json"
"""Key of benchopt's plot options in the metadata of a Parquet file. It must exist; the options may be empty."""

LOWER_OR_HIGHER = ({"lower"}, {"higher"})


def read_finished(roots: Sequence[Path], report: Callable[[str], None]) -> list[Record]:
    """The records of results folders, or of single run folders, that have results; for equal hashes, the last one.

    Other folders, and the number of cells without results, are reported. Raises `ResultsError` if there are no results.
    """
    records = [record for root in roots for record in Results(root).read_all(report)]
    finished = {record.hash: record for record in records if record.status == "ok"}
    if not finished:
        raise ResultsError(f"no finished cells in {', '.join(map(str, roots))}; `cryobench run` creates them")
    others = {record.hash for record in records} - finished.keys()
    if others:
        report(f"failed or skipped, not exported: {len(others)} of {len(others) + len(finished)} cells")
    return list(finished.values())


def images_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per image of records that ran: its cell, its metrics and the values from the solver (`solver:NAME`).

    Values of a whole cell (seconds, calls, memory) are repeated in each of its rows.
    """
    cells = [
        {name: getattr(record, name) for name in ("hash", "solver", "operator", "noise", "data", "seed")}
        | {name: getattr(record, name) for name in ("floor", "ceiling", "compression")}
        | {"within": record.problem.get("within", "image")}
        for record in records
    ]
    costs = [
        {"seconds_per_image": record.timing.get("seconds_per_image"), "peak_memory_mib": record.peak_memory_mib}
        | {name: record.counters.get(name) for name in ("nfe", "operator_calls")}
        | {name: record.environment.get(name) for name in ("dtype", "device", "version", "created")}
        for record in records
    ]
    reported = [{f"solver:{name}": values for name, values in record.solver_info.items()} for record in records]
    parts = [
        _repeated(cells, records),
        pd.DataFrame({"image": _images(records)}),
        _joined(list(map(_metrics, records)), records),
        _joined(reported, records),
        _repeated(costs, records),
    ]
    return _distinct(pd.concat(parts, axis=1)).astype(dict.fromkeys([*COSTS, "compression"], "float64"))


def benchopt_table(records: Sequence[Record], by: str = "psnr") -> pd.DataFrame:
    """One row per image of records that ran, in benchopt's columns; benchopt sees an image as a repetition.

    by: the metric that becomes `objective_value`, negated where higher is better.
    Raises `ParameterError` for a metric that no record has or that has no direction.
    """
    sign = _sign(by, records)
    names = pd.DataFrame([_names(record) for record in records])
    clash = names.assign(seed=[record.seed for record in records]).duplicated(keep=False)
    for place in names.index[clash]:  # cells that differ only in precision, versions or weights
        names.loc[place, "solver_name"] += f" #{records[place].hash[:8]}"
    described = [
        {
            "obj_description": f"objective_value is {by}" + (", negated" if sign < 0 else ""),
            "solver_description": str(record.resolved.get("solver", record.solver)),
            "dataset_description": str(record.resolved.get("operator", record.operator)),
            "base_seed": record.seed,
            "sampling_strategy": "Run_once",
            "stop_val": 1,
            "time": record.timing.get("seconds_per_image"),
        }
        | _parameters(record)
        for record in records
    ]
    frame = pd.concat([names, _typed(pd.DataFrame(described)), pd.DataFrame(map(_system, records))], axis=1)
    frame = frame.astype({"time": "float64"}).loc[_places(records)].reset_index(drop=True)
    frame["idx_rep"] = _repetitions(frame, records)
    metrics = _joined(list(map(_metrics, records)), records)
    frame["objective_value"] = sign * metrics[by]
    return _distinct(pd.concat([frame, metrics.add_prefix("objective_")], axis=1))


def write_parquet(table: pd.DataFrame, path: Path, metadata: Mapping[bytes, bytes] | None = None) -> None:
    """Write a table as Parquet, atomically. metadata: of the file, added to that of pandas. Raises `ResultsError`."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata((arrow.schema.metadata or {}) | dict(metadata or {}))
    with output_file(path) as temporary, temporary.open("wb") as file:  # given a path, it would remove it on failure
        pq.write_table(arrow, file, compression="zstd")


def write_benchopt(table: pd.DataFrame, path: Path) -> None:
    """Write a table of benchopt's columns as Parquet, atomically."""
    write_parquet(table, path, {BENCHOPT_METADATA: json.dumps({}).encode()})


# ------------------------------------------------------------------------------------------------- cells to images


def _places(records: Sequence[Record]) -> list[int]:
    """For each image, the index of its record."""
    return [place for place, record in enumerate(records) for _ in record.images]


def _images(records: Sequence[Record]) -> list[str]:
    return list(chain.from_iterable(record.images for record in records))


def _repeated(rows: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> pd.DataFrame:
    """Values of a record, repeated for each of its images."""
    return pd.DataFrame(rows).loc[_places(records)].reset_index(drop=True)


def _joined(columns: Sequence[Mapping[str, list[float]]], records: Sequence[Record]) -> pd.DataFrame:
    """Values of images, by name, in first-seen order; NaN if a record does not have them."""
    missing = [[float("nan")] * len(record.images) for record in records]
    names = dict.fromkeys(chain.from_iterable(columns))
    series = {
        name: list(chain.from_iterable(own.get(name, gap) for own, gap in zip(columns, missing, strict=True)))
        for name in names
    }
    return pd.DataFrame(series, index=range(len(_places(records))), dtype="float64")


def _metrics(record: Record) -> dict[str, list[float]]:
    """The metrics of each image; those of all images together are repeated for each."""
    return record.values | {name: [value] * len(record.images) for name, value in record.together.items()}


def _distinct(table: pd.DataFrame) -> pd.DataFrame:
    """The same table. Raises `ParameterError` if two columns have the same name."""
    for name in table.columns[table.columns.duplicated()]:
        raise ParameterError(f"two columns of the table would be named {name!r}; rename the metric column")
    return table


# -------------------------------------------------------------------------------------------------------- benchopt


def _sign(by: str, records: Sequence[Record]) -> int:
    """The factor of a metric, 1 or -1, with which lower is better."""
    stated: dict[str, set[str]] = {name: set() for record in records for name in _metrics(record)}
    for column in chain.from_iterable(record.columns for record in records):
        if column["name"] in stated:
            stated[column["name"]].add(column.get("direction", "none"))
    signs = {name: 1 if found == {"lower"} else -1 for name, found in stated.items() if found in LOWER_OR_HIGHER}
    if by not in signs:
        what = "does not state one direction" if by in stated else "is not a metric of these records"
        raise ParameterError(f"--by {by!r} {what}; {did_you_mean(by, signs)}")
    return signs[by]


def _names(record: Record) -> dict[str, str]:
    """The names by which benchopt distinguishes curves. It would parse square brackets in a name as parameters."""
    within = record.problem.get("within", "image")
    names = {
        "objective_name": "cryobench" if within == "image" else f"cryobench within {within}",
        "dataset_name": f"{record.data} | {record.operator} | noise {record.noise}",
        "solver_name": record.solver,
    }
    return {kind: name.replace("[", "(").replace("]", ")") for kind, name in names.items()}


def _repetitions(frame: pd.DataFrame, records: Sequence[Record]) -> list[int]:
    """The number of each image in its data set, over seeds; the same for all solvers."""
    numbers: dict[str, dict[tuple[int, str], int]] = {}
    found = []
    for dataset, seed, image in zip(frame["dataset_name"], frame["base_seed"], _images(records), strict=True):
        known = numbers.setdefault(dataset, {})
        found.append(known.setdefault((seed, image), len(known)))
    return found


def _parameters(record: Record) -> dict[str, Any]:
    """The parameters of the solver, the problem and the metrics, with benchopt's prefixes."""
    try:
        spec = parse(str(record.resolved.get("solver", record.solver)))
        own = dict(spec.params) if spec.value is None else {_first_field(spec.name): spec.value, **dict(spec.params)}
    except CryobenchError:  # a reference row, or a spec written by another version
        own = {}
    problem = {"data": record.data, "operator": record.operator, "noise": record.noise}
    return (
        {f"p_solver_{name}": value for name, value in own.items()}
        | {f"p_dataset_{name}": value for name, value in problem.items()}
        | {"p_dataset_compression": record.compression, "p_obj_within": record.problem.get("within", "image")}
    )


@cache
def _first_field(solver: str) -> str:
    """The parameter that the bare value of a solver's spec sets; 'value' if its package is not installed."""
    try:
        field = first_field(installed().get("solvers", solver))
    except CryobenchError:
        field = None
    return "value" if field is None else field.name


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with parameter columns converted to numbers if all entries are numbers."""
    for name in table.columns[table.columns.str.startswith("p_")]:
        numbers = pd.Series(pd.to_numeric(table[name], errors="coerce"))
        if numbers.count() == table[name].count():
            table[name] = numbers
    return table


def _system(record: Record) -> dict[str, Any]:
    """Date and hardware of a record; empty if unknown, because benchopt requires all of these columns or none."""
    environment = record.environment
    hardware, versions = environment.get("hardware") or {}, environment.get("versions") or {}
    system, _, machine = str(hardware.get("system", "")).partition(" ")
    memory, threads = hardware.get("memory_mib"), hardware.get("torch_threads")
    return {
        "run_date": str(environment.get("created", "")),
        "env-OMP_NUM_THREADS": "" if threads is None else str(threads),
        "platform": system,
        "platform-architecture": machine,
        "platform-release": "",
        "platform-version": "",
        "system-cpus": hardware.get("cores"),
        "system-processor": str(hardware.get("processor", "")),
        "system-ram (GB)": None if memory is None else round(memory / 1024),
        "version-cuda": str(environment.get("device", "")).partition(" ")[2],
        "version-numpy": str(versions.get("numpy", "")),
        "version-scipy": str(versions.get("scipy", "")),
        "benchmark-git-tag": str(environment.get("version", "")),
    }
