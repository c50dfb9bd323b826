"""A leaderboard for other programs: CSV and JSON, a row each, with all columns.

Written column by column: a table may have millions of entries, and most texts in it are the same few.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd


def to_csv(frame: pd.DataFrame) -> str:
    """Every row and column, floats with all their digits (the shortest text that reads back equal), missing empty."""
    columns = [_written(column, _quoted, missing="", infinite=repr) for _, column in frame.items()]
    return "\n".join([",".join(map(_quoted, frame.columns)), *map(",".join, zip(*columns, strict=True)), ""])


def to_json(frame: pd.DataFrame) -> str:
    """A list with an object for each row; missing is null and an infinite number, which JSON has not, "inf"."""
    columns = [_written(column, _encoded, missing="null", infinite='"{}"'.format) for _, column in frame.items()]
    fields = [f"{_encoded(name)}: " for name in frame.columns]
    template = "{" + ", ".join(field.replace("%", "%%") + "%s" for field in fields) + "}"
    lines = ",\n".join(map(template.__mod__, zip(*columns, strict=True)))
    return f"[\n{lines}\n]\n" if lines else "[]\n"


def _written(
    column: pd.Series, text: Callable[[Any], str], *, missing: str, infinite: Callable[[float], str]
) -> list[str]:
    """The entries of a column as texts: floats with all their digits, anything else by `text`."""
    if column.dtype == "float64":
        numbers = column.to_numpy()
        texts = json.dumps(numbers.tolist())[1:-1].split(", ") if len(numbers) else []  # `repr` of each, in one call
        for place in np.flatnonzero(~np.isfinite(numbers)).tolist():
            texts[place] = missing if math.isnan(numbers[place]) else infinite(float(numbers[place]))
        return texts
    codes, distinct = pd.factorize(column)
    texts = [*map(text, distinct.tolist()), missing]  # what is missing has the code -1
    return np.array(texts, dtype=object)[codes].tolist()


def _quoted(value: Any) -> str:
    """An entry of a CSV file, in quotes where it holds what would end it."""
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


_encoded = json.JSONEncoder(ensure_ascii=False).encode
