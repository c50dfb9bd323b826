"""A ranked table of records.

The columns are those of the published CSV. Renderings also use the index: `group` (the number of the row's
comparison), `floor` and `ceiling` (whether the row is one of these references), `dtype` and `hash`; and `frame.attrs`:
`by`, and `columns`, the name, direction and unit of each metric.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cryobench.errors import ParameterError
from cryobench.leaderboard.cells import HIGH, LOW, MEAN, cells, metric_names, numbers, texts
from cryobench.leaderboard.groups import comparisons
from cryobench.leaderboard.ranking import pareto, standings
from cryobench.record import COSTS, LEADING, TRAILING, Record
from cryobench.registry import did_you_mean

INDEX = ["group", "floor", "ceiling", "dtype", "hash"]
DTYPES = {
    **dict.fromkeys(("rank", "seed", "n_images", "images_needed"), "Int64"),
    **dict.fromkeys(("tied", "pareto_seconds", "pareto_nfe"), "boolean"),
    **dict.fromkeys(("solver", "operator", "noise", "data", "status", "reason", "untested", "beats_floor"), "str"),
    **dict.fromkeys(("letters", "unmeasured", "overlap", "within", "device", "hardware", "version"), "str"),
}


DEFAULT_BY = "psnr"
"""The column that ranks where none is given, if the records have it."""


def leaderboard(records: Sequence[Record] | pa.Table, *, by: str | None = None) -> pd.DataFrame:
    """One row per record (or row of their `cells`), ranked by `by` among the rows of a comparison (see `groups`).

    Columns: those of `LEADING`; for each metric NAME its mean NAME over images with the ends NAME_lo and NAME_hi of
    the 95% bootstrap interval (missing for one image); those of `TRAILING`. A mean is missing if an image has no value.
    Comparisons are in order of first appearance, the best row first; the ceiling, rows without a value of `by`, skipped
    and failed rows come last and have no rank. For ranks and tests see `ranking.standings`. pareto_seconds, pareto_nfe:
    whether no other row is as good in both `by` and that cost, and better in one. seconds_per_image: s.
    peak_memory_mib: MiB. nfe, operator_calls: per image. compression: N / rank(A). unmeasured: reasons for missing
    metrics, as JSON. overlap: see `leakage.overlap`. within: the evaluated region. hardware: of the timings. If two
    data sets have the same label, it becomes label#1a2b.

    Without `by` rows are ranked by `DEFAULT_BY`, or where nothing has it, by the first metric with a direction. Raises
    `ParameterError` if nothing can be ranked by `by`, or a metric has the name of another column.
    """
    table = cells(records) if isinstance(records, Sequence) else records
    metrics = _metric_columns(table)
    by = measured_by(by, [name for name, column in metrics.items() if column["direction"] != "none"])
    names = _column_names(list(metrics))
    higher = _higher_is_better(by, table, metrics)
    groups, labels = comparisons(table)
    scores = _scores(table, by)
    standing = standings(table, groups, scores, by, higher=higher)
    columns = _cell_columns(table, metrics) | standing
    columns["data"] = np.array(labels, dtype=object)[groups]
    qualities = scores if by not in COSTS else np.full(len(scores), np.nan)
    for name, cost in (("pareto_seconds", "seconds_per_image"), ("pareto_nfe", "nfe")):
        columns[name] = pareto(groups, qualities, numbers(table, cost), higher=higher)
    order = _order(table, groups, standing["rank"], -scores if higher else scores)
    references = [table[name].to_pandas() for name in ("floor", "ceiling")]
    index = [groups, *references, _text(table, "dtype"), _text(table, "hash")]
    rows = range(table.num_rows)
    frame = (
        pd.DataFrame(
            {name: pd.Series(columns.get(name, np.nan), rows).astype(DTYPES.get(name, "float64")) for name in names}
        )
        .set_index(pd.MultiIndex.from_arrays(index, names=INDEX))
        .iloc[order]
    )
    frame.attrs |= {"by": by, "columns": list(metrics.values())}
    return frame


def measured_by(by: str | None, rankable: Sequence[str]) -> str:
    """The column to rank by: the given one, else `DEFAULT_BY`, or the first of `rankable` where that is not in it."""
    if by is not None:
        return by
    return rankable[0] if rankable and DEFAULT_BY not in rankable else DEFAULT_BY


def _stated(table: pa.Table) -> list[dict[str, str]]:
    """The distinct descriptions of metric columns in the records, in order of first appearance."""
    columns = [column for text in texts(table, "columns")[1] for column in json.loads(text)]
    return list({json.dumps(column, sort_keys=True): column for column in columns}.values())


def _metric_columns(table: pa.Table) -> dict[str, dict[str, str]]:
    """The metrics of all records by name, in order of first appearance. A metric without a description has no
    direction."""
    found: dict[str, dict[str, str]] = {}
    for column in [*_stated(table), *({"name": name} for name in metric_names(table))]:
        found.setdefault(column["name"], {"direction": "none", "unit": "", **column})
    return found


def _column_names(metrics: Sequence[str]) -> list[str]:
    names = [*LEADING, *(name + end for name in metrics for end in ("", "_lo", "_hi")), *TRAILING]
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"two leaderboard columns would be named {name!r}; rename the metric column")
    return names


def _higher_is_better(by: str, table: pa.Table, metrics: Mapping[str, Mapping[str, str]]) -> bool:
    if by in COSTS:
        return False
    stated = {column.get("direction", "none") for column in _stated(table) if column["name"] == by}
    if len(stated) > 1:
        raise ParameterError(f"cannot rank by {by!r}: its direction differs between records; rank them separately")
    if stated and stated <= {"higher", "lower"}:
        return stated == {"higher"}
    if not metrics:  # nothing was measured: only reasons are shown
        return True
    rankable = [name for name, column in metrics.items() if column["direction"] != "none"]
    what = "it states no direction" if by in metrics else "no record has it"
    raise ParameterError(f"cannot rank by {by!r}: {what}; {did_you_mean(by, {*rankable, *COSTS})}")


def _scores(table: pa.Table, by: str) -> np.ndarray:
    """The score of each row; NaN for a row without rank."""
    compared = (_text(table, "status") == "ok").to_numpy() & ~table["ceiling"].to_numpy()
    return np.where(compared, numbers(table, by if by in COSTS else MEAN + by), np.nan)


def _cell_columns(table: pa.Table, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that do not depend on other records."""
    columns: dict[str, Any] = {name: numbers(table, name) for name in ("compression", *COSTS)}
    columns |= {
        name: _text(table, name) for name, kind in DTYPES.items() if name in table.column_names and kind == "str"
    }
    n_images = numbers(table, "n_images")
    columns["unmeasured"] = columns["unmeasured"].replace("{}", "")
    columns |= {"seed": table["seed"].to_pandas(), "n_images": np.where(n_images == 0, np.nan, n_images)}
    for name in metrics:
        columns |= {name + end: numbers(table, part + name) for end, part in (("", MEAN), ("_lo", LOW), ("_hi", HIGH))}
    return columns


def _order(table: pa.Table, groups: np.ndarray, rank: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """By comparison: ranked rows, the ceiling, unranked rows, skipped rows, failed rows."""
    status = _text(table, "status").map({"ok": 2, "skipped": 3, "failed": 4}).to_numpy()
    status = np.where((status == 2) & table["ceiling"].to_numpy(), 1, status)
    standing = np.where(np.isnan(rank), status, 0)
    return np.lexsort((np.nan_to_num(cost), np.nan_to_num(rank), standing, groups))


def _text(table: pa.Table, name: str) -> pd.Series:
    return table[name].cast(pa.string()).to_pandas()
