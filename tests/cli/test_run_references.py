"""The options --ceiling, --batch and --save animation."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

PARTICLES = "simulate:3mht,snr=1,count=4,size=32"
RUN = ("run", "-s", "dct:steps=3", "-o", "sumpool:4", "-d", PARTICLES)


def test_the_ceiling_is_an_unranked_row_in_run_and_leaderboard(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = cli(*RUN, "--ceiling")
    assert code == 0
    lines = out.splitlines()
    row = next(line for line in lines if "ceiling" in line)
    assert row.split()[:2] == ["–", "ceiling"]
    assert [line.split()[0] for line in lines if "dct" in line or "(floor)" in line][:2] == ["1", "2"]
    assert "ceiling: not ranked: a bound on psnr to the measured image, computed from the clean one" in out
    assert "no mean" not in out
    assert "3 cells in runs" in err
    assert cli("leaderboard")[1] == out
    rows = list(csv.DictReader(io.StringIO(cli("leaderboard", "--csv", "-")[1])))
    assert [(row["solver"], row["rank"], row["psnr_clean"] != "") for row in rows] == [
        ("dct:steps=3", "1", True), ("pinv", "2", True), ("ceiling", "", False)
    ]  # fmt: skip
    ceiling = json.loads(cli("leaderboard", "--json", "--by", "psnr_clean")[1])[-1]
    assert (ceiling["solver"], ceiling["rank"], ceiling["psnr_clean"], ceiling["nfe"]) == ("ceiling", None, None, None)
    _, _, err = cli(*RUN, "--ceiling")
    assert "3 of them reused" in err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-s", "ceiling"), "use --ceiling"),
        (("--batch", "many"), "--batch must be auto or a positive number of images, got many"),
        (("--save", "animaton"), "did you mean 'animation'?"),
    ],
)
def test_invalid_options_give_a_one_line_error(cli, options, expected):
    code, out, err = cli(*RUN, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert not Path("runs").exists()


def test_batch_takes_a_number_or_auto(cli):
    for batch, used in (("auto", 4), ("3", 3)):
        assert cli(*RUN, "--batch", batch, "--force", "--no-floor")[0] == 0
        (record,) = Path("runs").glob("*/record.json")
        assert json.loads(record.read_text())["timing"]["batch"] == used


def test_a_solver_without_recorded_iterates_gives_one_warning(cli):
    code, _, err = cli(*RUN, "--save", "animation", "--no-floor", "--quiet")
    assert code == 0
    assert err == "warning: dct:steps=3 does not record its iterates: its animation is not saved\n"
