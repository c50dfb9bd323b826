"""The text of star files: RELION's rules of tokens, and what is written is read back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobench.errors import DataError
from cryobench.io.star_text import NUMBERS, block_text, parse
from cryobench.physics.ctf import COLUMNS

TABLE = "data_a\n\nloop_\n_x #1\n_y #2\n"


def rows(text: str) -> list[list]:
    """The rows of a table with the labels x and y."""
    table = parse(TABLE + text)["a"]
    assert table.columns.tolist() == ["x", "y"]
    return table.to_numpy().tolist()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1 00255\n", ["1", "00255"]),
        ("  1\t 2.50  \r\n", ["1", "2.50"]),
        ("a m#2.mrc # a comment\n", ["a", "m#2.mrc"]),
        ("a o'brien/s.mrcs\n", ["a", "o'brien/s.mrcs"]),
        ("data_1 loop_\n", ["data_1", "loop_"]),
        ("_a b\n", ["_a", "b"]),
        ("'a b' \"c  d\"\n", ["a b", "c  d"]),
        ("'it''s' \"5\"6\"\n", ["it''s", '5"6']),
        ('"" \'#1\'\n', ["", "#1"]),
        ('"a\a" b" c\n', ["a\" b", "c"]),
        ("nan True\n", ["nan", "True"]),
        ("\u00e9\u00a0\u2028 \x0b\n", ["\u00e9\u00a0\u2028", "\x0b"]),
    ],
)  # fmt: skip
def test_a_row_is_split_as_relion_splits_it(text, values):
    assert rows(text) == [values]
    assert rows("1 2\n" + text + "3 4\n")[1] == values


def test_blocks_are_found_by_name_with_and_without_a_loop():
    text = (
        "a text before\n# data_c\ndata_a # first\n\n_rlnVoltage 300 # kV\n_rlnMtfFileName 'k3 300.star'\n\n"
        "data_\nloop_ \n_x #1\n\n# between\n_rlnClassNumber\n1 02\n# among\n3 4\n \ndata_b\nloop_\n_x\ndata_1\n_y\n"
    )
    blocks = parse(text.replace("\n", "\r\n"))
    assert list(blocks) == ["a", "", "b"]
    assert blocks["a"].to_numpy().tolist() == [[300, "k3 300.star"]]
    assert blocks[""].to_numpy().tolist() == [["1", 2], ["3", 4]]
    assert blocks["b"]["x"].tolist() == ["data_1", "_y"]
    empty = parse(TABLE + "\ndata_b\n")
    assert (len(empty["a"]), list(empty)) == (0, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TABLE + "1 2\n3\n", "line 7 has 1 values for 2 labels"),
        (TABLE + "1\n2\n", "line 6 has 1 values for 2 labels"),
        (TABLE + "1 2 3\n", "line 6 has 3 values for 2 labels"),
        (TABLE + "1 2\n3 4 5\n", "line 7 has 3 values for 2 labels"),
        (TABLE + "1 2\n3 'b c\n", "line 7: a value begins with a quote that is not closed"),
        (TABLE + "1 2\n\n3 4\n", "line 8: '3 4' in the block data_a; expected one table without empty lines"),
        (TABLE + "1 2\n\ndata_a\n", "line 8: a second block data_a"),
        (TABLE + "1 2\n\nloop_\n_z\n1\n", "line 8: 'loop_' in the block data_a"),
        ("data_a\nloop_\n_x\n_x\n1 2\n", "the column x twice"),
        ("data_a\nloop_\n1 2\n", "line 3: loop_ without labels"),
        ("data_a\n_x 1\n_y # none\n", "the label _y has no value"),
        ("data_a\n\0", "zero bytes"),
    ],
)
def test_what_relion_would_lose_is_an_error(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_numbers_are_read_in_their_columns_only():
    assert set(COLUMNS.values()) <= NUMBERS
    names = ["rlnDefocusU", "rlnClassNumber", "rlnAngleRot", "rlnOriginX", "rlnTomoName", "rlnCoordinateX"]
    text = "data_\nloop_\n" + "".join(f"_{name}\n" for name in names)
    table = parse(text + "15301.100 07 nan wide 1e3 1_0\n0.1 1 -inf 2 2 True\n")[""]
    assert table["rlnDefocusU"].tolist() == [15301.1, 0.1]
    assert table["rlnClassNumber"].tolist() == [7, 1]
    np.testing.assert_array_equal(table["rlnAngleRot"], [np.nan, -np.inf])
    assert table["rlnOriginX"].tolist() == ["wide", "2"]  # not lost: `pixel_sizes` and the CTF name the row
    assert table["rlnTomoName"].tolist() == ["1e3", "2"]
    assert table["rlnCoordinateX"].tolist() == ["1_0", "True"]
    truths = parse("data_\nloop_\n_rlnOriginX\n_x\nTrue 1\nFALSE 2\n")[""]
    assert truths["rlnOriginX"].tolist() == ["True", "FALSE"]


TEXT = st.text(st.characters(exclude_characters="\n\0\a", codec="utf-8")) | st.text("ab \t\r'\"#_;")
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
LABELS = st.text("abxyz0_", min_size=1)


@settings(max_examples=60)
@given(
    st.integers(1, 3).flatmap(
        lambda n: st.tuples(
            st.dictionaries(LABELS, st.lists(TEXT, min_size=n, max_size=n), min_size=1, max_size=3),
            st.lists(FLOATS, min_size=n, max_size=n),
            st.lists(st.integers(-(2**62), 2**62), min_size=n, max_size=n),
        )
    )
)
def test_what_is_written_is_read_back(drawn):
    texts, floats, integers = drawn
    table = pd.DataFrame({**texts, "rlnDefocusU": floats, "rlnClassNumber": integers})
    for names in (list(table), list(table)[::-1]):  # the first column is where a row could be taken for a keyword
        written = table[names]
        blocks = parse(block_text("optics", written[:1]) + "\n\n" + block_text("particles", written))
        assert list(blocks) == ["optics", "particles"]
        read = blocks["particles"]
        assert read.columns.tolist() == names
        for name in texts:
            assert read[name].tolist() == texts[name]
        np.testing.assert_array_equal(read["rlnDefocusU"].to_numpy(np.float64), floats)
        assert read["rlnClassNumber"].tolist() == integers


def test_other_columns_are_written_as_relion_reads_them():
    table = pd.DataFrame(
        {
            "flag": [True, False],
            "single": np.float32([0.1, 2]),
            "mixed": [1, "a b"],
            "missing": [None, "x"],
            "whole": pd.array([1, None], dtype="Int64"),
        }
    )
    assert parse(block_text("a", table))["a"].to_numpy().tolist() == [
        ["1", repr(float(np.float32(0.1))), "1", "nan", "1"],
        ["0", "2.0", "a b", "x", "nan"],
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pd.DataFrame({"a b": [1]}), "'a b' is not a label"),
        (pd.DataFrame({"a#": [1]}), "'a#' is not a label"),
        (pd.DataFrame([[1, 2]], columns=pd.Index(["a", "a"])), "'a' is not a label"),
        (pd.DataFrame({"a": ["x", "b\nc"]}), "a of row 2 is 'b\\\\nc'; a star file cannot hold line breaks"),
        (pd.DataFrame({"a": ["b\0"]}), "cannot hold"),
    ],
)
def test_what_a_star_file_cannot_hold_is_refused(table, said):
    with pytest.raises(DataError, match=said):
        block_text("a", table)
