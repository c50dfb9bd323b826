"""Records as an Arrow table of the columns that a leaderboard uses, one row per record.

Plain fields of a record are columns of the same name. Nested fields are JSON texts; equal texts are stored once. A
metric NAME has `values:NAME`, one number per image, and `mean:NAME`, `lo:NAME` and `hi:NAME`, the mean and its 95%
interval, which are stored because they are costly and depend only on the record. The interval is that of the bootstrap,
or binomial where the column says so (`Column.interval`) and all values are from 0 to 1. A metric of all images together
has `mean:NAME` alone. Solver diagnostics and resolved parameters are omitted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from cryobench.leaderboard.leakage import overlap
from cryobench.leaderboard.statistics.bootstrap import Interval, bootstrap_intervals, mean
from cryobench.numerics.binomial import binomial_interval
from cryobench.record import Record
from cryobench.text import counted

TEXT = pa.dictionary(pa.int32(), pa.string())
NUMBERS = pa.list_(pa.float64())
PLAIN = {
    "hash": pa.string(),
    **dict.fromkeys(("status", "reason", "solver", "operator", "noise", "data"), TEXT),
    "seed": pa.int64(),
    **dict.fromkeys(("floor", "ceiling"), pa.bool_()),
    **dict.fromkeys(("compression", "peak_memory_mib"), pa.float64()),
}
LEFT_OUT = ("resolved", "solver_info", "values")
NESTED = [field.name for field in fields(Record) if field.name not in (*PLAIN, *LEFT_OUT)]
OWN_COLUMNS = ("created", "hash_without_code")
"""Fields of `environment` that differ between cells."""
DERIVED = {
    **dict.fromkeys(OWN_COLUMNS, pa.string()),
    "n_images": pa.int64(),
    **dict.fromkeys(("digest", "within", "dtype", "overlap", "device", "hardware", "version"), TEXT),
    **dict.fromkeys(("seconds_per_image", "nfe", "operator_calls"), pa.float64()),
}
DIRECTIONS = ("higher", "lower", "none")
VALUES, MEAN, LOW, HIGH = "values:", "mean:", "lo:", "hi:"


def cells(records: Sequence[Record]) -> pa.Table:
    """The table of records, in their order. Raises various errors for a record whose fields have wrong types."""
    for column in (column for record in records for column in record.columns):
        if not isinstance(column.get("name"), str) or column.get("direction", "none") not in DIRECTIONS:
            raise ValueError(f"invalid metric column {column}: name or direction")
    columns = {name: pa.array([getattr(record, name) for record in records], kind) for name, kind in PLAIN.items()}
    for name in NESTED:
        nested = [getattr(record, name) for record in records]
        if name == "environment":  # without fields that have their own column, cells of a solver and run share the text
            nested = [{key: value for key, value in own.items() if key not in OWN_COLUMNS} for own in nested]
        columns[name] = pa.array([json.dumps(own, ensure_ascii=False) for own in nested], TEXT)
    derived = [_derived(record) for record in records]
    columns |= {name: pa.array([row[name] for row in derived], kind) for name, kind in DERIVED.items()}
    return pa.table(columns | _metrics(records))


def metric_names(table: pa.Table) -> list[str]:
    """The metrics for which any record has numbers."""
    return [name.removeprefix(MEAN) for name in table.column_names if name.startswith(MEAN)]


def texts(table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """A text column without missing values as codes [rows] into its distinct texts, in order of first appearance."""
    encoded = table[name].cast(pa.string()).dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # no rows, no chunk
        return np.empty(0, dtype=np.int64), []
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers as float64 [rows]; missing values are NaN."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return table[name].cast(pa.float64()).to_numpy()


def per_image(table: pa.Table, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """All values per image of a metric in one array, and the offsets [rows + 1] of the rows; missing values are NaN."""
    if VALUES + metric not in table.column_names:
        return np.empty(0), np.zeros(table.num_rows + 1, dtype=np.int64)
    lists = pa.concat_arrays(table[VALUES + metric].chunks) if table.num_rows else pa.array([], NUMBERS)
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class StoredRecords:
    """Iterates over the records of an Arrow table of cells, without the fields that the table omits.

    Records share equal nested fields, which must not be modified.
    """

    def __init__(self, table: pa.Table):
        self._table = table

    def __iter__(self) -> Iterator[Record]:
        table = self._table
        plain = {name: table[name].cast(kind.value_type if kind == TEXT else kind).to_pylist()
                 for name, kind in PLAIN.items()}  # fmt: skip
        created = table["created"].to_pylist()
        nested = {name: texts(table, name) for name in NESTED}
        metrics = {
            name: (*per_image(table, name), table[VALUES + name].is_valid().to_numpy())
            for name in metric_names(table)
            if VALUES + name in table.column_names
        }
        loads = cache(json.loads)
        for row in range(table.num_rows):
            parts = {name: loads(distinct[codes[row]]) for name, (codes, distinct) in nested.items()}
            if created[row] is not None:
                parts["environment"] = parts["environment"] | {"created": created[row]}
            values = {
                name: numbers[offsets[row] : offsets[row + 1]].tolist()
                for name, (numbers, offsets, present) in metrics.items()
                if present[row]
            }
            yield Record(**{name: column[row] for name, column in plain.items()}, **parts, values=values)


def _derived(record: Record) -> dict[str, Any]:
    environment, problem = record.environment, record.problem
    texts = {name: environment.get(name) for name in (*OWN_COLUMNS, "device", "version")}
    return {
        **{name: None if value is None else str(value) for name, value in texts.items()},
        "n_images": len(record.images),
        "digest": str(problem.get("data_digest") or ""),
        "within": str(problem.get("within") or "image"),
        "dtype": str(environment.get("dtype", "float32")),
        "overlap": overlap(record),
        "hardware": hardware_of(record),
        "seconds_per_image": record.timing.get("seconds_per_image"),
        "nfe": record.counters.get("nfe"),
        "operator_calls": record.counters.get("operator_calls"),
    }


def hardware_of(record: Record) -> str | None:
    """The hardware of timings: the GPU, or the processor and the number of threads; None if unknown."""
    kind, _, model = str(record.environment.get("device", "")).partition(" ")
    if model:
        return model
    known = record.environment.get("hardware")
    if kind != "cpu" or not isinstance(known, dict) or "processor" not in known:
        return None
    threads = known.get("torch_threads")
    return str(known["processor"]) + (f", {counted(threads, 'thread')}" if threads else "")


def _metrics(records: Sequence[Record]) -> dict[str, pa.Array]:
    """The columns of every metric. Only cells that ran have means: a failed one may have values for some images."""
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for record in records for name in record.values):
        series = [record.values.get(name) for record in records]
        ran = [values if record.status == "ok" else None for values, record in zip(series, records, strict=True)]
        binomial = {place for place, record in enumerate(records) if _is_binomial(record, name)}
        intervals = bootstrap_intervals([() if place in binomial else values or () for place, values in enumerate(ran)])
        for place in binomial:
            intervals[place] = _proportion(ran[place])
        columns |= {
            VALUES + name: pa.array(series, NUMBERS),
            MEAN + name: pa.array([None if values is None else mean(values) for values in ran], pa.float64()),
            LOW + name: pa.array([low for low, _ in intervals], pa.float64()),
            HIGH + name: pa.array([high for _, high in intervals], pa.float64()),
        }
    for name in dict.fromkeys(name for record in records for name in record.together):
        series = [record.together.get(name) if record.status == "ok" else None for record in records]
        columns |= {MEAN + name: pa.array(series, pa.float64())}
    return columns


def _is_binomial(record: Record, name: str) -> bool:
    """Whether the mean of a metric of a record is a proportion: its column says so, and no value is outside 0 to 1."""
    stated = any(column["name"] == name and column.get("interval") == "binomial" for column in record.columns)
    return stated and not any(value is not None and (value < 0 or value > 1) for value in record.values.get(name, ()))


def _proportion(values: Sequence[float | None] | None) -> Interval:
    """The binomial interval of the mean of values from 0 to 1; (None, None) without a mean."""
    found = mean(values or ())
    if values is None or found is None:
        return None, None
    return binomial_interval(found * len(values), len(values))
