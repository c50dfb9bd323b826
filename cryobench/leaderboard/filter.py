"""Which rows, columns and order of a leaderboard are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from cryobench.errors import ParameterError
from cryobench.leaderboard.cells import texts
from cryobench.leaderboard.groups import comparisons
from cryobench.leaderboard.table import metric_columns
from cryobench.registry import did_you_mean

GroupBy = Literal["operator", "noise", "data", "compression"]
FILTERS = {"solver": "--solvers", "operator": "--operator", "noise": "--noise", "data": "--data"}
"""What rows can be chosen by, and the option that does."""


def choose(table: pa.Table, patterns: Mapping[str, Sequence[str]]) -> pa.Table:
    """The cells whose solver, operator, noise and data fit one of the patterns each; floor and ceiling always stay
    beside a solver that does.

    A pattern is a glob for the whole spec or for its name before the colon: `dct`, `tv:*`, `sumpool:?`.
    Raises `ParameterError` for patterns that nothing fits.
    """
    for name in ("operator", "noise", "data"):
        table = table.filter(pa.array(_fits(table, name, patterns.get(name, ()))))
    chosen = _fits(table, "solver", patterns.get("solver", ()))
    if chosen.all():
        return table
    groups, _ = comparisons(table)
    references = table["floor"].to_numpy() | table["ceiling"].to_numpy()
    return table.filter(pa.array(chosen | (references & np.isin(groups, groups[chosen]))))


def _fits(table: pa.Table, name: str, patterns: Sequence[str]) -> np.ndarray:
    codes, distinct = texts(table, name)
    if not patterns:
        return np.ones(table.num_rows, dtype=bool)
    fits = np.array([_fit(text, patterns) for text in distinct], dtype=bool)
    if not fits.any():
        some = ", ".join(distinct[:5]) + (" ..." if len(distinct) > 5 else "")
        raise ParameterError(f"{FILTERS[name]} {','.join(patterns)} fits nothing here; there are: {some}")
    return fits[codes]


def _fit(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(part, pattern) for pattern in patterns for part in (text, text.partition(":")[0]))


def with_metrics(frame: pd.DataFrame, wanted: Sequence[str]) -> pd.DataFrame:
    """The leaderboard with the metric columns wanted and the one that ranks. A name stands for the column of this name,
    a glob for all that fit, and the name of a metric for its columns NAME_...

    Raises `ParameterError` for what no column fits.
    """
    metrics = metric_columns(frame)
    names = [column["name"] for column in metrics]
    kept = {frame.attrs["by"]}
    for want in wanted:
        found = [name for name in names if fnmatchcase(name, want)]
        found = found or [name for name in names if name.startswith(f"{want}_")]
        if not found:
            raise ParameterError(f"--metrics {want!r} is no column here; {did_you_mean(want, names)}")
        kept.update(found)
    shown = frame.drop(columns=[f"{name}{end}" for name in names if name not in kept for end in ("", "_lo", "_hi")])
    shown.attrs = frame.attrs | {"columns": [column for column in metrics if column["name"] in kept]}
    return shown


def grouped(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """The leaderboard with the comparisons of one operator, noise or data together, in order of first appearance, or
    in order of compression. Renderings put them under a heading, with a summary each.

    Raises `ParameterError` for anything else.
    """
    if by not in get_args(GroupBy):
        raise ParameterError(f"--group-by {by!r}: {did_you_mean(by, get_args(GroupBy))}")
    first = frame.groupby(level="group", sort=False)[by].first()
    keys = first.round(2) if by == "compression" else pd.Series(pd.factorize(first)[0], index=first.index)
    order = np.argsort(keys.reindex(frame.index.get_level_values("group")).to_numpy(float), kind="stable")
    found = frame.iloc[order]
    found.attrs = frame.attrs | {"group_by": by}
    return found
