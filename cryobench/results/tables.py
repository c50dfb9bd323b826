"""Tables as CSV and JSON text. All CSV of the package is written here.

A spreadsheet evaluates a cell that begins with =, +, - or @. Such a cell, unless it is a number, gets a leading
apostrophe, which `from_cell` removes. Characters that are not printable are escaped (`text.printable`). Tables are
written column by column: they may have millions of entries, and most of the texts in them repeat.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cryobench.text import printable, printable_json

if TYPE_CHECKING:
    import pandas as pd


_FORMULA = re.compile(r"['\s]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
"""The beginning of a formula (the last four are =, +, - and @ in full width), after any number of apostrophes."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.ASCII | re.IGNORECASE)


def as_cell(value: Any) -> str:
    """The text of a CSV cell before quoting."""
    text = printable(str(value))
    return "'" + text if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_cell(text: str) -> str:
    """The text that `as_cell` was given, except for characters that are not printable."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def csv_line(values: Iterable[Any]) -> str:
    """One line of a CSV file. None and NaN are empty."""
    return ",".join(_csv_text(value) if _known(value) else "" for value in values) + "\n"


def to_csv(table: pd.DataFrame) -> str:
    """Every row and column, floats with all their digits (the shortest text that reads back equal), missing empty."""
    columns = [_written(column, _csv_text, missing="", infinite=repr) for _, column in table.items()]
    return csv_line(table.columns) + "".join(line + "\n" for line in map(",".join, zip(*columns, strict=True)))


def to_json(table: pd.DataFrame) -> str:
    """A list with an object for each row. Missing is null; infinity, which JSON does not have, is "inf"."""
    columns = [_written(column, _json_text, missing="null", infinite='"{}"'.format) for _, column in table.items()]
    fields = [f"{_json_text(name)}: " for name in table.columns]
    template = "{" + ", ".join(field.replace("%", "%%") + "%s" for field in fields) + "}"
    lines = ",\n".join(map(template.__mod__, zip(*columns, strict=True)))
    return f"[\n{lines}\n]\n" if lines else "[]\n"


def _written(
    column: pd.Series, text: Callable[[Any], str], *, missing: str, infinite: Callable[[float], str]
) -> list[str]:
    """The entries of a column as texts: floats with all their digits, anything else by `text`."""
    import numpy as np
    import pandas as pd

    if column.dtype == "float64":
        numbers = column.to_numpy()
        texts = json.dumps(numbers.tolist())[1:-1].split(", ") if len(numbers) else []  # `repr` of each, in one call
        for place in np.flatnonzero(~np.isfinite(numbers)).tolist():
            texts[place] = missing if math.isnan(numbers[place]) else infinite(float(numbers[place]))
        return texts
    if column.dtype == object:  # may hold 1, 1.0 and True, which are equal and have different texts
        return [text(value) if _known(value) else missing for value in column.tolist()]
    codes, distinct = pd.factorize(column)
    texts = [*map(text, distinct.tolist()), missing]  # what is missing has the code -1
    return np.array(texts, dtype=object)[codes].tolist()


def _known(value: Any) -> bool:
    return value is not None and value == value


def _csv_text(value: Any) -> str:
    """An entry of a CSV file, quoted where it contains a separator."""
    text = as_cell(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def _json_text(value: Any) -> str:
    return printable_json(_encode(value))


_encode = json.JSONEncoder(ensure_ascii=False).encode
