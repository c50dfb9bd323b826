"""The command `cryobench leaderboard`: formats, filters and errors."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from cryobench.leaderboard.index import INDEX
from cryobench.record import Record
from cryobench.results.store import Results

PSNR = {"name": "psnr", "direction": "higher", "unit": "dB"}
SSIM = {"name": "ssim", "direction": "higher", "unit": ""}
BETTER = {"pinv": 0.0, "dct:0.1": 2.0, "tv:lam=0.1,iterations=9": 1.0}


@pytest.fixture
def runs(cli) -> Path:
    """Two operators, two noises and three solvers with the floor, on eight images, in the current folder."""
    store = Results("runs")
    problems = [(operator, noise) for operator in ("sumpool:4", "fourier:0.5") for noise in ("none", "gaussian:0.1")]
    for place, (operator, noise) in enumerate(problems):
        for solver, shift in BETTER.items():
            psnr = [20 + place + 3 * (image % 3) + shift + 0.1 * (image * len(solver) % 4) for image in range(8)]
            store.write(
                Record(
                    hash=f"{place}{len(solver):02d}" + "0" * 61, status="ok", reason="", solver=solver,
                    operator=operator, noise=noise, data="demo", seed=0, images=list("abcdefgh"),
                    floor=solver == "pinv", compression=2.0 + place // 2,
                    values={"psnr": psnr, "ssim": [value / 50 for value in psnr]}, columns=[PSNR, SSIM],
                    timing={"seconds_per_image": shift + 0.01}, counters={"nfe": 0.0, "operator_calls": 1.0},
                    environment={"created": f"2026-01-01T00:00:{place}", "device": "cpu", "version": "0.1.0"},
                )
            )  # fmt: skip
    return store.root


def rows(out: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out)))


def test_rich_is_printed_and_other_formats_are_written_to_files(cli, runs):
    code, out, err = cli("leaderboard", "--format", "csv=a.csv", "--format", "md=b.md", "--format", "json=c.json",
                         "--format", "latex=d.tex", "--format", "rich=e.txt", "--format", "html=f.html")  # fmt: skip
    assert (code, err) == (0, "")
    assert out == cli("leaderboard")[1]
    assert "sumpool:4 · noise none · demo, 8 images" in out
    found = rows(Path("a.csv").read_text())
    assert len(found) == 12
    assert [row["solver"] for row in json.loads(Path("c.json").read_text())] == [row["solver"] for row in found]
    assert Path("b.md").read_text().count("### ") == 5
    assert Path("d.tex").read_text().count(r"\begin{table}") == 5
    assert "sumpool:4 · noise none" in Path("e.txt").read_text()
    assert Path("f.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert (runs / INDEX).exists()


@pytest.mark.parametrize("name", ["csv", "md", "json", "latex", "html"])
def test_printed_and_written_output_are_equal(cli, runs, name):
    code, out, err = cli("leaderboard", "--format", name, "--format", f"{name}=file")
    assert (code, err) == (0, "")
    assert out == Path("file").read_text()


def test_csv_and_json_are_short_forms_of_format(cli, runs):
    assert cli("leaderboard", "--csv", "-")[1] == cli("leaderboard", "--format", "csv")[1]
    assert cli("leaderboard", "--json")[1] == cli("leaderboard", "--format", "json")[1]
    cli("leaderboard", "--csv", "short.csv", "--format", "csv=long.csv")
    assert Path("short.csv").read_bytes() == Path("long.csv").read_bytes()


def test_the_csv_contains_the_statistics(cli, runs):
    found = rows(cli("leaderboard", "--format", "csv", "-o", "sumpool:4", "-n", "none")[1])
    assert [row["solver"] for row in found] == ["dct:0.1", "tv:lam=0.1,iterations=9", "pinv"]
    assert [row["beats_floor"] for row in found] == ["yes", "yes", ""]
    assert [row["rank"] for row in found] == ["1", "2", "3"]
    assert all(float(row["p_holm"]) < 0.05 and float(row["diff_leader_hi"]) < 0 for row in found[1:])
    assert [row["pareto_seconds"] for row in found] == ["True", "True", "True"]


def test_filters_select_solvers_problems_and_metrics(cli, runs):
    def solvers(*options: str) -> set[str]:
        return {row["solver"] for row in rows(cli("leaderboard", "--csv", "-", *options)[1])}

    assert solvers("--solvers", "dct") == {"dct:0.1", "pinv"}
    assert solvers("--solvers", "tv:lam=0.1?iter*, dct") == set(BETTER)
    found = rows(
        cli("leaderboard", "--csv", "-", "--operator", "sumpool:*", "--operator", "fourier", "--noise", "none")[1]
    )
    assert {(row["operator"], row["noise"]) for row in found} == {("sumpool:4", "none"), ("fourier:0.5", "none")}
    found = rows(cli("leaderboard", "--csv", "-", "--by", "ssim", "--metrics", "ssim", "--data", "de*")[1])
    assert "psnr" not in found[0]
    assert "ssim_lo" in found[0]


def test_groups_have_headings_and_summaries(cli, runs):
    _, out, _ = cli("leaderboard", "--group-by", "noise")
    lines = out.splitlines()
    assert lines.index("noise none") < lines.index("noise gaussian:0.1")
    assert out.count("all comparisons of noise") == 2
    assert "2 of 2" in out


def test_damaged_and_foreign_folders_are_skipped_with_a_message(cli, runs):
    (runs / "foreign").mkdir()
    damaged = next(runs.glob("*dct*"))
    (damaged / "record.json").write_text("{")
    for _ in range(2):
        code, out, err = cli("leaderboard", "--csv", "-")
        assert (code, len(rows(out))) == (0, 11)
        assert err.count("skipped") == err.count("\n") == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--format", "cvs"), "--format cvs: 'cvs' is not a format; did you mean 'csv'?"),
        (("--format", "csv="), "--format csv= needs a file"),
        (("--format", "csv", "--json"), "--format csv and --json would both write to stdout"),
        (("--csv", "-", "--format", "md"), "--format md and --csv - would both write to stdout"),
        (("--format", "md=x", "--format", "csv=x"), "--format csv=x would write x twice"),
        (("--format", "md=no/x"), "the folder no does not exist"),
        (("--solvers", "ddnm*"), "--solvers ddnm* matches nothing; the results have: "),
        (("--metrics", "pnsr"), "--metrics 'pnsr' is not a column of these results; did you mean 'psnr'?"),
        (("--group-by", "seed"), "--group-by 'seed'"),
        (("--by", "pnsr"), "did you mean 'psnr'?"),
        (("elsewhere",), "no results folder elsewhere"),
        ((__file__,), "test_leaderboard.py is a file; give a results folder"),
        (("--format", "png=board.jpg"), "--format png=board.jpg: the figure is a PNG; give a file that ends with .png"),
    ],
)
def test_invalid_options_give_a_one_line_error(cli, runs, options, expected):
    code, out, err = cli("leaderboard", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def test_a_failed_write_keeps_the_existing_file(cli, runs, monkeypatch):
    Path("board.md").write_text("mine")

    def full(frame: pd.DataFrame) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryobench.leaderboard.render.to_markdown", full)
    assert cli("leaderboard", "--format", "md=board.md")[0] == 2
    assert Path("board.md").read_text() == "mine"
    assert sorted(path.name for path in Path().iterdir()) == ["board.md", "runs"]
