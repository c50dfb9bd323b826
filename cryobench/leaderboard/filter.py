"""Selection of rows and columns of a leaderboard, and grouping."""

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
from cryobench.leaderboard.render.columns import DIFFERENCE
from cryobench.record import COSTS
from cryobench.registry import did_you_mean

GroupBy = Literal["operator", "noise", "data", "compression"]
FILTERS = {"solver": "--solvers", "operator": "--operator", "noise": "--noise", "data": "--data"}
"""The fields by which rows are selected, and their command-line options."""


def choose(table: pa.Table, patterns: Mapping[str, Sequence[str]]) -> pa.Table:
    """The cells whose solver, operator, noise and data each match one of the patterns, and the floor and ceiling of
    their comparisons.

    A pattern is a glob for the whole spec or for its name before the colon: `dct`, `tv:*`, `sumpool:?`.
    Raises `ParameterError` if no cell matches the patterns of a field.
    """
    for name in ("operator", "noise", "data"):
        table = table.filter(pa.array(_matches(table, name, patterns.get(name, ()))))
    chosen = _matches(table, "solver", patterns.get("solver", ()))
    if chosen.all():
        return table
    groups, _ = comparisons(table)
    references = table["floor"].to_numpy() | table["ceiling"].to_numpy()
    return table.filter(pa.array(chosen | (references & np.isin(groups, groups[chosen]))))


def _matches(table: pa.Table, name: str, patterns: Sequence[str]) -> np.ndarray:
    codes, distinct = texts(table, name)
    if not patterns:
        return np.ones(table.num_rows, dtype=bool)
    parts = [(text, text.partition(":")[0]) for text in distinct]
    matches = [any(fnmatchcase(part, pattern) for pattern in patterns for part in both) for both in parts]
    if not any(matches):
        some = ", ".join(distinct[:5]) + (" ..." if len(distinct) > 5 else "")
        raise ParameterError(f"{FILTERS[name]} {','.join(patterns)} matches nothing; the results have: {some}")
    return np.array(matches)[codes]


def with_metrics(frame: pd.DataFrame, patterns: Sequence[str]) -> pd.DataFrame:
    """The leaderboard with the ranking metric and the given metric columns.

    A pattern is the name of a column, a glob, or the name of a metric, which selects all its columns NAME_... Raises
    `ParameterError` for a pattern without a column.
    """
    metrics = frame.attrs["columns"]
    names = [column["name"] for column in metrics]
    kept = {frame.attrs["by"]}
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern)]
        found = found or [name for name in names if name.startswith(f"{pattern}_")]
        if not found:
            raise ParameterError(
                f"--metrics {pattern!r} is not a column of these results; {did_you_mean(pattern, names)}"
            )
        kept.update(found)
    shown = frame.drop(columns=[f"{name}{end}" for name in names if name not in kept for end in ("", "_lo", "_hi")])
    shown.attrs = frame.attrs | {"columns": [column for column in metrics if column["name"] in kept]}
    return shown


def check_columns(patterns: Sequence[str], metrics: Sequence[str]) -> None:
    """Raise `ParameterError` for a pattern of `--columns` that matches no metric column, cost or difference."""
    names = [*metrics, *COSTS, DIFFERENCE]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ParameterError(
                f"--columns {pattern!r} is not a column of these results; {did_you_mean(pattern, names)}"
            )


def grouped(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """The leaderboard with its comparisons sorted by operator, noise or data, in order of first appearance, or by
    compression. Renderings have a heading and average ranks for each group.

    Raises `ParameterError` for any other `by`.
    """
    if by not in get_args(GroupBy):
        raise ParameterError(f"--group-by {by!r}: {did_you_mean(by, get_args(GroupBy))}")
    first = frame.groupby(level="group", sort=False)[by].first()
    keys = first.round(2) if by == "compression" else pd.Series(pd.factorize(first)[0], index=first.index)
    order = np.argsort(keys.reindex(frame.index.get_level_values("group")).to_numpy(float), kind="stable")
    found = frame.iloc[order]
    found.attrs = frame.attrs | {"group_by": by}
    return found
