"""The command `cryobench export`."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from cryobench.record import Record
from cryobench.results.store import Results


@pytest.fixture
def runs(cli) -> Path:
    """Two finished cells of three images and a failed one, in the current folder."""
    store = Results("runs")
    for place, (solver, status) in enumerate([("pinv", "ok"), ("dct:0.1", "ok"), ("dmplug", "failed")]):
        ran = status == "ok"
        store.write(
            Record(
                hash=f"{place}" * 64, status=status, reason="" if ran else "no memory", solver=solver,
                operator="sumpool:4", noise="none", data="demo", seed=0, images=list("abc"),
                values={"psnr": [20.0 + place, 21.5, 22.0]} if ran else {},
                columns=[{"name": "psnr", "direction": "higher", "unit": "dB"}] if ran else [],
                timing={"seconds_per_image": 0.5}, environment={"created": f"2026-01-01T00:00:0{place}"},
            )
        )  # fmt: skip
    return store.root


def test_all_tables_are_written_and_reported(cli, runs):
    code, out, err = cli("export", "--csv", "a.csv", "--parquet", "a.parquet", "--benchopt", "b.parquet")
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        "failed or skipped, not exported: 1 of 3 cells",
        *(f"6 images of 2 cells in {file}" for file in ("a.csv", "a.parquet", "b.parquet")),
    ]
    tables = [pd.read_csv("a.csv"), pd.read_parquet("a.parquet")]
    for table in tables:
        assert table["psnr"].tolist() == [20.0, 21.5, 22.0, 21.0, 21.5, 22.0]
        assert table["image"].tolist() == list("abcabc")
    assert pd.read_parquet("b.parquet")["objective_value"].tolist() == [-20.0, -21.5, -22.0, -21.0, -21.5, -22.0]


def test_csv_goes_to_stdout(cli, runs):
    code, out, err = cli("export", "runs", "--csv", "-")
    assert code == 0
    assert pd.read_csv(io.StringIO(out))["solver"].tolist() == ["pinv"] * 3 + ["dct:0.1"] * 3
    assert "images of" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "error: nothing to write; give --csv FILE, --parquet FILE or --benchopt FILE"),
        (["--csv", "x", "--parquet", "./x"],
         "error: two tables would be written to the same file; give each its own file"),
        (["--benchopt", "x.pq"],
         "error: --benchopt x.pq: benchopt requires a name that ends in .parquet"),
        (["--csv", "no/x.csv"], "error: cannot write no/x.csv: the folder no does not exist; create it first"),
        (["gone", "--csv", "x"], "error: no results folder gone; `cryobench run` creates one"),
        (["--benchopt", "x.parquet", "--by", "ssim"],
         "error: --by 'ssim' is not a metric of these records; there are psnr"),
        (["--csv", "x", "--benchopt", "x.parquet", "--by", "ssim"],
         "error: --by 'ssim' is not a metric of these records; there are psnr"),
    ],
)  # fmt: skip
def test_invalid_arguments_give_one_line_and_write_no_file(cli, runs, arguments, expected):
    before = sorted(Path().iterdir())
    code, out, err = cli("export", *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == expected
    assert sorted(Path().iterdir()) == before
