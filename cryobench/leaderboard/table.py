"""Records into one ranked table.

The table's columns are those of the published CSV. What only the renderer needs is beside them: the index holds
`group` (the number of the comparison a row belongs to), `floor` (whether the row is the pinv floor), `ceiling` (whether
it is the ceiling, which is no solver) and `dtype`, and `frame.attrs` holds `by` and the metrics' `columns`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from cryobench.errors import ParameterError
from cryobench.leaderboard.overlap import overlap
from cryobench.leaderboard.stats import bootstrap_intervals, mean
from cryobench.record import COSTS, LEADING, TRAILING
from cryobench.registry import did_you_mean

if TYPE_CHECKING:
    from cryobench.record import Record

INDEX = ["group", "floor", "ceiling", "dtype"]
DTYPES = {
    **dict.fromkeys(("rank", "seed", "n_images"), "Int64"),
    **dict.fromkeys(("compression", *COSTS), "float64"),
    **dict.fromkeys(("solver", "operator", "noise", "data", "status", "reason", "overlap", "device", "version"), "str"),
}

Row = dict[str, Any]


class Comparison(NamedTuple):
    """What two cells must share to be ranked against each other."""

    operator: str
    noise: str
    data: str
    digest: str
    seed: int
    images: tuple[str, ...]
    dtype: str


def leaderboard(records: Sequence[Record], *, by: str = "psnr") -> pd.DataFrame:
    """One row per record, ranked by the mean of `by` among the rows of equal operator, noise, data, seed, images
    and dtype.

    Columns: those of `LEADING`; for each metric NAME its mean NAME over images with the ends NAME_lo and NAME_hi of
    the 95% bootstrap interval (missing for one image); those of `TRAILING`. A mean is missing where an image has no
    value. Comparisons stand in order of first appearance, the best row first; the ceiling, rows without a value of
    `by`, skipped and failed rows come last, without a rank: the ceiling is compared with nobody. Equal means share a
    rank. seconds_per_image in s, peak_memory_mib in MiB, nfe and operator_calls per image, compression N / rank(A),
    overlap as `overlap.overlap` tells it. Two data sets of one label become label#1a2b.

    Raises `ParameterError` where nothing can be ranked by `by`, or a metric takes the name of another column.
    """
    metrics = _metric_columns(records)
    names = _column_names(list(metrics))
    higher = _higher_is_better(by, records, metrics)
    comparisons = _comparisons(records)
    numbers = {comparison: number for number, comparison in enumerate(dict.fromkeys(comparisons))}
    labels = _data_labels(numbers)
    rows = [
        _row(record, intervals) | {"data": labels[comparison]}
        for record, intervals, comparison in zip(records, _intervals(records), comparisons, strict=True)
    ]
    groups = [numbers[comparison] for comparison in comparisons]
    compared = [record.status == "ok" and not record.ceiling for record in records]
    for row, rank in zip(rows, _ranks(rows, groups, compared, by, higher), strict=True):
        row["rank"] = rank
    order = sorted(range(len(rows)), key=lambda place: (groups[place], *_standing(rows[place], records[place])))
    index = [
        (groups[place], bool(records[place].floor), bool(records[place].ceiling), comparisons[place].dtype)
        for place in order
    ]
    frame = pd.DataFrame(
        {name: _column(name, [rows[place].get(name) for place in order]) for name in names},
        index=pd.MultiIndex.from_tuples(index, names=INDEX) if index else _EMPTY_INDEX,
    )
    frame.attrs |= {"by": by, "columns": list(metrics.values())}
    return frame


_EMPTY_INDEX = pd.MultiIndex.from_arrays([[] for _ in INDEX], names=INDEX)


def groups(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each comparison of a leaderboard, in order. Rows may have been taken out; the index must be kept."""
    return [rows for _, rows in frame.groupby(level="group", sort=False)]


def floors(frame: pd.DataFrame) -> list[bool]:
    """For each row of a leaderboard, whether it is the pinv floor."""
    return [bool(floor) for floor in frame.index.get_level_values("floor")]


def ceilings(frame: pd.DataFrame) -> list[bool]:
    """For each row of a leaderboard, whether it is the ceiling, which is no solver."""
    return [bool(ceiling) for ceiling in frame.index.get_level_values("ceiling")]


def metric_columns(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Name, direction and unit of each metric of a leaderboard, in order."""
    return frame.attrs["columns"]


def _metric_columns(records: Iterable[Record]) -> dict[str, dict[str, str]]:
    """The metrics of all records by name, in first-seen order; one whose columns are not stated has no direction."""
    found: dict[str, dict[str, str]] = {}
    for record in records:
        for column in record.columns:
            found.setdefault(column["name"], {"direction": "none", "unit": "", **column})
        for name in record.values:
            found.setdefault(name, {"name": name, "direction": "none", "unit": ""})
    return found


def _column_names(metrics: Sequence[str]) -> list[str]:
    names = [*LEADING, *(name + end for name in metrics for end in ("", "_lo", "_hi")), *TRAILING]
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"two leaderboard columns would be named {name!r}; rename the metric column")
    return names


def _higher_is_better(by: str, records: Iterable[Record], metrics: Mapping[str, Mapping[str, str]]) -> bool:
    if by in COSTS:
        return False
    stated = {column["direction"] for record in records for column in record.columns if column["name"] == by}
    if len(stated) > 1:
        raise ParameterError(f"cannot rank by {by!r}: these records disagree on which way is better; rank them apart")
    if stated and stated <= {"higher", "lower"}:
        return stated == {"higher"}
    if not metrics:  # nothing was measured, so that there is nothing to rank: the reasons are all there is to show
        return True
    rankable = [name for name, column in metrics.items() if column["direction"] != "none"]
    what = "it states no better direction" if by in metrics else "no record has it"
    raise ParameterError(f"cannot rank by {by!r}: {what}; {did_you_mean(by, {*rankable, *COSTS})}")


def _comparisons(records: Sequence[Record]) -> list[Comparison]:
    """The comparison that each record belongs to. Images of equal content are one data set, of the first label seen."""
    labels: dict[str, str] = {}
    comparisons = []
    for record in records:
        digest = str(record.problem.get("data_digest") or "")
        label = labels.setdefault(digest, record.data) if digest else record.data
        images = tuple(sorted(record.images))
        dtype = str(record.environment.get("dtype", "float32"))
        comparisons.append(Comparison(record.operator, record.noise, label, digest, record.seed, images, dtype))
    return comparisons


def _data_labels(comparisons: Iterable[Comparison]) -> dict[Comparison, str]:
    """The data label of each comparison, with the start of the digest where one label names two data sets."""
    comparisons = list(comparisons)
    digests: dict[str, list[str]] = {}
    for comparison in comparisons:
        if comparison.digest and comparison.digest not in digests.setdefault(comparison.data, []):
            digests[comparison.data].append(comparison.digest)
    return {
        comparison: comparison.data + _mark(comparison.digest, digests.get(comparison.data, []))
        for comparison in comparisons
    }


def _mark(digest: str, digests: Sequence[str]) -> str:
    """'' for the only digest of a label, else '#' and its first hexadecimal digits: four, or more until they differ."""
    if not digest or len(digests) < 2:
        return ""
    hexadecimal = [other.rpartition(":")[2] for other in digests]
    length = 4
    while length < max(map(len, hexadecimal)) and len({other[:length] for other in hexadecimal}) < len(hexadecimal):
        length += 1
    return "#" + digest.rpartition(":")[2][:length]


def _intervals(records: Sequence[Record]) -> list[dict[str, tuple[float | None, float | None]]]:
    """For each record the 95% interval of each metric; all in one go, as equal image counts share their resamples."""
    places = [(place, name) for place, record in enumerate(records) for name in record.values]
    found: list[dict[str, tuple[float | None, float | None]]] = [{} for _ in records]
    intervals = bootstrap_intervals([records[place].values[name] for place, name in places])
    for (place, name), interval in zip(places, intervals, strict=True):
        found[place][name] = interval
    return found


def _row(record: Record, intervals: Mapping[str, tuple[float | None, float | None]]) -> Row:
    row: Row = {
        "solver": record.solver,
        "operator": record.operator,
        "noise": record.noise,
        "seed": record.seed,
        "n_images": len(record.images) or None,
        "compression": record.compression,
        "status": record.status,
        "reason": record.reason,
        "seconds_per_image": record.timing.get("seconds_per_image"),
        "nfe": record.counters.get("nfe"),
        "operator_calls": record.counters.get("operator_calls"),
        "peak_memory_mib": record.peak_memory_mib,
        "overlap": overlap(record),
        "device": record.environment.get("device"),
        "version": record.environment.get("version"),
    }
    if record.status == "ok":  # half a cell's numbers are not the cell's
        for name, values in record.values.items():
            lo, hi = intervals[name]
            row |= {name: mean(values), f"{name}_lo": lo, f"{name}_hi": hi}
    return row


def _ranks(
    rows: Sequence[Row], groups: Sequence[int], compared: Sequence[bool], by: str, higher: bool
) -> list[int | None]:
    """One more than the number of better rows of the same group; None for a row that is not compared."""
    sign = -1.0 if higher else 1.0
    scores = [
        sign * row[by] if fit and _is_number(row.get(by)) else None for row, fit in zip(rows, compared, strict=True)
    ]
    fields: dict[int, list[float]] = {}
    for group, score in zip(groups, scores, strict=True):
        if score is not None:
            fields.setdefault(group, []).append(score)
    return [
        None if score is None else 1 + sum(other < score for other in fields[group])
        for group, score in zip(groups, scores, strict=True)
    ]


def _is_number(value: Any) -> bool:
    return value is not None and not math.isnan(value)


def _standing(row: Row, record: Record) -> tuple[int, int]:
    """Sorts ranked rows, then the ceiling, then unranked ones, then skipped, then failed."""
    if row["rank"] is not None:
        return 0, row["rank"]
    if record.ceiling and record.status == "ok":
        return 1, 0
    return {"ok": 2, "skipped": 3, "failed": 4}[record.status], 0


def _column(name: str, values: list[Any]) -> Any:
    """A column's values with its dtype; metrics and their intervals are floats."""
    return pd.array(values, dtype=DTYPES.get(name, "float64"))  # type: ignore[arg-type]
