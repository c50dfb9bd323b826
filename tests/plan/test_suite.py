"""Suites: their cells, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryobench.errors import SuiteError
from cryobench.plan import dataset
from cryobench.plan import suite as suites
from cryobench.plan.suite_file import read_suite
from cryobench.registry import installed

SHIPPED = sorted((Path(__file__).parents[2] / "leaderboards").glob("*.yaml"))
SMALL = """
solvers: [pinv, tikhonov]
operators:
  - sumpool: {block: [2, 4], count: [1, 2]}
  - fourier:0.5
images: "0"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def planned(folder: Path, text: str):
    return suites.plans(read_suite(written(folder, text)), installed())


def cells(folder: Path, text: str) -> set[tuple[str, str, str]]:
    plans, _ = planned(folder, text)
    return {
        tuple(cell.labels[name] for name in ("solver", "operator", "noise")) for plan in plans for cell in plan.cells
    }


OPERATORS = ["sumpool:2,count=1", "sumpool:2,count=2", "sumpool:4,count=1", "sumpool:4,count=2", "fourier:0.5"]


def test_lists_give_every_combination(tmp_path):
    assert cells(tmp_path, SMALL) == {(s, o, "none") for s in ("pinv", "tikhonov") for o in OPERATORS}


def test_an_included_grid_inherits_missing_keys_from_the_suite(tmp_path):
    more = "include:\n  - {solvers: wiener, operators: identity, noises: ['gaussian:0.1']}\n"
    added = {(s, "identity", "gaussian:0.1") for s in ("pinv", "wiener")}
    assert cells(tmp_path, SMALL + more) == cells(tmp_path, SMALL) | added


def test_exclude_rules_keep_the_floor_of_the_remaining_problems(tmp_path):
    found = cells(tmp_path, SMALL + "exclude:\n  - {solver: tik*, operator: 'sumpool:2*'}\n  - {solver: pinv}\n")
    kept = ["sumpool:4,count=1", "sumpool:4,count=2", "fourier:0.5"]
    assert found == {(s, o, "none") for s in ("pinv", "tikhonov") for o in kept}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("solvers: [pinv]\noperator: identity\n", 2, "unknown key 'operator'; did you mean 'operators'"),
        ("solvers: [pinv]\noperators:\n  - identity\n  - sumpol:4\n", 4, "sumpol"),
        ("solvers: [pinv]\noperators:\n  - sumpool: {block: 4,\n             cuont: 2}\n", 3, "cuont"),
        ("solvers: []\noperators: identity\n", 1, "this list is empty"),
        ("operators: identity\nsolvers:\n  - pinv\n  - tv@nope\n", 4, "no preset 'nope' in presets"),
        ("title: none\n", 1, "expected solvers and operators"),
        ("solvers: [pinv]\n\noperators: [identity\n", 4, "invalid YAML"),
        ("solvers: pinv\nsolvers: tv\noperators: identity\n", 2, "solvers is given twice"),
        ("solvers: pinv\noperators: identity\nseeds: [0, one]\n", 3, "expected a number, got 'one'"),
        ("solvers: pinv\noperators: identity\nceiling: maybe\n", 3, "expected true or false, got 'maybe'"),
        ("solvers: pinv\noperators: identity\nexclude:\n  - {}\n", 4, "without a pattern"),
        ("solvers: pinv\noperators: identity\nreferences:\n  - {solver: tv}\n", 4, "a reference needs operator"),
        ("solvers: pinv\noperators: identity\nimages: '7:3'\n", 1, "7:3"),
        ("solvers: pinv\noperators: identity\ndata: nowhere.mrc\n", 1, "nowhere.mrc"),
    ],
)  # fmt: skip
def test_an_error_names_the_line(tmp_path, text, line, message):
    with pytest.raises(SuiteError) as error:
        planned(tmp_path, text)
    assert f"suite.yaml, line {line}: " in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_suite_may_contain_only_the_floor(tmp_path):
    assert cells(tmp_path, "solvers: pinv\noperators: identity\nimages: '0'\n") == {("pinv", "identity", "none")}


def test_grids_share_data_sets(tmp_path):
    plans, _ = planned(tmp_path, SMALL + "include:\n  - {solvers: wiener, operators: identity}\n  - {images: '1'}\n")
    first, second, third = (plan.cells[0].dataset for plan in plans)
    assert first is second
    assert third is not first


def test_a_cell_of_several_grids_is_run_once(tmp_path):
    plans, _ = planned(tmp_path, SMALL + "include:\n  - {operators: ['fourier:0.5', identity]}\n")
    hashes = [cell.hash for plan in plans for cell in plan.cells]
    assert len(hashes) == len(set(hashes)) == 12


def test_exclude_rules_that_leave_nothing_are_an_error(tmp_path):
    with pytest.raises(SuiteError, match="leave nothing to run"):
        planned(tmp_path, SMALL + "exclude:\n  - {operator: '*'}\n")


def test_an_empty_or_missing_file_is_an_error(tmp_path):
    with pytest.raises(SuiteError, match="is empty"):
        read_suite(written(tmp_path, "# nothing\n"))
    with pytest.raises(SuiteError, match=r"cannot read the suite .*No such file"):
        read_suite(tmp_path / "other.yaml")


def test_data_of_an_optional_grid_may_be_missing(tmp_path, monkeypatch):
    text = SMALL + "include:\n  - {data: '$PARTICLES', optional: data absent}\n"
    monkeypatch.setenv("PARTICLES", str(tmp_path / "particles.mrc"))
    plans, unavailable = planned(tmp_path, text)
    assert len(plans) == 1
    assert [grid.reason for grid in unavailable] == ["data absent"]
    assert "particles.mrc" in unavailable[0].error
    assert unavailable[0].operators == tuple(OPERATORS)
    with pytest.raises(SuiteError, match=r"line 8: .*particles\.mrc"):
        planned(tmp_path, text.replace(", optional: data absent", ""))


def test_a_grid_without_its_plugin_is_skipped(tmp_path):
    text = SMALL + "include:\n  - {solvers: [swift, swifter:2], needs: [torch, no-such-plugin, nor-this]}\n"
    plans, (unavailable,) = planned(tmp_path, text)
    assert len(plans) == 1
    assert (unavailable.solvers, unavailable.reason) == (
        ("swift", "swifter:2"),
        "no-such-plugin and nor-this not installed",
    )
    assert unavailable.error == "install no-such-plugin and nor-this to run them"
    assert unavailable.operators == tuple(OPERATORS)
    with pytest.raises(SuiteError, match="line 8: no solver 'swift'"):
        planned(tmp_path, text.replace(", no-such-plugin, nor-this", ""))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_published_suites_can_be_planned(path, monkeypatch):
    """Without their images, which `.ci/nightly` also simulates."""
    monkeypatch.setattr(dataset, "KEPT_BYTES", 0)
    suite = read_suite(path)
    plans, unavailable = suites.plans(suite, installed())
    assert plans or unavailable
    for reference in suites.references(suite, installed()):
        known = {(cell.labels["solver"], cell.labels["operator"]) for plan in plans for cell in plan.cells}
        known |= {(solver, operator) for grid in unavailable for solver in grid.solvers for operator in grid.operators}
        assert (reference.solver, reference.operator) in known
