"""Text and CSV cells that are safe to print."""

from __future__ import annotations

import csv
import io
import json
import unicodedata

import pandas as pd
import pytest
from hostile import ALL, FORMULAS, HTML, NUMBERS, TERMINAL, TEXTS, has_terminal_codes
from hypothesis import given
from hypothesis import strategies as st

from cryobench.results.tables import as_cell, csv_line, from_cell, to_csv, to_json
from cryobench.text import json_text, printable

anything = st.text(st.characters(exclude_categories=()))
DANGEROUS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(anything)
def test_printable_text_has_no_control_or_invisible_characters(text):
    shown = printable(text)
    assert not {unicodedata.category(char) for char in shown if char != "\n"} & DANGEROUS
    shown.encode()
    assert printable(shown) == shown
    if text.replace("\n", "").isprintable():
        assert shown == text


def test_escapes_are_those_of_python():
    assert printable(TERMINAL) == (r"\x1b]0;owned\x07\x1b[2J\x1b[31mdct\r\x9b31m\x7f\u202e\u2028\ud800\U000e0041")
    assert printable("é σ 中 😀 Å\n") == "é σ 中 😀 Å\n"


@given(st.recursive(anything, lambda inner: st.lists(inner) | st.dictionaries(anything, inner), max_leaves=5))
def test_json_reads_back_unchanged_and_is_printable(data):
    text = json_text(data, indent=1)
    assert json.loads(text) == data
    text.encode()
    assert not has_terminal_codes(text)


def test_json_tables_are_printable():
    column = TERMINAL.replace("\ud800", "")  # pandas has no invalid Unicode in names of columns
    table = pd.DataFrame({"name": pd.Series([TERMINAL, HTML], dtype=object), column: [1.0, 2.0]})
    text = to_json(table)
    assert not has_terminal_codes(text)
    assert json.loads(text) == [{"name": TERMINAL, column: 1.0}, {"name": HTML, column: 2.0}]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_that_begins_a_formula_is_text_for_a_spreadsheet(text):
    assert as_cell(text).strip()[0] not in "=+-@＝"


@pytest.mark.parametrize("text", [*TEXTS, *NUMBERS])
def test_other_cells_are_unchanged(text):
    assert as_cell(text) == text


@given(anything | st.from_regex(r"['\s]*[=+\-@].*"))
def test_cells_read_back_unchanged(text):
    cell = as_cell(text)
    assert from_cell(cell) == printable(text)
    assert cell[:1] not in ("=", "+", "-", "@") or text[1:2] in "0123456789.i"
    assert not has_terminal_codes(cell)


def test_a_table_reads_back_with_numbers_as_numbers():
    names = [*ALL, *TEXTS]
    values = [-0.5 * k for k in range(len(names))]
    table = pd.DataFrame({"name": pd.Series(names, dtype=object), "-x": values, "count": range(len(names))})
    text = to_csv(table)
    assert not has_terminal_codes(text)
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert [from_cell(name) for name in header] == list(table.columns)
    assert [from_cell(row[0]) for row in rows] == list(map(printable, names))
    assert [float(row[1]) for row in rows] == values
    assert [int(row[2]) for row in rows] == list(range(len(names)))
    assert csv_line([None, float("nan"), -1.5, "-x"]) == ",,-1.5,'-x\n"
