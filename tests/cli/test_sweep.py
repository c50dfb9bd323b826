"""`cryobench sweep`: a suite is run, ranked and published."""

from __future__ import annotations

import pandas as pd
import pytest

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


def test_what_is_there_is_not_run_again(cli, suite):
    cli("sweep", suite, "--quiet")
    code, _, err = cli("sweep", suite)
    assert code == 0
    assert "4 cells in runs/blobs, 4 of them there already" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "cannot read the suite nowhere.yaml"),
        (["blobs.yaml", "--publish", "absent"], "the folder absent does not exist"),
        (["blobs.yaml", "--device", "abacus"], "abacus"),
    ],
)
def test_nonsense_is_one_line(cli, suite, arguments, said):
    code, out, err = cli("sweep", *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
