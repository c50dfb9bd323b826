"""`cryobench tune`: presets for `run` and `sweep`, equal budgets, and errors of one line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import toys
import yaml

from cryobench import tuning

TOYS = ("-o", "identity", "-d", "spy", "--images", "4:6", "--by", "mse", "--preset", "p")


@pytest.fixture(autouse=True)
def toy_solvers(tmp_path, monkeypatch, install_plugin):
    monkeypatch.setenv("SPIED", str(tmp_path / "spied"))
    toys.install(install_plugin)


def settings(tmp_path) -> dict:
    return yaml.safe_load((tmp_path / "presets" / "p.yaml").read_text())["solvers"]


def table(path) -> pd.DataFrame:
    return pd.read_csv(path).set_index("solver")


def test_run_scores_the_setting_that_tune_found(cli, tmp_path):
    code, out, err = cli("tune", "-s", "toy", "-s", "other", *TOYS, "--trials", 9)
    assert code == 0, err
    assert "mse on the validation images" in out
    assert len(re.findall(r"^toy, trial \d+: ", err, re.MULTILINE)) == 9
    assert len(re.findall(r"^other, trial \d+: ", err, re.MULTILINE)) == 9
    found = settings(tmp_path)["toy"]["parameters"]
    explicit = f"toy:{found['x']},way={found['way']}"
    problem = ("-o", "identity", "-d", "spy", "--images", "0:4", "-m", "mse", "--by", "mse")
    solvers = ("-s", "toy@p", "-s", explicit, "-s", "toy", "-s", "toy:way=bad@p")
    code, _, err = cli("run", *solvers, *problem, "--csv", "t.csv")
    assert code == 0, err
    scores = table(tmp_path / "t.csv")["mse"]
    assert scores["toy@p"] == scores[explicit] < scores["toy"]
    assert scores["toy@p"] == pytest.approx(settings(tmp_path)["toy"]["made"]["best"], rel=1e-3, abs=1e-7)
    assert scores["toy:way=bad@p"] == pytest.approx(scores["toy@p"] + 1 / 4, rel=1e-4)
    _, _, err = cli("run", *solvers, *problem)
    assert "5 cells in runs, 5 of them reused" in err
    record = next(json.loads(path.read_text()) for path in tmp_path.glob("runs/*/record.json")
                  if json.loads(path.read_text())["solver"] == "toy@p")  # fmt: skip
    assert record["resolved"]["preset"] == "p"
    assert record["resolved"]["solver"].startswith(f"toy:{found['x']},way={found['way']},")


def test_the_scaling_is_that_of_the_problems(cli):
    """The exact posterior of a known prior needs images without scaling."""
    known = ("-s", "hqs:prior=gaussian_field", "-o", "sumpool:4", "-d", "gaussian_field:8,number=4", "--images", "2:4")
    goal = ("-m", "optimality_gap", "--by", "expected_gap", "--trials", 2, "--preset", "q")
    code, out, _ = cli("tune", *known, *goal)
    assert code == 1
    assert "the exact posterior needs --scaling none" in " ".join(out.split())
    code, out, err = cli("tune", *known, *goal, "--scaling", "none")
    assert code == 0, err
    assert "expected_gap on the validation images" in out


def test_validation_images_are_not_scored(cli):
    cli("tune", "-s", "toy", *TOYS, "--trials", 3)
    code, _, err = cli("run", "-s", "toy@p", "-o", "identity", "-d", "spy", "--images", "0:6")
    assert code == 2
    assert err.startswith("error: toy@p: image 4 of spy was used to tune the preset p; ")
    assert err.count("\n") == 1


def test_the_table_as_csv_and_json(cli, tmp_path):
    command = ("tune", "-s", "toy", "-s", "other", *TOYS, "--trials", 6, "--quiet")
    _, text, err = cli(*command, "--json", "--csv", "t.csv")
    assert err == ""
    rows = json.loads(text)
    assert [(row["solver"], row["trials"], row["evaluations"]) for row in rows] == [("toy", 6, 12), ("other", 6, 36)]
    made = settings(tmp_path)
    for row in rows:
        assert {key: made[row["solver"]]["made"][key] for key in ("default", "best")} == {
            key: row[key] for key in ("default", "best")
        }
        assert row["best"] <= row["default"]
    _, again, _ = cli(*command, "--csv", "-")
    assert list(csv.DictReader(io.StringIO(again))) == list(csv.DictReader((tmp_path / "t.csv").open()))


SUITE = """
solvers: [toy, plain]
operators: ["identity", "fourier:0.5"]
data: spy
images: "0:4"
metrics: mse
"""


def test_problems_are_taken_from_the_suite(cli, tmp_path):
    (tmp_path / "s.yaml").write_text(SUITE)
    code, _, err = cli("tune", "s.yaml", "--images", "4:6", "--by", "mse", "--preset", "p", "--trials", 3)
    assert code == 0, err
    assert "not tuned: plain: nothing to tune" in err
    assert settings(tmp_path)["toy"]["made"]["operators"] == ["identity", "fourier:0.5"]
    assert {line.split("/")[1] for line in (tmp_path / "spied").read_text().split()} == {"4", "5"}
    code, _, err = cli("tune", "s.yaml", "--images", "3:6", "--by", "mse", "--preset", "q")
    assert (code, err.count("\n")) == (2, 1)
    assert "s.yaml, line 1, tests on image 3 of spy" in err


def test_a_suite_that_names_the_preset_has_the_tuned_column(cli, tmp_path):
    suite = SUITE.replace("[toy, plain]", '[toy, "toy@p", "toy:way=bad@p"]')
    (tmp_path / "s.yaml").write_text(suite)
    (tmp_path / "pages").mkdir()
    cli("tune", "s.yaml", "-s", "toy", "--images", "4:6", "--by", "mse", "--preset", "p", "--trials", 8, "--quiet")
    code, _, err = cli("sweep", "s.yaml", "--by", "mse", "--publish", "pages")
    assert code == 0, err
    frame = pd.read_csv(tmp_path / "pages" / "s.csv")
    found = settings(tmp_path)["toy"]["parameters"]
    explicit = f"toy:{found['x']},way={found['way']}"
    cli("run", "-s", explicit, "-o", "identity", "-o", "fourier:0.5", "-d", "spy", "--images", "0:4", "-m", "mse",
        "--by", "mse", "--no-floor", "--csv", "t.csv")  # fmt: skip
    plain = pd.read_csv(tmp_path / "t.csv").set_index("operator")["mse"].to_dict()
    assert frame[frame["solver"] == "toy@p"].set_index("operator")["mse"].to_dict() == plain
    assert set(frame["solver"]) == {"toy", "toy@p", "toy:way=bad@p", "pinv"}
    (tmp_path / "s.yaml").write_text(suite.replace("toy@p", "toy@pp"))
    code, _, err = cli("sweep", "s.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "s.yaml, line 2: no preset 'pp' in presets; did you mean 'p'?" in err


def test_ctrl_c_saves_the_best_so_far_and_the_same_command_continues(cli, tmp_path):
    command = ("tune", "-s", "toy:interrupt=0.5", "-s", "other", *TOYS, "--trials", 15)
    code, out, err = cli(*command)
    assert code == 130
    assert "stopped; the same command continues from there" in err
    assert "other" not in out
    stopped = settings(tmp_path)["toy"]
    assert stopped["made"]["trials"] < 15
    assert stopped["made"]["best"] <= stopped["made"]["default"]
    command = ("tune", "-s", "toy:interrupt=0.5", *TOYS, "--trials", stopped["made"]["trials"])
    code, _, err = cli(*command)
    assert code == 0
    assert "trial" not in err
    assert settings(tmp_path)["toy"]["parameters"] == stopped["parameters"]


def test_a_solver_whose_default_fails_does_not_affect_the_others(cli, tmp_path):
    code, out, _ = cli("tune", "-s", "toy:refuse=-0.5", "-s", "other", *TOYS, "--trials", 3, "--json")
    assert code == 1
    broken, sound = json.loads(out)
    assert "x is too large" in broken["reason"]
    assert (broken["trials"], sound["trials"]) == (0, 3)
    assert set(settings(tmp_path)) == {"other"}


def test_concurrent_searches_for_one_preset_lose_no_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = "from cryobench.cli import main; main()"
    searches = [
        subprocess.Popen(
            [sys.executable, "-c", run, "tune", "-s", solver, *TOYS, "--trials", "12", "--quiet"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        for solver in ("toy", "other")
    ]
    assert [search.wait(300) for search in searches] == [0, 0]
    found = settings(tmp_path)
    assert {name: each["made"]["trials"] for name, each in found.items()} == {"toy": 12, "other": 12}
    assert {path.name for path in (tmp_path / "presets").iterdir()} == {"p.yaml", "p.trials", ".p.lock"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-s", "toy", "-o", "identity", "--preset", "p"), "tune needs --images"),
        (("-s", "toy", "-o", "identity", "--images", "0"), "tune needs --preset"),
        (("-o", "identity", "--images", "0", "--preset", "p"), "at least one --solver"),
        (("-s", "toy", "--images", "0", "--preset", "p"), "at least one --operator"),
        (("-s", "toy", *TOYS, "--preset", "../p"), "expected a component name"),
        (("-s", "toy", *TOYS, "--trials", 5, "--evaluations", 5), "one of the two"),
        (("-s", "toy", *TOYS, "--trials", 0), "at least 1"),
        (("-s", "toy", *TOYS, "--strategy", "gird"), "must be one of tpe, random, grid, got 'gird'"),
        (("-s", "toy", *TOYS, "--strategy", "grid", "--grid-points", 1), "--grid-points must be at least 2"),
        (("-s", "toy", *TOYS, "--by", "lpips"), "'lpips' is not a column"),
        (("-s", "toy", *TOYS, "-m", "psnr"), "'mse' is not a column of these metrics; there are psnr, psnr_clean"),
        (("-s", "plain", *TOYS), "nothing to tune"),
        (("-s", "toy@p", *TOYS), "tune toy"),
        (("-s", "toy", *TOYS, "--images", "40"), "selects image 40"),
        (("-s", "toy", *TOYS, "--presets", "/proc/nowhere"), "cannot write trials to /proc/nowhere/p.trials"),
        (("s.yaml", *TOYS), "cannot be combined"),
        (("s.yaml", *TOYS[2:], "--scaling", "none"), "a suite and --scaling cannot be combined"),
        (("t.yaml", "--images", "4", "--preset", "p"), "cannot read the suite t.yaml"),
    ],
)
def test_an_invalid_request_gives_one_line_and_writes_nothing(cli, tmp_path, arguments, message):
    (tmp_path / "s.yaml").write_text(SUITE)
    code, out, err = cli("tune", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "presets").exists()


def test_without_optuna_the_extra_is_named(cli, monkeypatch):
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    code, _, err = cli("tune", "-s", "toy", *TOYS)
    assert code == 2
    assert err == 'error: tuning needs Optuna, which is not installed: pip install "cryobench[tune]"\n'


def test_show_lists_the_ranges(cli):
    _, out, _ = cli("show", "toy")
    assert "tuned over" in out
    assert re.search(r"x\s+float\s+0\S*\s+-1 to 1", out)
    assert "bad, good" in out
    _, out, _ = cli("show", "plain")
    assert "tuned over" not in out
