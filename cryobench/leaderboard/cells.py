"""Records as columns: what a leaderboard needs of each, one row a record, in an Arrow table.

Plain fields of a record are columns of their own name; nested ones are JSON texts, each kept once however many rows
share it. Of a metric NAME there are `values:NAME`, one number an image, and `mean:NAME`, `lo:NAME` and `hi:NAME`, the
mean and its 95% bootstrap interval, which depend on the record alone and are costly. What the solver told and the
resolved parameters are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, overload

import numpy as np
import pyarrow as pa

from cryobench.leaderboard.leakage import overlap
from cryobench.leaderboard.statistics.bootstrap import bootstrap_intervals, mean
from cryobench.record import Record

TEXT = pa.dictionary(pa.int32(), pa.string())
PLAIN = {
    "hash": pa.string(),
    **dict.fromkeys(("status", "reason", "solver", "operator", "noise", "data"), TEXT),
    "seed": pa.int64(),
    **dict.fromkeys(("floor", "ceiling"), pa.bool_()),
    **dict.fromkeys(("compression", "peak_memory_mib"), pa.float64()),
}
LEFT_OUT = ("resolved", "solver_info", "values")
NESTED = [field.name for field in fields(Record) if field.name not in (*PLAIN, *LEFT_OUT)]
DERIVED = {
    "created": pa.string(),
    "n_images": pa.int64(),
    **dict.fromkeys(("digest", "within", "dtype", "overlap", "device", "hardware", "version"), TEXT),
    **dict.fromkeys(("seconds_per_image", "nfe", "operator_calls"), pa.float64()),
}
DIRECTIONS = ("higher", "lower", "none")
VALUES, MEAN, LOW, HIGH = "values:", "mean:", "lo:", "hi:"


def cells(records: Sequence[Record]) -> pa.Table:
    """The columns of records, in their order. Raises whatever a record does whose fields are not of the right kind."""
    for column in (column for record in records for column in record.columns):
        if not isinstance(column.get("name"), str) or column.get("direction", "none") not in DIRECTIONS:
            raise ValueError(f"{column} is no metric column: name or direction are not what they should be")
    columns = {name: _array([getattr(record, name) for record in records], kind) for name, kind in PLAIN.items()}
    columns |= {name: _array([_json(record, name) for record in records], TEXT) for name in NESTED}
    derived = [_derived(record) for record in records]
    columns |= {name: _array([row[name] for row in derived], kind) for name, kind in DERIVED.items()}
    return pa.table(columns | _metrics(records))


def metric_names(table: pa.Table) -> list[str]:
    """The metrics that any record has values of."""
    return [name.removeprefix(VALUES) for name in table.column_names if name.startswith(VALUES)]


def texts(table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """A text column without gaps as codes [rows] into its distinct texts, in order of first appearance."""
    encoded = table[name].cast(pa.string()).dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # no rows, no chunk
        return np.empty(0, dtype=np.int64), []
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers as float64 [rows], missing as NaN."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return table[name].cast(pa.float64()).to_numpy()


def per_image(table: pa.Table, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """All values of a metric in one array, and the offsets [rows + 1] at which each row's begin; missing as NaN."""
    if VALUES + metric not in table.column_names:
        return np.empty(0), np.zeros(table.num_rows + 1, dtype=np.int64)
    lists = pa.concat_arrays(table[VALUES + metric].chunks) if table.num_rows else _array([], _LIST)
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class StoredRecords(Sequence[Record]):
    """The records of an Arrow table of cells, each made when it is asked for, without what the table left out.

    Nested fields are shared by the records that have them in common: they are to be read only.
    """

    def __init__(self, table: pa.Table):
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> StoredRecords: ...
    def __getitem__(self, place: int | slice) -> Record | StoredRecords:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return StoredRecords(self._table.take(list(range(start, stop, step))))
        start = range(len(self))[place]
        return next(iter(StoredRecords(self._table.slice(start, 1))))

    def __iter__(self) -> Iterator[Record]:
        plain = {name: _plain(self._table, name) for name in (*PLAIN, "created")}
        created = plain.pop("created")
        nested = {name: texts(self._table, name) for name in NESTED}
        metrics = [
            (name, *per_image(self._table, name), _present(self._table, name)) for name in metric_names(self._table)
        ]
        loads = cache(json.loads)
        for place in range(len(self)):
            parts = {name: loads(distinct[codes[place]]) for name, (codes, distinct) in nested.items()}
            if created[place] is not None:
                parts["environment"] = parts["environment"] | {"created": created[place]}
            values = {
                name: numbers[offsets[place] : offsets[place + 1]].tolist()
                for name, numbers, offsets, present in metrics
                if present[place]
            }
            yield Record(**{name: column[place] for name, column in plain.items()}, **parts, values=values)


def _plain(table: pa.Table, name: str) -> list[Any]:
    if table.schema.field(name).type != TEXT:
        return table[name].to_pylist()
    codes, distinct = texts(table, name)
    return [distinct[code] for code in codes.tolist()]


def _present(table: pa.Table, metric: str) -> np.ndarray:
    return table[VALUES + metric].is_valid().to_numpy()


_LIST = pa.list_(pa.float64())


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, type=kind)


def _json(record: Record, name: str) -> str:
    nested = getattr(record, name)
    if name == "environment":  # the moment is a column of its own: without it, the text is shared by a whole run
        nested = {key: value for key, value in nested.items() if key != "created"}
    return json.dumps(nested, ensure_ascii=False)


def _derived(record: Record) -> dict[str, Any]:
    environment, problem = record.environment, record.problem
    created = environment.get("created")
    return {
        "created": None if created is None else str(created),
        "n_images": len(record.images),
        "digest": str(problem.get("data_digest") or ""),
        "within": str(problem.get("within") or "image"),
        "dtype": str(environment.get("dtype", "float32")),
        "overlap": overlap(record),
        "device": _text(environment.get("device")),
        "hardware": _hardware(record),
        "version": _text(environment.get("version")),
        "seconds_per_image": record.timing.get("seconds_per_image"),
        "nfe": record.counters.get("nfe"),
        "operator_calls": record.counters.get("operator_calls"),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _hardware(record: Record) -> str | None:
    """What timed a cell: the GPU, or the processor and how many threads it was given. None where neither is told."""
    kind, _, model = str(record.environment.get("device", "")).partition(" ")
    if model:
        return model
    told = record.environment.get("hardware")
    if kind != "cpu" or not isinstance(told, dict) or "processor" not in told:
        return None
    threads = told.get("torch_threads")
    return str(told["processor"]) + (f", {threads} thread{'' if threads == 1 else 's'}" if threads else "")


def _metrics(records: Sequence[Record]) -> dict[str, pa.Array]:
    """The columns of every metric. Half a cell's numbers are not the cell's: only a cell that ran has a mean."""
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for record in records for name in record.values):
        series = [record.values.get(name) for record in records]
        ran = [values if record.status == "ok" else None for values, record in zip(series, records, strict=True)]
        intervals = bootstrap_intervals([values or () for values in ran])
        columns |= {
            VALUES + name: _array(series, _LIST),
            MEAN + name: _array([None if values is None else mean(values) for values in ran], pa.float64()),
            LOW + name: _array([low for low, _ in intervals], pa.float64()),
            HIGH + name: _array([high for _, high in intervals], pa.float64()),
        }
    return columns
