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
FSC = {"name": "fsc", "direction": "higher", "unit": ""}
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


# --- a published table as OLD ----------------------------------------------------------------------------------------


@pytest.fixture
def table(results):
    results("leaderboard", "old", "--csv", "old.csv")
    return results


def test_a_published_table_has_means_and_intervals_only_and_says_so(table):
    code, out, err = table("compare", "old.csv", "new", "--format", "json")
    found = json.loads(out)
    psnr = {change["solver"]: change for change in found["changes"] if change["column"] == "psnr"}
    assert (code, err) == (0, "")
    assert psnr["dct"]["verdict"] == "within noise"  # half a dB, on every image: only pairs can show it
    assert psnr["tv"]["verdict"] == "identical"
    assert psnr["dct"]["difference"] == pytest.approx(-0.5)
    # Zou and Donner's interval, by hand: both means have the same half widths
    rows = {row["solver"]: row for row in csv.DictReader(io.StringIO(Path("old.csv").read_text()))}
    below, above = (abs(float(rows["dct"][f"psnr{end}"]) - float(rows["dct"]["psnr"])) for end in ("_lo", "_hi"))
    width = np.hypot(below, above)
    assert (psnr["dct"]["lo"], psnr["dct"]["hi"]) == pytest.approx((-0.5 - width, -0.5 + width), abs=1e-9)
    assert all(change["p"] is None for change in psnr.values())
    assert found["remarks"][0].startswith("OLD is a table of means and intervals, without values of images")
    assert not any("only OLD has" in remark for remark in found["remarks"])
    text = Path("old.csv").read_text()
    Path("more.csv").write_text(text.replace("psnr,psnr_lo,psnr_hi", "ssim,ssim_lo,ssim_hi"))
    assert "for some cells only OLD has ssim" in " ".join(table("compare", "more.csv", "new")[1].split())
    assert found["only_old"] == ["pinv on sumpool:16, noise none, demo, seed 0"]
    assert {change["column"] for change in found["changes"]} == {"psnr", "seconds_per_image"}


def test_thresholds_apply_to_the_means_of_a_table(table):
    assert table("compare", "old.csv", "new", "--fail-on", "psnr:-0.6")[0] == 0
    code, out, _ = table("compare", "old.csv", "new", "--fail-on", "psnr:-0.4")
    assert code == 1
    assert "worse" not in out.splitlines()[0]
    assert out.rstrip().endswith("1 regression")


def test_a_large_change_from_a_table_is_a_regression(table):
    save("low", dct=VALUES - 5, tv=VALUES + 5)
    code, out, _ = table("compare", "old.csv", "low", "--format", "csv")
    verdicts = {row["solver"]: row["verdict"] for row in csv.DictReader(io.StringIO(out)) if row["column"] == "psnr"}
    assert (code, verdicts) == (1, {"dct": "worse", "tv": "better"})
    code, _, err = table("compare", "low", "old.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "NEW must be a results folder" in err


SEEDS = ("1a2b3c", "1a2b9d", "77aa00")


def save_seeds(folder: str, digests: tuple[str, ...] = SEEDS, lower: float = 0.0) -> Path:
    """A results folder with data sets of the same label, as seeds of a simulation: two solvers on each, a metric of all
    images together, and a solver that fails."""
    for place, digest in enumerate(digests):
        for solver in ("dct", "tv", "broken"):
            psnr = VALUES + int(digest, 16) % 7 + len(solver) - lower
            ran = solver != "broken"
            Results(folder).write(
                Record(
                    hash=f"{solver}{place}".ljust(12, "0"), status="ok" if ran else "failed", reason="" if ran else "?",
                    solver=solver, operator="identity", noise="own", data="motion", seed=0, columns=[PSNR, FSC],
                    images=[f"{place}@{image}" for image in range(len(VALUES))],
                    values={"psnr": psnr.tolist()} if ran else {}, together={"fsc": psnr[0] / 50} if ran else {},
                    timing={"seconds_per_image": 1.0}, problem={"data_digest": f"sha256:{digest}"},
                )
            )  # fmt: skip
    return Path(folder)


@pytest.mark.parametrize(("pool", "names", "cells"), [
    ((), {"motion#1a2b3", "motion#1a2b9", "motion#77aa0"}, 6),
    (("--pool",), {"motion, 8 images each"}, 2),
])  # fmt: skip
def test_data_sets_of_the_same_label_are_found_in_a_table(cli, pool, names, cells):
    cli("leaderboard", save_seeds("seeds"), *pool, "--csv", "seeds.csv")
    assert {row["data"] for row in csv.DictReader(io.StringIO(Path("seeds.csv").read_text()))} == names
    code, out, err = cli("compare", "seeds.csv", "seeds", "--format", "json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["only_old"] == found["only_new"] == []
    for column in ("psnr", "fsc"):
        changes = [change for change in found["changes"] if change["column"] == column]
        assert [change["verdict"] for change in changes] == ["identical"] * cells
        assert {change["data"] for change in changes} == names
    save_seeds("low", lower=20)
    code, out, _ = cli("compare", "seeds.csv", "low", "--metrics", "psnr", "--format", "json")
    changes = json.loads(out)["changes"]
    assert (code, {change["verdict"] for change in changes}) == (1, {"worse"})
    assert [change["difference"] for change in changes] == pytest.approx([-20] * cells)


def test_data_sets_are_matched_by_their_digests_and_not_by_their_number(cli):
    cli("leaderboard", save_seeds("seeds"), "--csv", "seeds.csv")
    save_seeds("one", SEEDS[1:2])  # a single data set is not marked in its own leaderboard
    code, out, _ = cli("compare", "seeds.csv", "one", "--metrics", "psnr", "--format", "json")
    found = json.loads(out)
    assert (code, found["only_new"]) == (0, [])
    assert {(change["data"], change["verdict"]) for change in found["changes"]} == {("motion#1a2b9", "identical")}
    cli("leaderboard", "one", "--csv", "one.csv")
    assert cli("compare", "one.csv", "one", "--metrics", "psnr")[0] == 0
    code, _, err = cli("compare", "one.csv", "seeds")  # which of the three it was, the table does not say
    assert (code, err.count("\n")) == (2, 1)
    assert "no cell is in both results" in err
    assert "motion#" in err


@pytest.mark.parametrize(("text", "why"), [
    ("", "is not a leaderboard with rows"),
    ("a,b\n1,2\n", "it lacks the column 'rank'"),
    ("OLD,7", "line 5: the row is too short; the file is damaged or was edited"),
    ("\udcff", "cannot read old.csv"),
])  # fmt: skip
def test_a_file_that_is_no_leaderboard_is_one_line(table, text, why):
    path = Path("old.csv")
    path.write_bytes(text.replace("OLD", path.read_text() + "1,dct,x,none,demo,0").encode(errors="surrogateescape"))
    code, _, err = table("compare", path, "new")
    assert (code, err.count("\n")) == (2, 1)
    assert why in err


def test_the_published_boards_are_read():
    from cryobench.leaderboard.compare.published import read_table

    for path in (Path(__file__).parents[2] / "leaderboards").glob("*.csv"):
        found = read_table(path)
        every = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        rows = [row for row in every if row["status"] in ("ok", "skipped", "failed")]
        assert len(found.records) == len(rows) > 0
        for name in ("psnr", "map_truth"):
            means = [float(row[name]) if row.get(name) else None for row in rows]
            assert [record.together.get(name) for record in found.records] == means
