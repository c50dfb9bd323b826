"""The text of STAR files: blocks of columns, read and written by the rules of RELION (its src/metadata_table.cpp).

A row is a line. Values are separated by blanks; one that begins with a quote ends at the same quote before a blank, and
one that begins with # is a comment to the end of the line. A line data_NAME begins a block, and loop_ a table, which
ends at an empty line; among its rows both are values. Values are text, except in the columns of `NUMBERS`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cryobench.errors import DataError, shortened

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = frozenset(
    f"rln{name}"
    for name in (
        *("AngleRot", "AngleTilt", "AnglePsi", "AngleRotPrior", "AngleTiltPrior", "AnglePsiPrior"),
        *("OriginX", "OriginY", "OriginZ", "OriginXAngst", "OriginYAngst", "OriginZAngst"),
        *("OriginXPrior", "OriginYPrior", "OriginXPriorAngst", "OriginYPriorAngst"),
        *("CoordinateX", "CoordinateY", "CoordinateZ"),
        *("DefocusU", "DefocusV", "DefocusAngle", "Voltage", "SphericalAberration", "AmplitudeContrast", "PhaseShift"),
        *("CtfBfactor", "CtfScalefactor", "CtfMaxResolution", "CtfFigureOfMerit", "CtfDataAreCtfPremultiplied"),
        *("BeamTiltX", "BeamTiltY", "MagMat00", "MagMat01", "MagMat10", "MagMat11"),
        *("ImagePixelSize", "PixelSize", "MicrographPixelSize", "MicrographOriginalPixelSize", "DetectorPixelSize"),
        *("Magnification", "ImageSize", "ImageDimensionality"),
        *("OpticsGroup", "ClassNumber", "GroupNumber", "RandomSubset", "NormCorrection"),
    )
)
"""The columns that are read as numbers; a column of them with text that is not a number stays text."""
_BLANKS = " \t\r"
_LABEL = re.compile(r"_([^ \t#]+)[ \t]*(?:#.*)?")
_PAIR = re.compile(r"_([^ \t#]+)[ \t]+(.*)")
_NEW_BLOCK = re.compile(r"data_[^ \t]*")
_MARKED = re.compile(
    r"""["'#](?<![^ \t\n].)(?:(?<=\#)[^\n]*|"""
    r"""(?<=")(?P<double>(?:[^"\n]|(?<=\a)"|(?<!\a)"(?![ \t\n]|\Z))*)(?<!\a)"(?=[ \t\n]|\Z)|"""
    r"""(?<=')(?P<single>(?:[^'\n]|(?<=\a)'|(?<!\a)'(?![ \t\n]|\Z))*)(?<!\a)'(?=[ \t\n]|\Z)|(?P<open>))"""
)
"""A comment, a quoted value, or a quote that is not closed on its line, at the beginning of a value. A quote after the
character 7 does not end a value."""


# ------------------------------------------------------------------------------------------------------ reading


def parse(text: str) -> dict[str, pd.DataFrame]:
    """The blocks of a STAR file by name; one without a loop has one row.

    Raises `ValueError` for text that is not a STAR file, a row with too few or too many values, and a second block of
    a name, of which RELION would read only the first.
    """
    if "\0" in text:
        raise ValueError("it holds zero bytes, which are not text")
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    lines = _Lines(text.removeprefix("\ufeff"))
    blocks: dict[str, pd.DataFrame] = {}
    name, pairs = None, []
    while (line := lines.next()) is not None:
        if not line or line[0] in "#;":
            continue
        if line.startswith("data_"):
            if pairs and name is not None:
                blocks[name] = _list_block(pairs)
            name, pairs = _name_of(line), []
            if name in blocks:
                raise ValueError(f"line {lines.number}: a second block data_{name}; expected one of each name")
            blocks[name] = _table([], "")
        elif name is None:
            continue  # text before the first block
        elif line.startswith("loop_") and not pairs and blocks[name].columns.empty:
            blocks[name] = _loop(lines)
        elif blocks[name].columns.empty and (pair := _PAIR.fullmatch(line)):
            pairs.append(pair.groups())
        else:
            raise ValueError(
                f"line {lines.number}: {shortened(line, 60)!r} in the block data_{name}; expected one table without "
                "empty lines, or lines of a label and a value"
            )
    if pairs and name is not None:
        blocks[name] = _list_block(pairs)
    return blocks


class _Lines:
    """Lines of a text, without surrounding blanks."""

    def __init__(self, text: str):
        self.text, self.start, self.end = text, 0, 0

    def next(self) -> str | None:
        if self.end >= len(self.text):
            return None
        self.start, end = self.end, self.text.find("\n", self.end)
        self.end = len(self.text) if end < 0 else end + 1
        return self.text[self.start : self.end].strip(_BLANKS + "\n")

    @property
    def number(self) -> int:
        """Number of the last line, from 1."""
        return self.text.count("\n", 0, self.start) + 1


def _name_of(line: str) -> str:
    return re.split(r"[ \t]", line, maxsplit=1)[0].removeprefix("data_")


def _loop(lines: _Lines) -> pd.DataFrame:
    """A table, from the line after loop_ to the empty line that ends it."""
    names: list[str] = []
    while (line := lines.next()) is not None:
        label = _LABEL.fullmatch(line)
        if label:
            names.append(label[1])
        elif line and line[0] not in "#;":
            break
    if line is None or _ends(line, names):
        lines.end = lines.start if line is not None else lines.end
        return _table(names, "")
    if not names:
        raise ValueError(f"line {lines.number}: loop_ without labels; expected lines such as _rlnImageName")
    first, start = lines.number, lines.start
    end = re.compile(
        r"\n[ \t\r]*(?=\n|\Z)" + (r"|\n(?=[ \t]*data_[^ \t\n]*[ \t\r]*(?:\n|\Z))" if len(names) > 1 else "")
    )
    found = end.search(lines.text, start)
    stop, lines.end = (len(lines.text),) * 2 if found is None else (found.start(), found.end())
    return _table(names, lines.text[start:stop], first)


def _ends(line: str, names: Sequence[str]) -> bool:
    """Whether a line, which is not a label, begins the next block: a row of a table has as many values as labels."""
    return len(names) != 1 and _NEW_BLOCK.fullmatch(line) is not None


def _list_block(pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One row, of labels and values."""
    coded, codes = _coded("\n".join(value for _, value in pairs), 1)
    values = [re.split(r"[ \t]+", line.lstrip(_BLANKS), maxsplit=1)[0] for line in coded.split("\n")]
    for (label, _), value in zip(pairs, values, strict=True):
        if not value:
            raise ValueError(f"the label _{label} has no value; expected one on the same line")
    return _columns([label for label, _ in pairs], " ".join(values), codes)


def _table(names: list[str], body: str, first: int = 1) -> pd.DataFrame:
    """The table of these rows. first: number of their first line, for messages."""
    import pandas as pd

    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"it has the column {min(twice)} twice; expected each column once")
    if not body:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in names})
    coded, codes = _coded(body, first)
    try:
        return _columns(names, coded, codes)
    except pd.errors.ParserError as error:
        raise ValueError(_uneven(coded, len(names), first)) from error


def _coded(body: str, first: int) -> tuple[str, dict[int, str]]:
    """The rows without comments and quotes, and the characters that stand in them for what quotes allow in a value."""
    if not any(mark in body for mark in "\"'#"):
        return body, {}
    free = (code for code in map(chr, range(0xE000, 0xF900)) if code not in body)
    space, tab, empty = (next(free) for _ in range(3))

    def code(match: re.Match[str]) -> str:
        if match["open"] is not None:
            line = body.count("\n", 0, match.start()) + first
            raise ValueError(f"line {line}: a value begins with a quote that is not closed on the line")
        value = match["double"] if match["double"] is not None else match["single"]
        if value is None:
            return ""
        return value.replace("\a", "").replace(" ", space).replace("\t", tab) or empty

    return _MARKED.sub(code, body), {ord(space): " ", ord(tab): "\t", ord(empty): ""}


def _columns(names: list[str], coded: str, codes: dict[int, str]) -> pd.DataFrame:
    """The columns of these rows. Raises `ParserError` for a row that does not have a value for each."""
    import pandas as pd

    text: dict[Any, Any] = {number: object for number, name in enumerate(names) if name not in NUMBERS}
    while True:
        table = pd.read_csv(
            io.BytesIO(coded.encode()), sep=r"\s+", header=None, dtype=text, quoting=csv.QUOTE_NONE, na_filter=False,
            lineterminator="\n", low_memory=False, engine="c",
        )  # fmt: skip
        truths = [number for number, dtype in enumerate(table.dtypes) if dtype.kind == "b"]
        if not truths:
            break
        text |= dict.fromkeys(truths, object)
    # a row that is shorter than the first has empty values at its end; a row that is longer is an error of read_csv
    if table.shape[1] != len(names) or (table.iloc[:, -1] == "").any():
        raise pd.errors.ParserError
    return pd.DataFrame(
        {name: _column(table.iloc[:, number], number not in text, codes) for number, name in enumerate(names)}
    )


def _column(column: pd.Series, is_number: bool, codes: dict[int, str]) -> Any:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return column
    text = column.astype(object)
    if is_number and not any("_" in str(value) for value in text):  # Python reads 1_000 as a number
        try:
            return text.to_numpy().astype(np.float64)  # nan and inf
        except (ValueError, TypeError):
            pass
    return text.map(lambda value: value.translate(codes)) if codes else text


def _uneven(coded: str, width: int, first: int) -> str:
    """The message for the first row that does not have `width` values."""
    for number, line in enumerate(coded.split("\n"), first):
        count = len(re.findall(r"[^ \t]+", line))
        if count not in (0, width):
            return f"line {number} has {count} values for {width} labels; expected one for each, blanks in quotes"
    return f"its rows do not have {width} values each"


# ------------------------------------------------------------------------------------------------------ writing


def block_text(name: str, table: pd.DataFrame) -> str:
    """A table as a block, numbers to the last digit; `parse` returns the same values. Missing values are nan.

    Raises `DataError` for labels and text that a STAR file cannot hold.
    """
    labels = [str(column) for column in table.columns]
    for label in labels:
        if not re.fullmatch(r"[^\s#]+", label) or labels.count(label) > 1:
            raise DataError(f"the column {label!r} is not a label of a star file; rename it: no blanks, no #, once")
    columns = [_texts(label, table.iloc[:, number]) for number, label in enumerate(labels)]
    header = "".join(f"_{label} #{number}\n" for number, label in enumerate(labels, 1))
    rows = "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    return f"# version 30001\n\ndata_{name}\n\nloop_\n{header}{rows}"


def _texts(label: str, column: pd.Series) -> Iterable[str]:
    """The values of a column as they are written."""
    kind = getattr(column.dtype, "kind", "O")
    if kind == "b":
        return map(str, column.astype(int).tolist())
    if kind in "iuf" and isinstance(column.dtype, np.dtype):
        return map(repr, column.tolist())
    known: dict[str, str] = {}  # names of micrographs repeat
    texts = ("nan" if absent else str(value) for value, absent in zip(column.tolist(), column.isna(), strict=True))
    return [known.get(text) or known.setdefault(text, _quoted(text, label, row)) for row, text in enumerate(texts, 1)]


_PLAIN = re.compile(r"""(?!["'#;_]|data_|loop_)[^ \t\r\n\0\a]+""")


def _quoted(text: str, label: str, row: int) -> str:
    """A value as it is written, in quotes where needed."""
    if _PLAIN.fullmatch(text):
        return text
    if any(character in text for character in "\n\0\a"):
        raise DataError(
            f"{label} of row {row} is {shortened(text, 60)!r}; a star file cannot hold line breaks and the "
            "characters 0 and 7: remove them"
        )
    for quote in "\"'":
        if not re.search(quote + "[ \t]", text):
            return f"{quote}{text}{quote}"
    return '"' + re.sub('"(?=[ \t])', '\a"', text) + '"'
