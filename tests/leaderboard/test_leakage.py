"""Rows whose prior may have been trained on the scored images are marked."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

import cryobench as cb
from cryobench.leaderboard import render
from cryobench.leaderboard.leakage import overlap
from cryobench.leaderboard.table import leaderboard
from cryobench.record import Record

SCORED = {"structure": "6zu5,3o21", "split": "test", "seed": "0"}


def record(trained_on: list[dict[str, str]], origin: dict[str, str] = SCORED) -> Record:
    return Record("h", "ok", "", "s", "o", "none", "d", 0, ["0"], problem={"origin": origin, "trained_on": trained_on})


@pytest.mark.parametrize(
    ("trained", "shared"),
    [
        ([], ""),
        ([{"structure": "1r19,3mht", "split": "train", "seed": "0"}], ""),
        ([{"structure": "6zu5", "split": "train", "seed": "0"}], "structure"),
        ([{"structure": "6zu5-large", "split": "train", "seed": "0"}], "structure"),
        ([{"structure": "6zu5", "split": "test", "seed": "1"}], "structure"),
        ([{"structure": "1r19", "split": "test", "seed": "0"}], ""),
        ([{"structure": "3o21-a", "split": "test", "seed": "0"}], "images"),
        ([{"structure": "6zu5", "split": "train", "seed": "0"}, SCORED], "images"),
    ],
)
def test_the_overlap_of_origins(trained, shared):
    assert overlap(record(trained)) == shared
    assert overlap(record(trained, origin={})) == ""
    assert overlap(dataclasses.replace(record([]), problem={})) == ""


PRIOR = """
from dataclasses import dataclass
from typing import Annotated
from cryobench.core import Prior, Reconstruction, Solver
from cryobench.spec import Component

@dataclass(frozen=True)
class Trained(Prior):
    split: str = "train"
    structure: str = "3mht"
    def trained_on(self):
        return [{"structure": self.structure, "split": self.split, "seed": "0"}]

@dataclass(frozen=True)
class Recalls(Solver):
    prior: Annotated[Prior, Component("priors")] = Trained()
    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(problem.operator.A_dagger(problem.y))
"""


def test_a_run_records_the_overlap_and_the_table_shows_it(install_plugin):
    install_plugin(
        "cryobench-recall",
        {"cryobench.solvers": {"recalls": "recall:Recalls"}, "cryobench.priors": {"trained": "recall:Trained"}},
        recall=PRIOR,
    )
    solvers = ["recalls", "recalls:trained,prior.split=test", "recalls:trained,prior.structure=2nwl"]
    records = cb.run(solvers, "sumpool:4", data="simulate:3mht,size=32,snr=1")
    assert [r.status for r in records] == ["ok"] * 4
    assert records[0].problem["origin"] == {"structure": "3mht", "split": "test", "seed": "0"}
    frame = leaderboard(records)
    seen = dict(zip(frame["solver"], frame["overlap"], strict=True))
    assert seen == {
        "pinv": "",
        "recalls": "structure",
        "recalls:prior=trained,prior.split=test": "images",
        "recalls:prior=trained,prior.structure=2nwl": "",
    }
    console = Console(width=200, record=True)
    console.print(render.rich_tables(frame))
    text = console.export_text()
    assert "‡ its prior may have been trained on these images" in text
    assert "† its prior was trained on other images of the same structure" in text
    marked = [line for line in text.splitlines() if "‡" in line or "†" in line]
    assert len(marked) == 4  # two rows, two remarks


def test_clean_columns_are_next_to_the_ranking_metric():
    frame = leaderboard(cb.run("pinv", "sumpool:4", data="simulate:3mht,size=32,snr=1"))
    names = list(frame.columns)
    assert {"psnr", "psnr_clean", "ssim_clean", "psnr_clean_lo"} <= set(names)
    assert "measurement_mse_clean" not in names
    console = Console(width=100, record=True)
    console.print(render.rich_tables(frame))
    header = " ".join(console.export_text().split())
    assert header.index("psnr ↑") < header.index("clean ↑") < header.index("mse ↓")
