"""The command `cryobench compare`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from cryobench.record import Record
from cryobench.results.store import Results

PSNR = {"name": "psnr", "direction": "higher", "unit": "dB"}
VALUES = 25 + np.random.default_rng(0).normal(size=8)


def save(folder: str, **cells: np.ndarray) -> Path:
    """A results folder with a cell for each solver."""
    for number, (solver, psnr) in enumerate(cells.items()):
        Results(folder).write(
            Record(
                hash=f"{number:012x}",
                status="ok",
                reason="",
                solver=solver,
                operator="sumpool:16",
                noise="none",
                data="demo",
                seed=0,
                images=[f"demo@{place}" for place in range(len(psnr))],
                values={"psnr": psnr.tolist()},
                columns=[PSNR],
                timing={"seconds_per_image": 1.0},
            )
        )
    return Path(folder)


@pytest.fixture
def results(cli):
    """OLD and NEW: dct is 0.5 dB lower, tv is unchanged, pinv is only in OLD."""
    save("old", dct=VALUES, tv=VALUES, pinv=VALUES)
    save("new", dct=VALUES - 0.5, tv=VALUES)
    return cli


def test_a_regression_gives_exit_code_1_and_is_printed(results):
    code, out, err = results("compare", "old", "new")
    assert (code, err) == (1, "")
    assert "worse" in out
    assert "only in OLD: pinv on sumpool:16, noise none, demo, seed 0" in out
    assert out.rstrip().endswith("1 regression")


def test_no_regression_gives_exit_code_0(results):
    assert results("compare", "old", "old")[0] == 0
    code, out, _ = results("compare", "new", "old")  # better
    assert code == 0
    assert "better" in out
    assert out.rstrip().endswith("no regressions")


@pytest.mark.parametrize(("threshold", "code"), [("psnr:-0.4", 1), ("psnr:-0.6", 0), ("seconds:+20%,psnr:-0.4", 1)])
def test_fail_on_thresholds(results, threshold, code):
    assert results("compare", "old", "new", "--fail-on", threshold)[0] == code


def test_metrics_selects_the_compared_columns(results):
    assert results("compare", "old", "new", "--metrics", "seconds")[0] == 0
    _, out, _ = results("compare", "old", "new", "--metrics", "psnr", "--format", "csv")
    assert {row["column"] for row in csv.DictReader(io.StringIO(out))} == {"psnr"}


def test_results_go_to_stdout_and_notes_to_stderr(results):
    code, out, err = results("compare", "old", "new", "--format", "json")
    assert code == 1
    report = json.loads(out)
    assert [change["verdict"] for change in report["changes"] if change["column"] == "psnr"] == ["worse", "identical"]
    assert err == f"regression: {report['regressions'][0]}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("old", "absent"), "no results folder absent"),
        (("old", "empty"), "no finished cells in empty"),
        (("old", "other"), "no cell is in both results"),
        (("old", "new", "--metrics", "pnsr"), "did you mean 'psnr'?"),
        (("old", "new", "--fail-on", "psnr=-0.1"), "invalid threshold 'psnr=-0.1'"),
        (("old", "new", "--fail-on", "psnr:+0.1"), "psnr gets worse with '-'"),
        (("old", "new", "--tolerance", "-1"), "tolerance must be 0 or more"),
    ],
)
def test_invalid_arguments_give_exit_code_2_and_one_line(results, arguments, message):
    Path("empty").mkdir()
    save("other", wiener=VALUES)
    code, out, err = results("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_damaged_and_foreign_folders_are_skipped_with_a_message(results):
    (damaged,) = Path("new").glob("*-tv-*")
    (damaged / "metrics.csv").write_text("image,psnr\nwrong,1\n")
    (Path("new") / "foreign").mkdir()
    code, out, err = results("compare", "old", "new", "--fail-on", "psnr:-9")
    assert code == 0
    assert f"skipped {damaged}: damaged run folder" in err
    assert "skipped new/foreign: not a run folder" in err
    assert "only in OLD: tv" in out


def test_single_run_folders_can_be_compared(results):
    (before,) = Path("old").glob("*-dct-*")
    (after,) = Path("new").glob("*-dct-*")
    code, out, _ = results("compare", before, after)
    assert code == 1
    assert "only in" not in out


def test_runs_with_the_same_settings_differ_only_in_timing(cli, blobs):
    arguments = ("run", "-s", "dct", "-o", "sumpool:4", "-d", blobs, "--quiet")
    for folder in ("first", "second"):
        cli(*arguments, "--out", folder)
    code, out, _ = cli("compare", "first", "second", "--metrics", "psnr,ssim", "--format", "json")
    report = json.loads(out)
    assert code == 0
    assert {change["verdict"] for change in report["changes"]} == {"identical"}
    assert {change["solver"] for change in report["changes"]} == {"dct", "pinv"}
