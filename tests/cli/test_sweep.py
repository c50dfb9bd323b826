"""`cryobench sweep`: a suite is run, ranked and published."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from cryobench.numerics.binomial import binomial_interval

SUITE = """
title: Blobs
about: Not particles.
data: blobs.npy
images: "0:2"
metrics: psnr
solvers: tikhonov
operators: ["sumpool:4", "sumpool:8"]
include:
  - {solvers: wiener, operators: identity, data: "$NOWHERE", optional: data absent}
references:
  - {solver: "pinv", operator: "sumpool:block=4", values: {psnr: 10}, source: a paper}
  - {solver: "pinv", operator: "sumpool:8", values: {psnr: [0, 99], ssim: 1}, source: a paper}
  - {solver: wiener, operator: identity, values: {psnr: 20}, source: another}
  - {solver: tv, operator: identity, values: {psnr: 20}, source: another}
"""


@pytest.fixture
def suite(tmp_path, blobs, monkeypatch):
    monkeypatch.setenv("NOWHERE", "nowhere.mrc")
    path = tmp_path / "blobs.yaml"
    path.write_text(SUITE)
    (tmp_path / "pages").mkdir()
    return path


def test_a_suite_is_run_and_published(cli, suite, tmp_path):
    code, out, err = cli("sweep", suite, "--publish", "pages")
    assert code == 0, err
    assert "sumpool:4" in out
    assert "not run: wiener on identity: data absent (" in err
    assert "4 cells in runs/blobs" in err
    frame = pd.read_csv(tmp_path / "pages" / "blobs.csv")
    ran = frame[frame["status"] == "ok"]
    assert sorted(zip(ran["solver"], ran["operator"], strict=True)) == [
        (solver, operator) for solver in ("pinv", "tikhonov") for operator in ("sumpool:4", "sumpool:8")
    ]
    missing = frame[frame["status"] == "not run"]
    assert missing[["solver", "operator", "psnr_published", "reason"]].values.tolist() == [
        ["wiener", "identity", "20", "data absent"], ["tv", "identity", "20", "no cell of this suite"]
    ]  # fmt: skip
    pinv = ran[ran["solver"] == "pinv"].set_index("operator")
    assert pinv["psnr_published"].to_dict() == {"sumpool:4": "10", "sumpool:8": "0 to 99"}
    assert pinv["psnr_difference"].to_dict() == pytest.approx(
        {"sumpool:4": pinv["psnr"]["sumpool:4"] - 10, "sumpool:8": 0}
    )
    page = (tmp_path / "pages" / "blobs.md").read_text()
    assert page.startswith("# Blobs\n\nNot particles.\n\nMade on 20")
    assert f"    cryobench sweep {suite} --publish pages\n" in page
    assert "### sumpool:4" in page
    rows = {tuple(cells[:3]): cells[3:] for line in page.splitlines() if line.startswith("| `")
            for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}  # fmt: skip
    floor = frame[(frame["solver"] == "pinv") & (frame["operator"] == "sumpool:4")]["psnr"].item()
    published, ours, difference, source = rows["`pinv`", "`sumpool:4`", "psnr"]
    assert (published, source) == ("10", "a paper")
    assert float(ours) == pytest.approx(floor, rel=1e-3)
    assert float(difference) == pytest.approx(floor - 10, rel=1e-2)
    assert rows["`pinv`", "`sumpool:8`", "psnr"][0] == "0 to 99"
    assert float(rows["`pinv`", "`sumpool:8`", "psnr"][2]) == 0
    assert rows["`pinv`", "`sumpool:8`", "ssim"][1:3] == ["not measured", ""]
    assert rows["`wiener`", "`identity`", "psnr"][1] == "not run: data absent"
    assert rows["`tv`", "`identity`", "psnr"][1] == "not run: no cell of this suite"


KNOWN = """
title: Known
data: "gaussian_field:8,number=4"
images: "0:4"
scaling: none
metrics: [psnr, optimality_gap, energy_coverage]
solvers: "exact:samples=2,prior=gaussian_field"
operators: "sumpool:4,count=4"
"""


def test_a_board_of_known_posteriors_states_its_command_and_the_intervals_of_proportions(cli, tmp_path):
    (tmp_path / "known.yaml").write_text(KNOWN)
    code, _, err = cli("sweep", "known.yaml", "--by", "expected_gap", "--publish", ".")
    assert code == 0, err
    page = (tmp_path / "known.md").read_text()
    assert "    cryobench sweep known.yaml --by expected_gap --publish .\n" in page
    head, row = (next(line for line in page.splitlines() if text in line) for text in ("| solver |", "| exact:"))
    shown = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    frame = pd.read_csv(tmp_path / "known.csv").set_index("solver")
    rate, low, high = frame.filter(like="coverage_energy").loc["exact:samples=2"]
    assert (low, high) == pytest.approx(binomial_interval(4 * rate, 4))
    assert shown["coverage\\_energy \\[95% interval\\]"] == f"{rate:.3f} [{low:.3f}, {high:.3f}]"
    assert "energy\\_rank" in shown


def test_saved_cells_are_not_run_again(cli, suite):
    cli("sweep", suite, "--quiet")
    code, _, err = cli("sweep", suite)
    assert code == 0
    assert "4 cells in runs/blobs, 4 of them reused" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "cannot read the suite nowhere.yaml"),
        (["blobs.yaml", "--publish", "absent"], "the folder absent does not exist"),
        (["blobs.yaml", "--device", "abacus"], "abacus"),
    ],
)
def test_invalid_commands_give_a_one_line_error(cli, suite, arguments, message):
    code, out, err = cli("sweep", *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


GRID = """
data: blobs.npy
images: "0:2"
metrics: psnr
solvers: [tikhonov, dct]
operators: ["sumpool:4", "sumpool:8"]
"""


@pytest.fixture
def plain(tmp_path, blobs):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


def test_a_dry_run_lists_the_cells_to_run_and_runs_none(cli, plain, tmp_path):
    code, out, _ = cli("sweep", plain, "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "6 of 6 cells to run; no estimate for 6 of them")
    assert not (tmp_path / "runs").exists()
    cli("sweep", plain, "--shard", "1/2", "--quiet")
    code, out, _ = cli("sweep", plain, "--dry-run")
    assert code == 0
    assert out.splitlines()[-1].startswith("3 of 6 cells to run; about ")
    assert out.splitlines()[-1].endswith(" s on one worker, from earlier cells")
    rows = {cells[0]: cells[1:3] for line in out.splitlines()[1:-1] if (cells := line.split())}
    assert rows == {"pinv": ["1", "1"], "tikhonov": ["1", "1"], "dct": ["1", "1"]}


def test_shards_share_a_folder_and_a_run_without_shard_shows_all_cells(cli, plain):
    for part in ("1/3", "2/3", "3/3"):
        code, _, err = cli("sweep", plain, "--shard", part)
        assert code == 0
        assert "2 cells in runs/grid" in err
    code, out, err = cli("sweep", plain, "--csv", "-")
    assert code == 0
    assert "6 cells in runs/grid, 6 of them reused" in err
    assert len(out.splitlines()) == 7


def test_tables_follow_the_order_of_the_suite_on_every_executor(cli, plain):
    tables = [cli("sweep", plain, "-e", where, "--out", f"out/{where}", "--csv", "-")[1]
              for where in ("local", "processes:2")]  # fmt: skip
    shown = [[line.split(",")[1:3] for line in table.splitlines()[1:]] for table in tables]
    assert shown[0] == shown[1]


def test_the_schema_is_printed(cli):
    code, out, _ = cli("sweep", "--schema")
    assert code == 0
    assert json.loads(out)["title"] == "cryobench suite"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "dask://127.0.0.1:9"], "no dask scheduler answers at tcp://127.0.0.1:9"),
        (["--executor", "threads"], "there are dask, local, processes, slurm"),
        (["--shard", "4/3"], "--shard must be K/N"),
        (["--shard", "1/2", "--publish", "."], "--publish needs all results"),
        (["--time-limit", "soon"], "--time-limit must be like"),
        (["--by", "pnsr"], "--by 'pnsr' is not a column of this run; did you mean 'psnr'"),
        (["--format", "cvs"], "did you mean 'csv'"),
    ],
)
def test_invalid_options_are_refused_before_any_work(cli, plain, tmp_path, options, message):
    code, out, err = cli("sweep", plain, *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_reported_and_the_same_command_continues(cli, plain, full_disk):
    with full_disk(after=2):
        code, out, err = cli("sweep", plain, "--quiet")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "No space left on device" in err
    assert "2 of 6 cells are finished and kept in runs/grid; the same command continues from there" in err
    assert "6 cells in runs/grid, 2 of them reused" in cli("sweep", plain)[2]


def test_a_dashboard_shows_running_cells_and_the_best(cli, plain, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # stderr counts as a terminal
    monkeypatch.setenv("COLUMNS", "150")
    code, out, err = cli("sweep", plain, "--live")
    assert code == 0
    assert "sumpool:8" in out
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err)
    assert "6 of 6 cells" in last
    assert re.search(r"sumpool:4, noise none, blobs.npy, seed 0 +(dct|tikhonov|pinv) +[0-9.]+ +[0-9.]+", last)
